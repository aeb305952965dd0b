"""From VBench's result files to the report."""

import json

import pytest

from forcing_kv.errors import OutputError
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder, FolderSettings
from forcing_kv.evaluation.vbench.plan import SamplePlan
from forcing_kv.evaluation.vbench.report import format_report, write_report
from forcing_kv.evaluation.vbench.results import read_result_file, read_results
from forcing_kv.evaluation.vbench.scores import DIMENSIONS
from forcing_kv.evaluation.vbench.suite import parse_suite
from stand_in_vbench import SUITE

MADE_WITH = {"model": "tiny", "policy": "full", "seed": 7, "frames": 21, "fps": 16, "prompts": None}


def begun(root, made_with=MADE_WITH, **plan):
    folder = BenchmarkFolder(root)
    settings = FolderSettings(made_with=made_with, plan=SamplePlan(**plan), environment={"commit": "abc"})
    folder.begin(parse_suite(json.dumps(SUITE).encode(), where="-"), settings, overwrite=False)
    folder.results.mkdir(exist_ok=True)
    return folder


def store(folder, about=None, **scores):
    """Results as VBench writes them, with what they were evaluated on if that is given."""
    for name, score in scores.items():
        videos = [{"video_path": f"videos/{index}.mp4", "video_results": score} for index in range(2)]
        folder.result_path(name).write_text(json.dumps({name: [score, videos]}))
        if about is not None:
            folder.evaluation(name).mkdir(parents=True, exist_ok=True)
            (folder.evaluation(name) / "about.json").write_text(json.dumps(about))


def test_a_whole_report(tmp_path):
    folder = begun(tmp_path / "vb", samples=2)
    about = {"vbench": "0.1.5", "samples": 2, "static_filter": None}
    store(folder, about, **{name: dimension.highest for name, dimension in DIMENSIONS.items()})
    store(folder, {**about, "samples": 25, "static_filter": True}, temporal_flickering=0.81465)
    document = write_report(folder)
    assert document == json.loads(folder.report_path.read_text())
    assert document["format"] == "forcing-kv-vbench-report"
    assert document["missing"] == []
    # half of one of seven dimensions is lost, in 6.5 weights
    assert document["totals"] == pytest.approx({"quality": 12 / 13, "semantic": 1.0, "total": 61 / 65})
    flickering = dict(document["dimensions"]["temporal_flickering"])
    assert (flickering.pop("group"), flickering.pop("normalised")) == ("quality", pytest.approx(0.5))
    assert flickering == {"score": 0.81465, "weight": 1.0, "prompts": 1, "videos": 2, "videos_made": 25}
    config = document["config"]
    assert (config["policy"], config["samples"], config["seeds"]) == ("full", 2, [7, 8])
    assert document["environment"] == {"commit": "abc"}
    assert document["evaluated_on"]["color"] == about
    assert document["caveats"] == [
        "the prompt suite is not that of vbench 0.1.5: it has 3 prompts",
        "2 samples per prompt, not 5",
    ]
    table = format_report(document).splitlines()
    assert table[0].split() == ["score", "normalised", "videos"]
    assert table[1].split() == ["subject_consistency", "100.00", "100.00", "2"]
    assert table[3].split() == ["temporal_flickering", "81.47", "50.00", "2"]
    assert [line.split() for line in table[18:21]] == [["quality", "92.31"], ["semantic", "100.00"], ["total", "93.85"]]


def test_missing_dimensions_are_named_and_their_totals_left_out(tmp_path):
    folder = begun(tmp_path / "vb")
    store(folder, **{name: 0.5 for name, dimension in DIMENSIONS.items() if dimension.group == "quality"})
    document = write_report(folder)
    assert document["totals"]["quality"] is not None
    assert document["totals"]["semantic"] is document["totals"]["total"] is None
    assert document["missing"] == [name for name, dimension in DIMENSIONS.items() if dimension.group == "semantic"]
    table = format_report(document)
    assert "missing, and so are the totals that need them: object_class, multiple_objects" in table
    assert "\ntotal                            -" in table
    assert write_report(begun(tmp_path / "none"))["totals"] == {"quality": None, "semantic": None, "total": None}


def test_caveats(tmp_path):
    made_with = {**MADE_WITH, "frames": 81, "prompts": {"name": "long.txt", "sha256": "0"}}
    folder = begun(tmp_path / "vb", made_with=made_with, flickering_samples=10)
    store(folder, {"vbench": "0.1.5", "samples": 10, "static_filter": True}, temporal_flickering=0.9)
    store(folder, {"vbench": "0.1.4", "samples": 3, "static_filter": None}, color=0.5)
    assert write_report(folder)["caveats"][1:] == [
        "10 samples per prompt of temporal_flickering, not 25",
        "color was scored on 3 samples per prompt, and there are now 5: evaluate it again",
        "the prompts given to the model were those of long.txt, not the suite's own",
        "videos of 5.1 s: the leaderboard scores those of 5 s and more with VBench-Long",
        "dimensions were scored by different versions of VBench: 0.1.4, 0.1.5",
    ]
    store(folder, {"samples": 10, "static_filter": False}, temporal_flickering=0.9)
    assert "temporal_flickering was scored on all videos, without the filter" in write_report(folder)["caveats"][1]
    (folder.evaluation("temporal_flickering") / "about.json").write_text("{")
    assert "were filtered for static ones is not known" in write_report(folder)["caveats"][1]


def test_results_from_elsewhere(tmp_path):
    both = {"color": [0.5, []], "scene": [1, [{"video_path": "a"}]]}
    (tmp_path / "results_2026-01-01-00:00:00_eval_results.json").write_text(json.dumps(both))
    (tmp_path / "results_2026-01-01-00:00:00_full_info.json").write_text("[]")  # VBench's own, of no interest
    results = read_results(tmp_path)
    assert list(results) == ["color", "scene"]
    assert (results["scene"].score, results["scene"].num_videos) == (1.0, 1)
    (tmp_path / "scene_eval_results.json").write_text(json.dumps({"scene": [0.1, []]}))
    with pytest.raises(OutputError, match=r"results_2026.* and .*scene_eval_results\.json both hold scene: keep one"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no scores by dimension"),
        ("{}", "holds no scores by dimension"),
        ('{"sharpness": [0.5, []]}', "'sharpness', which is no dimension"),
        ('{"color": 0.5}', r"no \[score, videos\] for color"),
        ('{"color": [true, []]}', r"no \[score, videos\]"),
        ('{"color": ["high", []]}', r"no \[score, videos\]"),
        ('{"color": [0.5]}', r"no \[score, videos\]"),
        ('{"color": [Infinity, []]}', "the score inf"),
    ],
)
def test_what_is_no_result(tmp_path, content, message):
    path = tmp_path / "color_eval_results.json"
    path.write_text(content)
    with pytest.raises(OutputError, match=message):
        read_result_file(path)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(OutputError, match=r"holds no videos of VBench's prompts, .*vbench generate -o"):
        BenchmarkFolder.open(tmp_path)
    for content, message in (
        ("{", "cannot be read"),
        ('{"format": "other", "version": 1}', "is of format 'other', version 1, and this program reads"),
        ('{"format": "forcing-kv-vbench", "version": 1}', r"cannot be read \('made_with'\)"),
    ):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(OutputError, match=message):
            BenchmarkFolder.open(tmp_path).settings()
