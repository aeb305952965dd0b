"""What is to be measured, and what cannot be."""

import re

import pytest
import torch

from forcing_kv import HeadMap, VideoPipeline
from forcing_kv.bench import Ceilings, plan_benchmark
from forcing_kv.errors import ConfigurationError, ForcingKVError, MemoryLimitError
from forcing_kv.models import find_model
from forcing_kv.stream_options import StreamOptions

POLICIES = ["full", "window", "forcing-kv"]


def plan(model="self-forcing-1.3b", policies=POLICIES, **settings):
    settings = {"num_frames": 81, "random_weights": True, "dtype": torch.bfloat16, "prompt": "a cat", **settings}
    return plan_benchmark(find_model(model), policies, device=torch.device(settings.pop("device", "cpu")), **settings)


def test_a_plan_knows_its_arithmetic():
    """The published shapes at 480p over 30 layers: 21, 12 and 5.6 frames read."""
    planned = plan()
    assert (planned.num_chunks, planned.num_frames, planned.chunk_passes) == (7, 81, 5)
    assert planned.geometry.frame_tokens == 1560
    tflop = [planned.pass_work(policy.steady.history_tokens).flops / 1e12 for policy in planned.policies]
    assert tflop == pytest.approx(
        [11.7 + 0.44 + 21 * 1.35, 11.7 + 0.44 + 12 * 1.35, 11.7 + 0.44 + 5.6 * 1.35], rel=2e-2
    )
    assert [policy.num_chunks for policy in planned.policies] == [7, 7, 7]


def test_a_short_video_goes_on_to_the_steady_state():
    planned = plan(num_frames=10)
    assert planned.num_chunks == 2
    assert [policy.num_chunks for policy in planned.policies] == [7, 4, 4]
    assert [policy.stream.num_chunks for policy in planned.policies] == [7, 4, 4]  # the memory is that of all of them


def test_the_first_layers():
    planned = plan(layers=2)
    assert planned.source.config.num_layers == planned.geometry.num_layers == 2
    assert planned.head_map.num_layers == 2
    assert planned.head_map.roles == find_model("self-forcing-1.3b").head_map.roles[:2]
    assert plan(layers=30).head_map == find_model("self-forcing-1.3b").head_map


def test_a_quantised_cache_needs_less_and_moves_less():
    plain, quantised = plan(), plan(options=StreamOptions(kv_dtype="int8"))
    for ours, theirs in zip(quantised.policies, plain.policies, strict=True):
        assert ours.steady == theirs.steady
        assert ours.stream.need().cache_bytes < 0.62 * theirs.stream.need().cache_bytes
        less, more = (each.pass_work(ours.steady.history_tokens) for each in (quantised, plain))
        history_bytes = 2 * ours.steady.history_tokens * 128
        assert less.bytes < more.bytes - (2 - 1 - 2 / 128) * history_bytes
        assert less.flops == more.flops


def test_steps_that_are_left_out_are_known_with_the_weights():
    """The embedded model's noise levels are far apart: under a high threshold only the first runs."""
    pipeline = VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32")
    for threshold, passes in ((0.0, 5), (1e6, 2)):
        planned = plan("tiny", random_weights=False, options=StreamOptions(step_cache=threshold))
        assert planned.steps_skipped is None
        settled = planned.with_steps_of(pipeline)
        assert (settled.steps_skipped, settled.chunk_passes) == (5 - passes, passes)
        least = settled.least_chunk_ms(1000, Ceilings(matmul_flops_per_second=1e12, copy_bytes_per_second=1e30))
        assert least == pytest.approx(passes * settled.pass_work(1000).flops / 1e9)


@pytest.mark.parametrize(
    ("settings", "decodes", "reason"),
    [
        ({"device": "cpu"}, False, "left out on a CPU"),
        ({"device": "meta"}, True, None),
        ({"device": "meta", "layers": 2}, False, "some of the layers"),
        ({"device": "meta", "model": "tiny"}, False, "this model does not use"),
        ({"random_weights": False}, True, None),
    ],
)
def test_when_there_are_pixels(settings, decodes, reason):
    planned = plan(**settings)
    assert planned.decodes == decodes
    left_out = planned.left_out()
    assert ("fps_end_to_end" in left_out) == (reason is not None)
    assert reason is None or reason in left_out["fps_end_to_end"]
    assert ("text_ms" in left_out) == (decodes and settings.get("random_weights", True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "repeats=0 measures nothing; use at least 1"),
        ({"layers": 31}, "layers=31: self-forcing-1.3b has 30 layers; use 1 to that many"),
        ({"layers": 0}, "layers=0: self-forcing-1.3b has 30 layers"),
        ({"layers": 2, "random_weights": False}, "add --random-weights"),
        ({"policies": ["full", "nonsense"]}, "unknown policy 'nonsense'; choose one of: "),
        ({"policies": ["window:window_frames=4"]}, "window_frames=4 cannot hold sink_frames=3"),
        ({"policies": ["forcing-kv:segments_per_frame=7"]}, "segments_per_frame=7 does not divide"),
        ({"model": "causal-forcing-1.3b-framewise"}, "policy 'forcing-kv' needs a head map"),
        ({"head_map": HeadMap(model="other", roles=("sd",))}, "1 layers x 2 heads, the model has 30 x 12"),
        ({"resolution": (100, 64)}, "multiples of 16; nearest: 96x64"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"prompt": " "}, "prompt is empty"),
        ({"options": StreamOptions(step_cache=0.2)}, "step_cache=0.2 says nothing with random weights"),
    ],
)
def test_what_cannot_work(settings, message):
    with pytest.raises(ForcingKVError, match=re.escape(message)):
        plan(**settings)


def test_what_the_device_cannot_hold_is_refused_without_naming_other_policies():
    with pytest.raises(MemoryLimitError) as refusal:
        plan(resolution=(7680, 7680), num_frames=1000).check_memory()
    assert "with policy full needs" in str(refusal.value)
    assert "--policy" not in str(refusal.value)
    plan(layers=1, resolution=(96, 16)).check_memory()


def test_errors_are_configuration_errors():
    with pytest.raises(ConfigurationError):
        plan(repeats=-1)
