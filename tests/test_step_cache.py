"""TeaCache: which steps leave the blocks out, and what they give then."""

from itertools import islice, pairwise

import pytest
import torch

from forcing_kv import ConfigurationError, SnapshotError, VideoPipeline
from forcing_kv.step_cache import POLYNOMIAL, StepCache, modulation_changes, skipped_steps
from forcing_kv.stream_options import StreamOptions
from small_transformer import Dense, build

TIMESTEPS = (1000.0, 900.0, 500.0, 10.0)


class CountingBlocks:
    """How often a model's first block runs."""

    def __init__(self, model):
        self.count = 0
        model.blocks[0].register_forward_hook(self.add)

    def add(self, *_):
        self.count += 1


def arguments(model, batch_size=2):
    text = model.encode_text(torch.ones(batch_size, 6, 7, dtype=torch.float64))
    return {"text": text, "positions": model.token_positions(range(3), 2, 3), "memory": Dense()}


def noisy(number, batch_size=2):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(batch_size, 3, 5, 4, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "threshold", "expected"),
    [
        ([0.0, 0.0, 0.0], 0.3, (False, True, True, False)),  # the polynomial is 0.138 at 0: twice stays below 0.3
        ([0.0, 0.0, 0.0], 0.2, (False, True, False, True)),
        ([0.0, 0.0, 0.0], 0.0, (False, False, False, False)),
        ([0.5, 0.0], 0.2, (False, False, True)),  # a computed step begins a new sum
        ([], 9.0, (False,)),
    ],
)
def test_the_sum_of_changes_decides(changes, threshold, expected):
    assert skipped_steps(changes, threshold=threshold) == expected


def test_the_polynomial_has_its_highest_power_first():
    value = 0.1
    by_hand = (((POLYNOMIAL[0] * value + POLYNOMIAL[1]) * value + POLYNOMIAL[2]) * value + POLYNOMIAL[3]) * value
    by_hand += POLYNOMIAL[4]
    assert skipped_steps([value], threshold=by_hand * 1.0001) == (False, True)
    assert skipped_steps([value], threshold=by_hand * 0.9999) == (False, False)


@torch.no_grad()
def test_changes_are_those_of_the_modulation():
    model = build()
    changes = modulation_changes(model, TIMESTEPS)
    for at, (before, after) in enumerate(pairwise(TIMESTEPS)):
        e0, e1 = (model.embed_time(torch.full((1, 1), t, dtype=torch.float32))[1] for t in (before, after))
        assert changes[at] == pytest.approx(float((e1 - e0).abs().mean() / e0.abs().mean()))


def begin(model, number):
    """The pass of a step, before its blocks."""
    level = model.noise_level(TIMESTEPS[number])
    return model.begin(noisy(number), level.timesteps, arguments(model)["positions"], level.modulation)


@torch.no_grad()
def test_a_step_that_is_left_out_adds_the_newest_residual():
    model = build()
    blocks = CountingBlocks(model)
    cached = StepCache(model, TIMESTEPS, threshold=1e9)
    assert cached.skipped == (False, True, True, True)
    first = cached(noisy(0), TIMESTEPS[0], **arguments(model))
    torch.testing.assert_close(first, model.at_level(noisy(0), TIMESTEPS[0], **arguments(model)), rtol=0, atol=0)
    begun = begin(model, 0)
    residual = model.run_blocks(begun, **arguments(model)) - begun.x
    count = blocks.count
    for number, timestep in enumerate(TIMESTEPS[1:], start=1):
        out = cached(noisy(number), timestep, **arguments(model))
        begun = begin(model, number)
        torch.testing.assert_close(out, model.finish(begun, begun.x + residual), rtol=0, atol=0)
    assert blocks.count == count


@torch.no_grad()
def test_nothing_is_left_out_at_0():
    model = build()
    cached = StepCache(model, TIMESTEPS, threshold=0)
    for number, timestep in enumerate(TIMESTEPS):
        out = cached(noisy(number), timestep, **arguments(model))
        assert torch.equal(out, model.at_level(noisy(number), timestep, **arguments(model)))


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_bad_thresholds(threshold):
    with pytest.raises(ConfigurationError, match="must be at least 0"):
        StepCache(build(), TIMESTEPS, threshold=threshold)


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder)


def start(pipeline, **settings):
    return pipeline.stream("a red circle", **({"resolution": (48, 32), "decode": False} | settings))


@pytest.mark.parametrize("policy", ["full", "forcing-kv", "window:window_frames=9", "dummy-forcing"])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_with_any_policy_the_commit_pass_is_always_made(pipeline, policy, kv_dtype):
    blocks = CountingBlocks(pipeline.transformer)
    stream = start(pipeline, policy=policy, options=StreamOptions(kv_dtype=kv_dtype, step_cache=1e9))
    for number in range(1, 5):
        assert next(stream).latents.isfinite().all()
        assert blocks.count == 2 * number  # the first step and the commit pass
    assert stream.steps_skipped == len(pipeline.preset.sampler.steps) - 1


def test_streams_have_their_own(pipeline):
    settings = [{"seed": seed, "options": StreamOptions(step_cache=1e9)} for seed in (1, 2)]
    apart = [torch.cat([chunk.latents for chunk in islice(start(pipeline, **each), 3)]) for each in settings]
    streams = [start(pipeline, **each) for each in settings]
    together = [[next(stream).latents for stream in streams] for _ in range(3)]
    for number, expected in enumerate(apart):
        assert torch.equal(torch.cat([turn[number] for turn in together]), expected)


def test_a_snapshot_of_a_stream_without_it_is_refused(pipeline):
    plain, cached = start(pipeline), start(pipeline, options=StreamOptions(step_cache=0.2))
    next(plain)
    with pytest.raises(SnapshotError, match="step_cache"):
        cached.restore(plain.snapshot())
