"""Streams: independent of each other, steerable, and resumable bit for bit."""

from itertools import islice

import pytest
import torch

from forcing_kv import (
    ConfigurationError,
    PromptError,
    ScheduledPrompt,
    SnapshotError,
    StreamSnapshot,
    VideoPipeline,
)
from forcing_kv.cache import POSITIONS
from forcing_kv.prompt_schedule import prompt_schedule
from forcing_kv.stream_options import StreamOptions

RED = "a red circle moves right"
BLUE = "a blue square moves left"
RELATIVE = StreamOptions(positions="relative")
POLICIES = [
    "forcing-kv",
    "full",
    "window:window_frames=9",
    "forcing-kv:sink_frames=0,similarity_pruning=false",
    "forcing-kv:roles=shuffled,segments=random",
    "dummy-forcing",
]


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, dtype="float32")


def latents(stream, num_chunks=None):
    return torch.cat([chunk.latents for chunk in islice(stream, num_chunks)], dim=1)


def start(pipeline, prompt=RED, **settings):
    return pipeline.stream(prompt, **({"resolution": (48, 32), "decode": False} | settings))


@pytest.mark.parametrize("policy", POLICIES)
def test_interleaved_streams_are_separate_runs(pipeline, policy):
    settings = [
        {"prompt": RED, "seed": 1, "policy": policy},
        {"prompt": BLUE, "seed": 2, "policy": policy, "resolution": (64, 48)},
    ]
    apart = [latents(start(pipeline, **each), 5) for each in settings]
    streams = [start(pipeline, **each) for each in settings]
    together = [[next(stream).latents for stream in streams] for _ in range(5)]
    for number, expected in enumerate(apart):
        assert torch.equal(torch.cat([turn[number] for turn in together], dim=1), expected)


