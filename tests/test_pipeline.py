"""Sizes of every shape, batches, and lengths that are no whole chunks."""

import pytest
import torch

from forcing_kv import ConfigurationError, VideoPipeline
from forcing_kv.resolution import NAMED_RESOLUTIONS


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, dtype="float32")


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("width", "height", "segments"), [(64, 96, 6), (112, 64, 7), (48, 80, 5), (80, 48, 3), (16, 16, 1), (176, 16, 11)]
)
def test_any_multiple_of_16(pipeline, width, height, segments, batch_size):
    policy = f"forcing-kv:segments_per_frame={segments}"
    prompts = ["a red circle", "a blue square"][:batch_size]
    frames = pipeline.generate(prompts, num_frames=40, resolution=(width, height), policy=policy, seed=1)
    assert frames.shape == (batch_size, 45, height, width, 3)
    alone = pipeline.generate(prompts[:1], num_frames=40, resolution=(width, height), policy=policy, seed=1)
    assert (frames[:1].int() - alone.int()).abs().max() <= 1


def test_segments_that_do_not_divide_are_refused_with_those_that_would(pipeline):
    message = r"segments_per_frame=6 does not divide the 15 tokens of a frame \(5 x 3\); use one of \[1, 3, 5, 15\]"
    with pytest.raises(ConfigurationError, match=message):
        pipeline.stream("a red circle", resolution=(48, 80))


@pytest.mark.parametrize(("size", "nearest"), [((100, 64), "96x64"), ((96, 60), "96x64"), ((8, 8), "16x16")])
def test_other_sizes_name_the_nearest(pipeline, size, nearest):
    with pytest.raises(ConfigurationError, match=f"must be multiples of 16; nearest: {nearest}"):
        pipeline.stream("a red circle", resolution=size)


@pytest.mark.parametrize("name", NAMED_RESOLUTIONS)
def test_named_sizes_fit_the_default_segments(pipeline, name):
    width, height = NAMED_RESOLUTIONS[name]
    geometry = pipeline.geometry((width, height))
    pipeline.policy().check(geometry)
    assert geometry.frame_tokens == {"480p": 1560, "720p": 3600, "1080p": 8160}[name.partition("-")[0]]


@pytest.mark.parametrize(("num_frames", "made"), [(1, 9), (9, 9), (10, 21), (21, 21), (22, 33)])
def test_lengths_are_rounded_up_to_whole_chunks(pipeline, num_frames, made):
    chunks = list(pipeline.stream("a red circle", num_frames=num_frames, resolution=(48, 32), decode=True))
    assert sum(chunk.frames.shape[1] for chunk in chunks) == made


def test_a_frame_wise_model(tiny_model_folder):
    """Chunks of one latent frame, as causal-forcing-1.3b-framewise has them."""
    from dataclasses import replace

    from forcing_kv.models import find_model

    source = find_model(tiny_model_folder)
    source = replace(source, preset=replace(source.preset, chunk_frames=1))
    pipeline = VideoPipeline.from_source(source, dtype="float32")
    chunks = list(pipeline.stream("a red circle", num_frames=14))
    assert [chunk.frames.shape[1] for chunk in chunks] == [1, 4, 4, 4, 4]
    whole = pipeline.generate("a red circle", num_frames=17)
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks], dim=1), whole)
