"""The file of what was seen, several prompts as one, and the map that comes of it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcing_kv import ConfigurationError, HeadMap, OutputError
from forcing_kv.calibration import Observations, measured_head_map
from forcing_kv.calibration.roles import threshold_for


def observations(seed=0, num_prompts=1, **settings):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_prompts, 2, 3, 2, 4)
    return Observations(
        scores=torch.rand(shape, generator=generator),
        standard_errors=0.1 * torch.rand(shape, generator=generator),
        distance_mass=torch.rand(2, 4, 12, generator=generator),
        distances=tuple(range(-9, 3)),
        sink_mass=torch.rand(2, 4, 3, generator=generator),
        prompts=tuple(f"prompt {seed} {number}" for number in range(num_prompts)),
        seeds=tuple(range(seed, seed + num_prompts)),
        chunks=(3, 4),
        steps=(0, 1, 3),
        settings={
            "model": "m",
            "sink_frames": 3,
            "recent_frames": 1,
            "chunk_frames": 3,
            "max_queries": None,
            "weights_sha256": "abc",
            "versions": {"torch": "2"},
            **settings,
        },
    )


def assert_same(ours, wanted):
    for name, value in vars(wanted).items():
        found = getattr(ours, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_the_file_holds_all_of_it(tmp_path):
    original = observations(num_prompts=2)
    original.save(tmp_path / "o.safetensors")
    assert_same(Observations.load(tmp_path / "o.safetensors"), original)


def test_an_empty_sink_survives_the_file(tmp_path):
    original = replace(observations(sink_frames=0), sink_mass=torch.zeros(2, 4, 0))
    original.save(tmp_path / "o.safetensors")
    assert_same(Observations.load(tmp_path / "o.safetensors"), original)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "o.safetensors"
    with pytest.raises(OutputError, match="cannot be read"):
        Observations.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(OutputError, match=r"o\.safetensors.*cannot be read"):
        Observations.load(path)
    from safetensors.torch import save_file

    save_file({"scores": torch.zeros(1)}, path)
    with pytest.raises(OutputError, match="holds no observations that this release reads"):
        Observations.load(path)


def test_prompts_are_joined_and_masses_averaged():
    first, second = observations(0, 1), observations(5, 3, versions={"torch": "3"})
    both = Observations.concatenate([first, second])
    assert both.prompts == first.prompts + second.prompts
    assert both.seeds == (0, 5, 6, 7)
    assert torch.equal(both.scores, torch.cat([first.scores, second.scores]))
    torch.testing.assert_close(both.distance_mass, (first.distance_mass + 3 * second.distance_mass) / 4)
    torch.testing.assert_close(both.sink_mass, (first.sink_mass + 3 * second.sink_mass) / 4)
    torch.testing.assert_close(both.head_scores(), both.scores.mean(dim=(0, 1, 2)))
    one_score = both.standard_errors[..., 1, 2].flatten()
    assert both.head_standard_errors()[1, 2] == pytest.approx(
        float(one_score.square().sum().sqrt()) / one_score.numel()
    )


def test_what_does_not_belong_together_is_not_joined():
    with pytest.raises(ConfigurationError, match="model 'n', not 'm' do not belong together"):
        Observations.concatenate([observations(), observations(model="n")])
    with pytest.raises(ConfigurationError, match=r"steps \[0\], not \[0, 1, 3\]"):
        Observations.concatenate([observations(), replace(observations(), steps=(0,))])
    with pytest.raises(ConfigurationError, match="nothing to concatenate"):
        Observations.concatenate([])


def test_the_map_says_how_it_was_made(tmp_path):
    seen = observations(num_prompts=2)
    head_map = measured_head_map(seen, threshold=0.5)
    head_map.save(tmp_path / "map.json")
    assert HeadMap.load(tmp_path / "map.json") == head_map
    scores = seen.head_scores()
    assert head_map.roles == tuple("".join("s" if score >= 0.5 else "d" for score in row) for row in scores)
    assert torch.tensor(head_map.scores).sub(scores).abs().max() < 1e-6
    assert head_map.model == "m"
    assert (
        head_map.provenance.items()
        >= {
            "last_frames": 4,
            "skipped_sink_frames": 3,
            "min_read_frames": 12,
            "weights_sha256": "abc",
            "prompts": list(seen.prompts),
            "seeds": [0, 1],
            "chunks": [3, 4],
            "steps": [0, 1, 3],
            "max_queries": None,
            "target_static_fraction": None,
            "versions": {"torch": "2"},
        }.items()
    )
    assert 0 < head_map.provenance["largest_standard_error"] < 0.1


@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=12),
    fraction=st.floats(0, 1),
)
def test_the_share_of_static_heads_is_as_near_as_ties_allow(scores, fraction):
    threshold = threshold_for([scores], fraction)
    got = sum(score >= threshold for score in scores)
    possible = [sum(score >= cut for score in scores) for cut in (*scores, 2.0)]
    wanted = fraction * len(scores)
    assert abs(got - wanted) == min(abs(num - wanted) for num in possible)


def test_a_target_is_kept_on_record_with_its_threshold():
    seen = observations()
    for fraction, num_static in ((0, 0), (0.25, 2), (0.5, 4), (1, 8)):
        head_map = measured_head_map(seen, target_static_fraction=fraction)
        assert head_map.num_static == num_static
        assert head_map.provenance["target_static_fraction"] == fraction
        again = HeadMap.from_scores(head_map.scores, model="m", threshold=head_map.threshold)
        assert again.roles == head_map.roles
    assert measured_head_map(seen).threshold == 0.8
    with pytest.raises(ConfigurationError, match="not both"):
        measured_head_map(seen, threshold=0.8, target_static_fraction=0.5)
    for wrong in ({"threshold": 1.5}, {"target_static_fraction": float("nan")}):
        with pytest.raises(ConfigurationError, match="must lie between 0 and 1"):
            measured_head_map(seen, **wrong)
