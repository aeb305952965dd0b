"""A whole calibration: planted roles are found, a killed one goes on bit for bit."""

import pytest
import torch

from forcing_kv import ConfigurationError, HeadMapError, OutputError, PromptError, VideoPipeline, calibrate
from forcing_kv.calibration import default_num_chunks, observed_passes
from forcing_kv.models import ModelPreset
from forcing_kv.models.weights import weights_sha256
from planted import planted_pipeline

ROLES = ("sdds", "dddd", "ssss", "dsds", "sddd")
PROMPTS = ["a red circle", "a blue square", "a green triangle"]


@pytest.mark.parametrize("chunk_frames", [1, 3, 4])
def test_planted_roles_are_found_all_of_them(chunk_frames):
    result = calibrate(planted_pipeline(ROLES, chunk_frames=chunk_frames), PROMPTS[:1], num_chunks=15 // chunk_frames)
    assert result.head_map.roles == ROLES
    scores = result.observations.scores
    static = torch.tensor([[role == "s" for role in roles] for roles in ROLES])
    assert scores[..., static].min() > 0.85
    assert scores[..., ~static].max() < 0.15
    by_distance = result.observations.distance_mass
    newest = by_distance[..., -chunk_frames - 1 :].sum(-1)
    assert (newest[static] > 0.8).all()
    assert (newest[~static] < 0.2).all()


def test_where_heads_lie_and_which_roles_they_had_does_not_matter():
    plain = calibrate(planted_pipeline(ROLES), PROMPTS[:1], num_chunks=4)
    permuted = planted_pipeline(ROLES, head_map=("dsds", "sdsd", "dsss", "sddd", "ddds"))
    assert permuted.transformer.head_order[0] != (0, 1, 2, 3)
    other = calibrate(permuted, PROMPTS[:1], num_chunks=4)
    torch.testing.assert_close(other.observations.scores, plain.observations.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.observations.distance_mass, plain.observations.distance_mass, rtol=1e-3, atol=1e-5)
    assert other.head_map.roles == plain.head_map.roles == ROLES
    assert other.head_map.provenance["weights_sha256"] == plain.head_map.provenance["weights_sha256"]
    with pytest.raises(HeadMapError, match="has 5 layers x 4 heads, the model has 1 x 4"):
        planted_pipeline(("sdds",), head_map=ROLES)


def test_the_hash_is_that_of_the_weights_and_their_dtype():
    first, second = (planted_pipeline(ROLES).transformer for _ in range(2))
    names = [name for name, _ in first.released_weights()]
    assert names == list(first.state_dict())
    second.set_head_order([(3, 1, 0, 2)] * len(ROLES))
    for (name, weight), (_, again) in zip(first.released_weights(), second.released_weights(), strict=True):
        assert torch.equal(weight, again), name
    assert weights_sha256(first) == weights_sha256(second)
    second.blocks[3].ffn[0].bias[0] += 1e-6
    assert weights_sha256(first) != weights_sha256(second)
    assert weights_sha256(first) != weights_sha256(planted_pipeline(ROLES).transformer.bfloat16())


def test_a_real_pipeline(tiny_model_folder):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    progress = []
    result = calibrate(
        pipeline,
        PROMPTS,
        num_chunks=6,
        steps=[3, 0],
        seed=7,
        observed_chunks=[4],
        resolution=(64, 48),
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    seen = result.observations
    assert seen.scores.shape == seen.standard_errors.shape == (3, 1, 2, 3, 4)
    assert (seen.prompts, seen.seeds, seen.chunks, seen.steps) == (tuple(PROMPTS), (7, 8, 9), (4,), (0, 3))
    assert ((seen.scores > 0) & (seen.scores < 1)).all()
    assert seen.settings["resolution"] == [64, 48]
    head_map = result.head_map
    assert (head_map.model, head_map.num_layers, head_map.num_heads) == ("random", 3, 4)
    assert set(head_map.provenance) >= {"weights_sha256", "versions", "num_chunks", "dtype", "timesteps"}
    # A prompt is observed as it would be alone: seeds count from the first.
    alone = calibrate(
        pipeline, PROMPTS[1:2], num_chunks=6, steps=[0, 3], seed=8, observed_chunks=[4], resolution=(64, 48)
    )
    assert torch.equal(alone.observations.scores[0], seen.scores[1])


class Killed(BaseException):
    pass


def test_a_killed_calibration_goes_on_bit_for_bit(tiny_model_folder, tmp_path):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    settings = {"num_chunks": 4, "steps": [0, 2], "max_queries": 10, "seed": 3}
    expected = calibrate(pipeline, PROMPTS, **settings)

    def kill_after(num_prompts):
        def on_progress(done, total):
            if done == num_prompts:
                raise Killed

        return on_progress

    for num_prompts in (1, 2):
        with pytest.raises(Killed):
            calibrate(pipeline, PROMPTS, **settings, checkpoint=tmp_path / "o", on_progress=kill_after(num_prompts))
        assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
            f"{index:05d}.safetensors" for index in range(num_prompts)
        ]
    progress = []
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    resumed = calibrate(
        pipeline, PROMPTS, **settings, checkpoint=tmp_path / "o", on_progress=lambda *at: progress.append(at)
    )
    assert progress == [(2, 3), (3, 3)]
    assert resumed.head_map == expected.head_map
    for name, value in vars(expected.observations).items():
        found = getattr(resumed.observations, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name
    # The roles are read off anew: another threshold costs nothing.
    again = calibrate(
        pipeline, PROMPTS, **settings, checkpoint=tmp_path / "o", target_static_fraction=0.5, on_progress=kill_after(2)
    )
    assert again.head_map.num_static == 6

    for changes, message in (
        ({"seed": 4}, "seed 3, not 4"),
        ({"steps": [0]}, r"steps \[0, 2\], not \[0\]"),
        ({"num_chunks": 5}, "num_chunks 4, not 5"),
        ({"max_queries": None}, "max_queries 10, not None"),
        ({"sink_frames": 2}, "sink_frames 3, not 2"),
        ({"resolution": (64, 48)}, r"resolution \[96, 64\], not \[64, 48\]"),
    ):
        with pytest.raises(OutputError, match=rf"00000.safetensors was made with {message}: "):
            calibrate(pipeline, PROMPTS, **(settings | changes), checkpoint=tmp_path / "o")
    with pytest.raises(OutputError, match=r"00001.safetensors was made with prompt 'a blue square', not 'a circle'"):
        calibrate(pipeline, ["a red circle", "a circle"], **settings, checkpoint=tmp_path / "o")
    pipeline.transformer.head.head.bias[0] += 1
    with pytest.raises(OutputError, match="made with weights_sha256"):
        calibrate(pipeline, PROMPTS, **settings, checkpoint=tmp_path / "o")
    (tmp_path / "o" / "00000.safetensors").write_bytes(b"half")
    with pytest.raises(OutputError, match=r"00000.safetensors' cannot be read"):
        calibrate(pipeline, PROMPTS, **settings, checkpoint=tmp_path / "o")


def test_what_cannot_be_measured_is_refused_before_any_pass(tiny_model_folder):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    with pytest.raises(PromptError, match="at least one prompt"):
        calibrate(pipeline, [], num_chunks=4)
    for settings, message in (
        ({"num_chunks": 3}, "3 chunks of 3 frames are too few: .* reads 12 frames; use at least 4 chunks"),
        ({"num_chunks": 5, "steps": [4]}, r"steps=\[4\] must name some of the 4 denoising steps of random: 0 to 3"),
        ({"num_chunks": 5, "steps": []}, r"steps=\[\] must name"),
        ({"num_chunks": 5, "observed_chunks": [2, 3]}, r"observed_chunks=\[2, 3\] must name some of the chunks 3 to 4"),
        ({"num_chunks": 4, "sink_frames": 9}, "reads 15 frames; use at least 5 chunks"),
        ({"num_chunks": 4, "sink_frames": -1}, "sink_frames=-1 must be at least 0"),
        ({"num_chunks": 4, "max_queries": 1}, "max_queries=1 must be at least 2"),
        ({"num_chunks": 4, "threshold": 2}, "threshold=2 must lie between 0 and 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            calibrate(pipeline, PROMPTS, **settings)


def test_as_many_chunks_as_the_model_was_trained_at():
    sizes = {(3, 21): 7, (1, 21): 21, (3, 36): 7, (4, 21): 5, (3, 6): 4, (5, 12): 3}
    for (chunk_frames, trained_frames), expected in sizes.items():
        preset = ModelPreset(name="p", chunk_frames=chunk_frames, trained_frames=trained_frames)
        assert default_num_chunks(preset) == expected
        observed_passes(preset, num_chunks=expected)
