"""Compiled pieces: the same videos, and few graphs. Compiling takes a while, so there is one model for all of it."""

import shutil

import pytest
import torch

from forcing_kv import VideoPipeline
from forcing_kv.stream_options import StreamOptions

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, and there is none")
SETTINGS = {"resolution": (48, 32), "decode": False, "policy": "forcing-kv:warmup_chunks=1"}


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, dtype="float32", device="cpu")


def test_a_compiled_stream_is_the_eager_one(pipeline):
    """Growing and steady history, a change of prompt with its re-cache, a step cache."""

    def start(execution, **chosen):
        options = StreamOptions(execution=execution, **chosen)
        return pipeline.stream("a red circle", num_frames=33, options=options, **SETTINGS)

    eager, compiled = start("eager"), start("compile")
    compile_ms = []
    for number in range(3):
        expected, chunk = next(eager), next(compiled)
        torch.testing.assert_close(chunk.latents, expected.latents, rtol=1e-3, atol=1e-3)
        compile_ms.append(chunk.timings.compile_ms)
        assert chunk.timings.diffusion_ms > 0
        assert expected.timings.compile_ms == 0
        if number == 1:
            eager.switch_prompt("a blue square")
            compiled.switch_prompt("a blue square")
    assert compile_ms[0] > 0
    assert compile_ms[1:] == [0, 0]  # whatever the history
    assert pipeline._compiled.num_graphs == 2  # two pieces for all blocks, and nothing broke them into more

    again = next(start("compile", step_cache=1e9))
    assert again.timings.compile_ms == 0
    torch.testing.assert_close(again.latents, next(start("eager", step_cache=1e9)).latents, rtol=1e-3, atol=1e-3)
    assert pipeline._compiled.num_graphs == 2


def test_blocks_in_fp8_are_compiled_beside_the_others(tiny_model_folder):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder, dtype="float32", device="cpu", precision="fp8")
    settings = SETTINGS | {"num_frames": 9}
    expected, latents = (
        next(pipeline.stream("a red circle", options=StreamOptions(execution=execution), **settings)).latents
        for execution in ("eager", "compile")
    )
    # A number that is rounded the other way is off by a sixteenth.
    assert float((latents - expected).norm() / expected.norm()) < 2e-2
    assert pipeline._compiled.num_graphs == 4