def test_the_seed_decides(pipeline):
    first, again, other = (latents(start(pipeline, seed=seed), 3) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_a_batch_is_its_videos_apart(pipeline):
    together = latents(start(pipeline, prompt=[RED, BLUE], seed=3), 5)
    apart = [latents(start(pipeline, prompt=prompt, seed=3 + item), 5) for item, prompt in enumerate((RED, BLUE))]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_agree_until_they_forget(pipeline, policy):
    """The first chunk reads no history, so that every policy makes the same one from the same noise."""
    chunks = [next(start(pipeline, policy=each)).latents for each in (policy, "full")]
    torch.testing.assert_close(*chunks)


@pytest.mark.parametrize(
    ("policy", "num_alike"),
    [("full", 7), ("window:window_frames=6,sink_frames=0", 7), ("window:window_frames=12,sink_frames=3", 4)],
)
def test_relative_positions_are_absolute_ones_until_the_sink_is_drawn_near(pipeline, policy, num_alike):
    streams = [
        start(pipeline, policy=policy, options=StreamOptions(positions=positions), num_frames=81)
        for positions in POSITIONS
    ]
    alike = [torch.allclose(a.latents, b.latents, atol=1e-4) for a, b in zip(*streams, strict=True)]
    assert alike == [index < num_alike for index in range(7)]


@pytest.mark.parametrize("policy", ["forcing-kv", "window:window_frames=9"])
@pytest.mark.parametrize("keep_sink", [False, True])
def test_a_restored_stream_with_relative_positions_goes_on_bit_for_bit(pipeline, policy, keep_sink):
    schedule = [ScheduledPrompt(text=RED), ScheduledPrompt(at_seconds=3.0, text=BLUE)]

    def fresh(positions="relative"):
        return start(
            pipeline, prompt=schedule, policy=policy, options=StreamOptions(positions=positions), keep_sink=keep_sink
        )

    stream, other = fresh(), fresh()
    assert all(chunk.first_frame == 3 * chunk.index for chunk in islice(stream, 4))
    snapshot = stream.snapshot()
    other.restore(snapshot)
    expected = latents(stream, 6)  # the prompt changes within
    assert torch.equal(latents(other, 6), expected)
    assert stream.cache.num_frames == 30
    assert stream.cache.first_position == other.cache.first_position < 9
    assert not torch.allclose(expected, latents(fresh("absolute"), 10)[:, 12:], atol=1e-3)
    with pytest.raises(SnapshotError, match="was made with positions='relative', this stream has 'absolute'"):
        fresh("absolute").restore(snapshot)


@pytest.mark.parametrize("through_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_restored_stream_goes_on_bit_for_bit(pipeline, tmp_path, through_file, after):
    schedule = [ScheduledPrompt(text=RED), ScheduledPrompt(at_seconds=3.0, text=BLUE)]

    def fresh():
        return start(pipeline, prompt=schedule, seed=5, decode=True)

    stream = fresh()
    for _ in range(after):
        next(stream)
    snapshot = stream.snapshot()
    expected = list(islice(stream, 4))
    if through_file:
        snapshot.save(tmp_path / "snapshot.safetensors")
        snapshot = StreamSnapshot.load(tmp_path / "snapshot.safetensors")
    other = fresh()
    next(other)
    for target in (stream, other):  # rewound, and resumed elsewhere
        target.restore(snapshot)
        for chunk, wanted in zip(islice(target, 4), expected, strict=True):
            assert (chunk.index, chunk.first_frame, chunk.prompts) == (wanted.index, wanted.first_frame, wanted.prompts)
            assert torch.equal(chunk.latents, wanted.latents)
            assert torch.equal(chunk.frames, wanted.frames)


def test_a_fork_leaves_the_original_alone(pipeline):
    stream, fork = start(pipeline), start(pipeline)
    expected = latents(start(pipeline), 6)
    first = latents(stream, 3)
    fork.restore(stream.snapshot())
    fork.switch_prompt(BLUE)
    forked = latents(fork, 3)
    assert torch.equal(torch.cat((first, latents(stream, 3)), dim=1), expected)
    assert not torch.allclose(forked, expected[:, 9:], atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"policy": "full"}, "policy"),
        ({"resolution": (96, 32)}, "geometry"),
        ({"decode": True}, "decodes"),
    ],
)
def test_a_snapshot_of_another_stream_is_refused(pipeline, changes, name):
    with pytest.raises(SnapshotError, match=f"was made with {name}="):
        start(pipeline).restore(start(pipeline, **changes).snapshot())


def test_a_broken_snapshot_file_is_refused(tmp_path):
    path = tmp_path / "snapshot.safetensors"
    with pytest.raises(SnapshotError, match="cannot read snapshot"):
        StreamSnapshot.load(path)
    path.write_bytes(b"not a snapshot")
    with pytest.raises(SnapshotError, match="cannot read snapshot"):
        StreamSnapshot.load(path)


@pytest.mark.parametrize("at_seconds", [9 / 16, 9 / 16 - 0.01, 0.1])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_scheduled_switch_is_a_live_switch(pipeline, at_seconds, policy):
    """It takes effect at the first chunk that starts at or after its time: chunk 1 starts at 9/16 s."""
    schedule = [ScheduledPrompt(text=RED), ScheduledPrompt(at_seconds=at_seconds, text=BLUE)]
    scheduled = start(pipeline, prompt=schedule, policy=policy)
    live = start(pipeline, policy=policy)
    expected = [next(live).latents]
    live.switch_prompt(BLUE)
    expected += [chunk.latents for chunk in islice(live, 3)]
    chunks = list(islice(scheduled, 4))
    assert [chunk.prompts[0] for chunk in chunks] == [RED, BLUE, BLUE, BLUE]
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks], dim=1), torch.cat(expected, dim=1))


def test_a_switch_changes_what_is_remembered(pipeline):
    """After a re-cache the history speaks of the new prompt, so that even the same noise gives another chunk."""
    kept, switched = (start(pipeline, recache_frames=6) for _ in range(2))
    for stream in (kept, switched):
        for _ in range(4):
            next(stream)
    switched.switch_prompt(BLUE)
    assert not torch.allclose(next(kept).latents, next(switched).latents, atol=1e-3)
    assert switched.cache.grouped


