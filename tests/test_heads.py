"""Head maps and their file."""

import json

import pytest

from forcing_kv import HeadMap, HeadMapError


def test_scores_become_roles_and_survive_the_file(tmp_path):
    scores = [[0.8, 0.79, 1.0], [0.0, 0.5, 0.9]]
    head_map = HeadMap.from_scores(scores, model="m", provenance={"prompts": 3})
    assert head_map.roles == ("sds", "dds")
    assert head_map.num_static == 3
    assert head_map.heads(0, "s") == (0, 2)
    assert head_map.side_by_side() == ((0, 2, 1), (2, 0, 1))
    head_map.save(tmp_path / "map.json")
    assert HeadMap.load(tmp_path / "map.json") == head_map
    document = json.loads((tmp_path / "map.json").read_text())
    assert (document["format"], document["version"]) == ("forcing-kv-head-map", 1)
    assert (document["num_layers"], document["num_heads"], document["roles"]) == (2, 3, ["sds", "dds"])


def test_the_map_of_the_first_layers():
    scores = [[0.8, 0.1], [0.2, 0.3], [0.9, 0.9]]
    head_map = HeadMap.from_scores(scores, model="m", threshold=0.7, provenance={"prompts": 3})
    first = head_map.first_layers(2)
    assert (first.model, first.roles, first.scores) == ("m, first 2 layers", ("sd", "dd"), ((0.8, 0.1), (0.2, 0.3)))
    assert (first.threshold, first.provenance) == (0.7, {"prompts": 3})
    assert HeadMap(model="m", roles=("sd", "dd")).first_layers(1).scores is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, 'lacks "format"'),
        ({"version": 2}, "version 2; this release reads 1"),
        ({"roles": ["sd", "sdd"]}, "layer 1 of the head map reads 'sdd'"),
        ({"roles": ["sx", "dd"]}, "each s or d"),
        ({"roles": []}, "at least one layer"),
        ({"num_heads": 3}, "2 layers x 2 heads, the model has 2 x 3"),
        ({"scores": [[0.1, 0.2]]}, "not 2 rows of 2 numbers"),
        ({"scores": [["a", 1], [1, 1]]}, "malformed"),
        ({"threshold": "high"}, "malformed"),
    ],
)
def test_broken_files_are_named(tmp_path, change, message):
    path = tmp_path / "map.json"
    document = HeadMap(model="m", roles=("sd", "dd")).to_json() | change
    path.write_text(json.dumps(document))
    with pytest.raises(HeadMapError, match=message) as caught:
        HeadMap.load(path)
    assert str(path) in str(caught.value)


def test_missing_entry_missing_file_and_no_json(tmp_path):
    path = tmp_path / "map.json"
    with pytest.raises(HeadMapError, match="cannot read head map"):
        HeadMap.load(path)
    path.write_text("{")
    with pytest.raises(HeadMapError, match="not valid JSON"):
        HeadMap.load(path)
    document = HeadMap(model="m", roles=("sd",)).to_json()
    del document["model"]
    path.write_text(json.dumps(document))
    with pytest.raises(HeadMapError, match="lacks the entry 'model'"):
        HeadMap.load(path)
