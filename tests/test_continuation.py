"""Going on from given latents is going on from what was made: the same cache, the same video, bit for bit."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from forcing_kv import ConfigurationError, ScheduledPrompt, SnapshotError, VideoPipeline
from forcing_kv.continuation import given_latents
from forcing_kv.video import StreamingVaeDecoder

RED = "a red circle moves right"
BLUE = "a blue square moves left"
POLICIES = [
    "forcing-kv",
    "full",
    "window:window_frames=9",
    "forcing-kv:sink_frames=0,similarity_pruning=false",
    "forcing-kv:warmup_chunks=3,sink_frames=2,segments_per_frame=2",
]
SMALL = {"resolution": (48, 32), "decode": False}


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module", params=[1, 2, 5])
def odd_pipeline(request, tiny_model_folder):
    """The same model with another chunk size."""
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    pipeline.preset = replace(pipeline.preset, chunk_frames=request.param)
    return pipeline


def assert_same_state(stream, expected):
    """Everything a snapshot holds, but that one of the streams was given its beginning."""
    state, wanted = stream.snapshot(), expected.snapshot()
    assert state.progress == wanted.progress
    assert state.tensors.keys() == wanted.tensors.keys()
    for name, tensor in state.tensors.items():
        assert torch.equal(tensor, wanted.tensors[name]), name


def check_continuation(pipeline, prompt=RED, *, num_given, num_chunks=8, **settings):
    """Runs to `num_chunks`, then again from the latents of the first `num_given` chunks, and compares all of it."""
    settings = SMALL | settings
    stream = pipeline.stream(prompt, **settings)
    made = list(islice(stream, num_given))
    latents = torch.cat([chunk.latents for chunk in made], dim=1)
    continued = pipeline.stream(prompt, continue_from=latents, **settings)
    for chunk, wanted in zip(islice(continued, num_given), made, strict=True):
        assert chunk.given
        assert (chunk.index, chunk.first_frame, chunk.prompts) == (wanted.index, wanted.first_frame, wanted.prompts)
        assert torch.equal(chunk.latents, wanted.latents)
    assert_same_state(continued, stream)
    for _ in range(num_chunks - num_given):
        chunk, wanted = next(continued), next(stream)
        assert not chunk.given
        assert (chunk.index, chunk.first_frame, chunk.prompts) == (wanted.index, wanted.first_frame, wanted.prompts)
        assert torch.equal(chunk.latents, wanted.latents)
    assert_same_state(continued, stream)
    return continued


@pytest.mark.parametrize("num_given", [1, 2, 5])
@pytest.mark.parametrize("policy", POLICIES)
def test_going_on_is_the_longer_run(pipeline, policy, num_given):
    stream = check_continuation(pipeline, policy=policy, num_given=num_given, seed=3)
    selects = policy.startswith("forcing-kv") and "similarity_pruning=false" not in policy
    assert (stream.cache.last_selection is not None) == selects


@pytest.mark.parametrize("num_given", [1, 4])
def test_in_odd_chunks_and_batches(odd_pipeline, num_given):
    dynamic = min(2, odd_pipeline.preset.chunk_frames)
    policy = f"forcing-kv:dynamic_recent_frames={dynamic},warmup_chunks=3"
    prompts = [RED, BLUE]
    stream = check_continuation(odd_pipeline, prompts, policy=policy, num_given=num_given, resolution=(32, 48))
    assert stream.cache.last_selection.segments.shape[0] == 2


@pytest.mark.parametrize("keep_sink", [False, True])
@pytest.mark.parametrize("at_chunk", [1, 3, 4, 5], ids=["early", "inside", "at the joint", "behind it"])
def test_prompts_switch_where_they_would(pipeline, at_chunk, keep_sink):
    at_seconds = (12 * at_chunk - 3) / 16
    schedule = [ScheduledPrompt(text=RED), ScheduledPrompt(at_seconds=at_seconds, text=BLUE)]
    stream = check_continuation(pipeline, schedule, num_given=4, keep_sink=keep_sink, recache_frames=5)
    assert stream.prompts == (BLUE,)


def test_other_words_and_seeds_go_on_differently(pipeline):
    stream = pipeline.stream(RED, seed=1, **SMALL)
    latents = torch.cat([chunk.latents for chunk in islice(stream, 3)], dim=1)
    expected = next(stream).latents
    for prompt, seed in ((RED, 2), (BLUE, 1)):
        chunks = list(islice(pipeline.stream(prompt, seed=seed, continue_from=latents, **SMALL), 4))
        assert torch.equal(torch.cat([chunk.latents for chunk in chunks[:3]], dim=1), latents)
        assert not torch.allclose(chunks[3].latents, expected, atol=1e-3)


def test_frames_are_the_decode_of_all_latents(pipeline):
    latents = torch.randn(6, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    chunks = list(pipeline.stream(RED, num_frames=13, continue_from=latents))
    assert [(chunk.given, chunk.frames.shape[1]) for chunk in chunks] == [
        (True, 9),
        (True, 12),
        (False, 12),
        (False, 12),
    ]
    made = torch.cat([chunk.latents for chunk in chunks], dim=1)
    assert torch.equal(made[0, :6], latents)
    frames = torch.cat([chunk.frames for chunk in chunks], dim=1)
    assert frames.shape[2:4] == (32, 48)  # the size comes from the latents
    assert torch.equal(frames, StreamingVaeDecoder(pipeline.vae).decode(made))
    assert torch.equal(frames, pipeline.generate(RED, num_frames=13, continue_from=latents))


@pytest.mark.parametrize(("num_frames", "num_new_chunks"), [(1, 1), (12, 1), (13, 2), (24, 2), (25, 3)])
def test_frames_that_are_asked_for_are_new_ones(pipeline, num_frames, num_new_chunks):
    stream = pipeline.stream(RED, num_frames=num_frames, continue_from=torch.zeros(3, 16, 4, 6), decode=False)
    assert [chunk.given for chunk in stream] == [True] + [False] * num_new_chunks


def test_one_beginning_serves_a_batch_or_each_has_its_own(pipeline):
    latents = torch.randn(2, 3, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    for given in (latents[0], latents[:1], latents):
        chunks = list(islice(pipeline.stream([RED, BLUE], continue_from=given, **SMALL), 2))
        assert torch.equal(chunks[0].latents, latents if given is latents else latents[:1].expand_as(latents))
        assert not torch.allclose(chunks[1].latents[0], chunks[1].latents[1], atol=1e-3)


def test_latents_behind_the_last_whole_chunk_are_made_anew(pipeline):
    latents = torch.randn(8, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    stream = pipeline.stream(RED, continue_from=latents, num_frames=12, decode=False)
    assert stream.given_frames == 6
    assert torch.equal(
        torch.cat([chunk.latents for chunk in stream]),
        torch.cat([chunk.latents for chunk in pipeline.stream(RED, continue_from=latents[:6], num_frames=12)]),
    )


@pytest.mark.parametrize("after", [1, 3])
def test_a_snapshot_is_gone_on_from_inside_and_behind_the_given_part(pipeline, after):
    latents = torch.randn(6, 16, 4, 6, generator=torch.Generator().manual_seed(0))

    def fresh():
        return pipeline.stream(RED, continue_from=latents)

    stream, other = fresh(), fresh()
    for _ in range(after):
        next(stream)
    other.restore(stream.snapshot())
    for chunk, wanted in zip(islice(other, 3), islice(stream, 3), strict=True):
        assert (chunk.given, chunk.index) == (wanted.given, wanted.index)
        assert torch.equal(chunk.latents, wanted.latents)
        assert torch.equal(chunk.frames, wanted.frames)
    with pytest.raises(SnapshotError, match="was made with given_frames=6, this stream has 0"):
        pipeline.stream(RED, resolution=(48, 32)).restore(stream.snapshot())


FITTING = torch.zeros(6, 16, 4, 6)


@pytest.mark.parametrize(
    ("latents", "settings", "message"),
    [
        (torch.zeros(16, 4, 6), {}, r"shape \(16, 4, 6\) .* give floats of \[frames, 16, height, width\]"),
        (torch.zeros(3, 16, 4, 6, dtype=torch.int32), {}, "torch.int32 cannot be continued"),
        (torch.zeros(3, 12, 4, 6), {}, "of 12 channels do not fit this model, whose latents have 16"),
        (torch.zeros(3, 16, 4, 7), {}, "resolution 56x32: .* multiples of 16; nearest: 64x32"),
        (FITTING, {"resolution": (64, 32)}, "of 48x32 pixels cannot be continued at 64x32: ask for 48x32"),
        (torch.zeros(2, 16, 4, 6), {}, "2 latent frames are too few to be continued: a chunk of 3 is the least"),
        (
            torch.zeros(2, 3, 16, 4, 6),
            {"num_videos": 3},
            "of 2 videos cannot be continued by 3 videos: give one for all",
        ),
        (FITTING.index_fill(0, torch.tensor(5), float("nan")), {}, "not all finite"),
        (FITTING.index_fill(0, torch.tensor(0), float("inf")), {}, "not all finite"),
        (FITTING, {"num_frames": 0}, "num_frames=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(pipeline, latents, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        pipeline.stream(RED, continue_from=latents, **settings)


def test_half_precision_is_taken_and_what_is_left_out_may_be_anything():
    latents = FITTING.bfloat16().index_fill(0, torch.tensor(5), float("nan"))
    given = given_latents(latents, batch_size=2, chunk_frames=5, num_channels=16)
    assert (given.shape, given.dtype) == ((2, 5, 16, 4, 6), torch.float32)
