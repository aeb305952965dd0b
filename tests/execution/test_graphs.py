"""Replayed passes. Without a GPU a stand-in notes the work and does it again, at the addresses it was noted with."""

import pytest
import torch

from forcing_kv import VideoPipeline
from forcing_kv.execution import GraphedPasses, PlainPasses
from forcing_kv.policies import POLICIES
from forcing_kv.stream_options import StreamOptions

SETTINGS = {"resolution": (48, 32), "decode": False}
NUM_PASSES = 5  # of a chunk
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, dtype="float32", device="cpu")


def recorded(work, device):
    """What a CUDA graph does: nothing now, and later the same on the same memory."""
    result = work().clone()
    return lambda: result.copy_(work()), result


def graphed(pipeline, policy, **settings):
    """A stream whose passes are replayed, and what runs them."""
    stream = pipeline.stream("a red circle", policy=policy, **(SETTINGS | settings))
    stream._run_pass = passes = GraphedPasses(PlainPasses(pipeline.transformer), capture=recorded)
    stream._denoise = passes
    return stream, passes


@pytest.mark.parametrize("policy", [*POLICIES, "forcing-kv:warmup_chunks=1"])
@pytest.mark.parametrize("chosen", [{}, {"kv_dtype": "int8"}, {"positions": "relative"}], ids=str)
def test_a_replayed_stream_is_the_eager_one(pipeline, policy, chosen):
    settings = {"options": StreamOptions(**chosen)}
    length = {"num_frames": 81} if policy == "full" else {}
    eager = pipeline.stream("a red circle", policy=policy, **(SETTINGS | settings | length))
    stream, passes = graphed(pipeline, policy, **settings, **length)
    captures = []
    for number in range(6):
        assert torch.equal(next(stream).latents, next(eager).latents)
        captures.append(passes.num_captures)
        if number == 3:
            stream.switch_prompt("a blue square")
            eager.switch_prompt("a blue square")
    assert captures[0] == 1  # the first pass of a chunk, then one capture for the others, the commit among them
    assert captures[-1] <= 6


def test_the_steady_state_has_one_graph(pipeline):
    stream, passes = graphed(pipeline, "window:window_frames=9")
    for _ in range(3):
        next(stream)  # 9 frames, of which 6 are history: full
    assert passes.num_captures == 3
    for _ in range(3):
        assert next(stream).timings.compile_ms == 0
    assert passes.num_captures == 3


def test_another_prompt_shape_or_place_is_another_graph(pipeline):
    stream, passes = graphed(pipeline, "window:window_frames=6")
    for _ in range(4):
        next(stream)
    steady = passes.num_captures
    next(stream)
    assert passes.num_captures == steady
    snapshot = stream.snapshot()
    next(stream)
    stream.restore(snapshot)  # a cache somewhere else
    next(stream)
    assert passes.num_captures == steady + 1


def test_passes_that_are_looked_at_are_not_replayed(pipeline):
    stream, passes = graphed(pipeline, "full", num_frames=33)
    seen = []

    class Observer:
        def observe(self, read):
            seen.append(read.layer)

    with stream.cache.observed_by(Observer()):
        next(stream)
    assert passes.num_captures == 0
    assert len(seen) == NUM_PASSES * pipeline.transformer.config.num_layers
    next(stream)
    assert passes.num_captures == 1


@needs_cuda
@pytest.mark.parametrize("execution", ["cuda-graphs", "compile+cuda-graphs"])
@pytest.mark.parametrize("policy", POLICIES)
def test_cuda_graphs_give_the_eager_stream(tiny_model_folder, execution, policy):
    on_gpu = VideoPipeline.from_pretrained(tiny_model_folder, dtype="bfloat16", device="cuda")
    length = {"num_frames": 81} if policy == "full" else {}
    eager, replayed = (
        on_gpu.stream("a red circle", policy=policy, options=StreamOptions(execution=name), **(SETTINGS | length))
        for name in ("eager", execution)
    )
    for number in range(6):
        expected, chunk = next(eager).latents, next(replayed).latents
        tolerance = 0 if execution == "cuda-graphs" else 5e-2
        assert float((chunk - expected).norm() / expected.norm()) <= tolerance, number
    assert replayed._run_pass.num_captures