def test_a_switch_before_the_first_chunk_is_the_first_prompt(pipeline):
    stream = start(pipeline, prompt=RED)
    stream.switch_prompt(BLUE)
    assert torch.equal(latents(stream, 2), latents(start(pipeline, prompt=BLUE), 2))


def test_keeping_the_sink_is_another_stream(pipeline):
    schedule = [ScheduledPrompt(text=RED), ScheduledPrompt(at_seconds=1.5, text=BLUE)]
    dropped, kept = (latents(start(pipeline, prompt=schedule, keep_sink=keep), 4) for keep in (False, True))
    assert torch.equal(dropped[:, :9], kept[:, :9])
    assert not torch.allclose(dropped[:, 9:], kept[:, 9:], atol=1e-4)


def test_streams_end_where_they_are_told_and_else_never(pipeline):
    assert [chunk.first_frame for chunk in start(pipeline, num_frames=22)] == [0, 3, 6]  # 9 + 12 + 12 pixel frames
    endless = start(pipeline, policy="forcing-kv")
    held = {(next(endless).index, endless.cache.nbytes) for _ in range(30)}
    assert len(held) == 30
    assert len({nbytes for _, nbytes in held}) == 1
    assert endless.cache.nbytes < endless.cache.full_nbytes / 4


def test_pixel_frames_are_counted_right(pipeline):
    chunks = list(start(pipeline, num_frames=10, decode=True))
    assert [tuple(chunk.frames.shape) for chunk in chunks] == [(1, 9, 32, 48, 3), (1, 12, 32, 48, 3)]
    video = pipeline.generate(RED, num_frames=10, resolution=(48, 32))
    assert torch.equal(video, torch.cat([chunk.frames for chunk in chunks], dim=1))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prompt": " "}, PromptError, "prompt is empty"),
        ({"prompt": [RED, ""]}, PromptError, "prompt is empty"),
        ({"prompt": []}, PromptError, "must begin with a prompt at 0 seconds"),
        ({"prompt": [RED, BLUE], "num_videos": 3}, PromptError, "2 prompts for 3 videos"),
        ({"num_frames": 0}, ConfigurationError, "num_frames=0 must be at least 1"),
        ({"resolution": (50, 32)}, ConfigurationError, "multiples of 16; nearest: 48x32"),
        ({"num_videos": 0}, ConfigurationError, "num_videos=0"),
        ({"recache_frames": 0}, ConfigurationError, "recache_frames=0 keeps nothing"),
        ({"policy": "forcing-kv:segments_per_frame=5"}, ConfigurationError, "does not divide the 6 tokens"),
        (
            {"options": RELATIVE, "policy": "window:window_frames=30"},
            ConfigurationError,
            "reads 30 latent frames .* trained at 21; let it keep fewer, or use --positions absolute",
        ),
        ({"options": RELATIVE, "policy": "full"}, ConfigurationError, "cannot hold an endless stream"),
        (
            {"options": RELATIVE, "policy": "full", "num_frames": 82},
            ConfigurationError,
            "cannot hold a stream of 24 latent frames",
        ),
        ({"options": RELATIVE, "recache_frames": 30}, ConfigurationError, "recache_frames=30 .* at most 21"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(pipeline, settings, error, message):
    with pytest.raises(error, match=message):
        start(pipeline, **settings)


def test_schedules_are_checked():
    with pytest.raises(PromptError, match="begin with a prompt at 0 seconds"):
        prompt_schedule([ScheduledPrompt(at_seconds=1, text=RED)])
    with pytest.raises(PromptError, match="same time"):
        prompt_schedule([ScheduledPrompt(text=RED), ScheduledPrompt(text=BLUE)])
    with pytest.raises(PromptError, match="cannot begin at -1"):
        ScheduledPrompt(at_seconds=-1, text=RED)
