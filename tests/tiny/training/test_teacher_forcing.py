"""Layouts: who reads what, that attention over them is masked attention, and that it is what a rollout computes."""

import pytest
import torch

from forcing_kv import FrameGeometry, Full, StreamCache, Window
from forcing_kv.tiny.training.latents import (
    FAR_CHUNKS,
    KINDS,
    LONG_CHUNKS,
    MEMORY_CHUNKS,
    START_CHUNKS,
    SWITCHED_CHUNKS,
    ClipGroup,
)
from forcing_kv.tiny.training.teacher_forcing import (
    MIX,
    LayoutMemory,
    full_history,
    long_history,
    random_sample,
    sink_and_window,
)
from forcing_kv.tiny.world import Scene, Thing
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

FRAME_TOKENS = 6
CHUNK_TOKENS = 3 * FRAME_TOKENS
SCENE = Scene(things=(Thing(colour="red", shape="circle"),))


def mask_of(layout, frame_tokens=FRAME_TOKENS):
    """How often each token reads each other, as a dense matrix: 0 or 1."""
    tokens = len(layout.frames) * frame_tokens
    counts = torch.zeros(tokens, tokens)
    for read in layout.reads:
        for start, end in read.keys:
            counts[slice(*read.queries), start:end] += 1
    assert counts.max() == 1  # nothing is read twice
    return counts.bool()


def read_frames(layout, place):
    """Absolute frames that chunk `place` of the sequence reads whole, clean ones first."""
    frames = mask_of(layout)[place * CHUNK_TOKENS].view(-1, FRAME_TOKENS).all(dim=1)
    return [frame for frame, read in zip(layout.frames, frames.tolist(), strict=True) if read]


# Who reads what


def test_full_history_reads_everything_before_and_itself():
    layout = full_history(3, [0, 2, 3, 2], frame_tokens=FRAME_TOKENS)
    assert layout.clean == tuple(range(9))
    assert layout.noisy == (0, 1, 2, 6, 7, 8, 9, 10, 11, 6, 7, 8)
    assert read_frames(layout, 1) == list(range(6))  # clean chunk 1
    assert read_frames(layout, 3) == [0, 1, 2]  # noisy chunk 0: nothing but itself
    assert read_frames(layout, 4) == read_frames(layout, 6) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert read_frames(layout, 5) == list(range(12))
    # A noisy chunk reads neither its own clean frames nor its other copy.
    mask = mask_of(layout)
    assert not mask[4 * CHUNK_TOKENS, 2 * CHUNK_TOKENS : 3 * CHUNK_TOKENS].any()
    assert not mask[4 * CHUNK_TOKENS, 6 * CHUNK_TOKENS :].any()
    assert not mask[6 * CHUNK_TOKENS, 4 * CHUNK_TOKENS : 6 * CHUNK_TOKENS].any()


def test_what_is_before_the_first_chunk_is_forgotten():
    layout = full_history(2, [5, 6, 5], first_chunk=4, frame_tokens=FRAME_TOKENS)
    assert layout.clean == tuple(range(12, 18))
    assert layout.noisy == (15, 16, 17, 18, 19, 20, 15, 16, 17)
    assert read_frames(layout, 0) == [12, 13, 14]
    assert read_frames(layout, 2) == read_frames(layout, 4) == list(range(12, 18))
    assert read_frames(layout, 3) == list(range(12, 21))


def test_a_first_chunk_alone_reads_itself():
    layout = full_history(0, [0], frame_tokens=FRAME_TOKENS)
    assert (layout.clean, layout.noisy) == ((), (0, 1, 2))
    assert mask_of(layout).all()


@pytest.mark.parametrize("levels", [1, 2])
def test_window_reads_sink_recent_and_itself(levels):
    layout = sink_and_window(5, 2, sink_frames=1, recent_frames=1, frame_tokens=FRAME_TOKENS, levels_per_chunk=levels)
    assert layout.clean == (0, 1, 2, 15, 16, 17, 18, 19, 20)
    assert layout.noisy == (18, 19, 20, 21, 22, 23) * levels
    assert read_frames(layout, 0) == [0, 1, 2]
    assert read_frames(layout, 1) == [0, 15, 16, 17]  # nothing before it is in the window
    assert read_frames(layout, 2) == [0, 17, 18, 19, 20]
    for level in range(levels):
        assert read_frames(layout, 3 + 2 * level) == [0, 17, 18, 19, 20]  # noisy
        assert read_frames(layout, 4 + 2 * level) == [0, 20, 21, 22, 23]
    mask = mask_of(layout)
    for place in range(3, len(layout.frames) // 3):  # of the noisy chunks, each reads itself only
        own = mask[place * CHUNK_TOKENS, 3 * CHUNK_TOKENS :].view(-1, CHUNK_TOKENS)
        assert own.any(dim=1).nonzero().flatten().tolist() == [place - 3]


def test_a_wide_window_ends_at_its_first_frame():
    layout = sink_and_window(9, 2, sink_frames=3, recent_frames=9, frame_tokens=FRAME_TOKENS)
    assert read_frames(layout, 4) == [0, 1, 2, *range(27, 36)]


def test_segments_lie_just_before_the_recent_frames():
    keep = torch.zeros(4, 18, dtype=torch.bool)
    keep[3, [0, 7]] = True  # read by the last chunk only, at both of its levels
    plain, layout = (
        sink_and_window(
            5,
            3,
            sink_frames=1,
            recent_frames=1,
            segment_keep=segments,
            frame_tokens=FRAME_TOKENS,
            levels_per_chunk=2,
        )
        for segments in (None, keep)
    )
    extra = mask_of(layout) & ~mask_of(plain)
    places = extra.view(-1, CHUNK_TOKENS, extra.shape[1]).any(dim=(1, 2)).nonzero().flatten().tolist()
    assert places == [4 + 2, 4 + 5]
    # Window frames 15..23; the last chunk (24..26) reads 23 whole, so the segments are of frames 20, 21, 22.
    for place in places:
        read = extra[place * CHUNK_TOKENS].nonzero().flatten().tolist()
        assert [(layout.frames[token // FRAME_TOKENS], token % FRAME_TOKENS) for token in read] == [(20, 0), (21, 1)]


def test_segments_before_the_window_are_not_read():
    keep = torch.ones(3, 18, dtype=torch.bool)
    layout = sink_and_window(5, 2, sink_frames=1, recent_frames=1, segment_keep=keep, frame_tokens=FRAME_TOKENS)
    assert read_frames(layout, 1) == [0, 15, 16, 17]  # the frames before it are not there
    assert read_frames(layout, 3) == [0, 15, 16, 17, 18, 19, 20]
    assert read_frames(layout, 4) == [0, *range(17, 24)]


def test_a_long_history_is_whole_for_noisy_chunks_only():
    layout = long_history(5, [2, 5, 5], recent_chunks=1, frame_tokens=FRAME_TOKENS)
    assert layout.clean == tuple(range(15))
    assert layout.noisy == (6, 7, 8, 15, 16, 17, 15, 16, 17)
    assert read_frames(layout, 0) == [0, 1, 2]
    assert read_frames(layout, 1) == list(range(6))
    assert read_frames(layout, 4) == [0, 1, 2, *range(9, 15)]
    assert read_frames(layout, 5) == list(range(9))
    assert read_frames(layout, 6) == read_frames(layout, 7) == list(range(18))


# Attention


def layouts():
    keep = torch.rand(4, 18, generator=torch.Generator().manual_seed(0)) < 0.4
    sizes = {"frame_tokens": FRAME_TOKENS}
    yield "first", full_history(0, [0], **sizes)
    yield "full", full_history(3, [1, 2, 3, 1, 2, 3], **sizes)
    yield "window", sink_and_window(4, 2, sink_frames=3, recent_frames=4, **sizes)
    yield (
        "segments",
        sink_and_window(3, 3, sink_frames=1, recent_frames=1, segment_keep=keep, levels_per_chunk=2, **sizes),
    )
    yield "long", long_history(6, [3, 4, 6, 6], recent_chunks=2, **sizes)


def masked_attention(layout, q, k, v):
    """The textbook formula over the whole matrix of scores; tensors [batch, tokens, heads, head_dim]."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask_of(layout), -torch.inf).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.mark.parametrize("layout", [pytest.param(layout, id=name) for name, layout in layouts()])
@pytest.mark.parametrize(("batch_size", "num_heads", "head_dim"), [(1, 1, 2), (3, 2, 5)])
def test_attention_and_its_gradients_equal_masked_ones(layout, batch_size, num_heads, head_dim):
    torch.manual_seed(0)
    shape = (batch_size, len(layout.frames) * FRAME_TOKENS, num_heads, head_dim)
    qkv = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(shape, dtype=torch.float64)
    ours, theirs = LayoutMemory(layout).attend(0, *qkv), masked_attention(layout, *qkv)
    torch.testing.assert_close(ours, theirs)
    for our_gradient, their_gradient in zip(
        torch.autograd.grad((ours * weight).sum(), qkv), torch.autograd.grad((theirs * weight).sum(), qkv), strict=True
    ):
        assert their_gradient.abs().max() > 0.01
        torch.testing.assert_close(our_gradient, their_gradient)


def test_the_layer_does_not_matter_and_the_dtype_is_kept():
    layout = full_history(1, [1], frame_tokens=FRAME_TOKENS)
    q, k, v = torch.randn(3, 1, 2 * CHUNK_TOKENS, 2, 4).bfloat16()
    memory = LayoutMemory(layout)
    out = memory.attend(0, q, k, v)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, memory.attend(5, q, k, v))
    expected = masked_attention(layout, q.float(), k.float(), v.float())
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.03)


# The rollout

ROWS, COLS = 2, 3


def small_model(num_layers):
    torch.manual_seed(1)
    config = TransformerConfig(
        dim=24, ffn_dim=20, num_layers=num_layers, num_heads=2, in_dim=3, out_dim=3, text_dim=5, text_len=4,
        freq_dim=8, rope_theta=50.0, coordinates=True,
    )  # fmt: skip
    return CausalWanTransformer(config).double().eval()


@torch.no_grad()
def forward(model, latents, timestep, frames, memory):
    text = model.encode_text(torch.ones(len(latents), 4, 5, dtype=torch.float64))
    timesteps = timestep if isinstance(timestep, torch.Tensor) else torch.full(latents.shape[:2], timestep)
    positions = model.token_positions(frames, ROWS, COLS)
    return model(latents, timesteps, text=text, positions=positions, memory=memory)


def committed(model, policy, clean, *, num_chunks):
    """The cache of a stream after its first clean chunks."""
    config = model.config
    geometry = FrameGeometry(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        frame_rows=ROWS,
        frame_cols=COLS,
    )
    cache = StreamCache(geometry, policy, batch_size=len(clean), dtype=torch.float64)
    for past in range(num_chunks):
        frames = range(3 * past, 3 * past + 3)
        forward(model, clean[:, frames], 0.0, frames, cache)
        cache.commit()
    return cache


def rolled_out(model, policy, clean, noisy, *, chunk, timestep):
    """Velocity of a noisy chunk after the clean chunks before it were committed."""
    cache = committed(model, policy, clean, num_chunks=chunk)
    return forward(model, noisy, timestep, range(3 * chunk, 3 * chunk + 3), cache)


def test_full_history_predicts_what_a_rollout_does():
    model = small_model(num_layers=3)
    chunks = [0, 2, 3, 2]
    clean, noisy = torch.randn(2, 9, 3, 4, 6).double(), torch.randn(2, 12, 3, 4, 6).double()
    levels = torch.tensor([1000.0, 600.0, 937.5, 200.0])
    timesteps = torch.cat([torch.zeros(9), levels.repeat_interleave(3)]).expand(2, -1)
    layout = full_history(3, chunks, frame_tokens=ROWS * COLS)
    forced = forward(model, torch.cat([clean, noisy], dim=1), timesteps, layout.frames, LayoutMemory(layout))
    for place, (chunk, level) in enumerate(zip(chunks, levels.tolist(), strict=True)):
        own = slice(3 * place, 3 * place + 3)
        expected = rolled_out(model, Full(), clean, noisy[:, own], chunk=chunk, timestep=level)
        torch.testing.assert_close(forced[:, 9:][:, own], expected, atol=1e-6, rtol=1e-5)


def test_a_history_that_begins_late_predicts_what_a_rollout_does_after_a_recache():
    model = small_model(num_layers=3)
    stream, noisy = torch.randn(2, 12, 3, 4, 6).double(), torch.randn(2, 6, 3, 4, 6).double()
    layout = full_history(2, [3, 4], first_chunk=2, frame_tokens=ROWS * COLS)
    timesteps = torch.cat([torch.zeros(6), torch.full((6,), 700.0)]).expand(2, -1)
    forced = forward(model, torch.cat([stream[:, 6:], noisy], dim=1), timesteps, layout.frames, LayoutMemory(layout))
    cache = committed(model, Full(), stream, num_chunks=3)
    recached = cache.recache(3)
    forward(model, stream[:, 6:9], 0.0, recached.positions, recached)
    for chunk in (3, 4):
        own, frames = slice(3 * (chunk - 3), 3 * (chunk - 2)), range(3 * chunk, 3 * chunk + 3)
        expected = forward(model, noisy[:, own], 700.0, frames, cache)
        torch.testing.assert_close(forced[:, 6:][:, own], expected, atol=1e-6, rtol=1e-5)
        if chunk == 3:
            forward(model, stream[:, 9:], 0.0, frames, cache)
            cache.commit()


@pytest.mark.parametrize(("sink_frames", "recent_frames", "whole_chunks"), [(1, 4, [5]), (3, 1, [4, 5])])
def test_a_window_predicts_what_a_rollout_does(sink_frames, recent_frames, whole_chunks):
    """In one layer, and where the window reaches back far enough; what it lacks is the price of its being short."""
    model = small_model(num_layers=1)
    stream = torch.randn(1, 18, 3, 4, 6).double()
    noisy = torch.randn(1, 6, 3, 4, 6).double()
    layout = sink_and_window(3, 2, sink_frames=sink_frames, recent_frames=recent_frames, frame_tokens=ROWS * COLS)
    assert layout.noisy == (12, 13, 14, 15, 16, 17)
    latents = torch.cat([stream[:, layout.clean], noisy], dim=1)
    timesteps = torch.cat([torch.zeros(9), torch.full((6,), 700.0)])[None]
    forced = forward(model, latents, timesteps, layout.frames, LayoutMemory(layout))[:, 9:]
    policy = Window(sink_frames=sink_frames, window_frames=sink_frames + recent_frames + 3)
    for chunk in whole_chunks:
        own = slice(3 * (chunk - 4), 3 * (chunk - 4) + 3)
        expected = rolled_out(model, policy, stream, noisy[:, own], chunk=chunk, timestep=700.0)
        torch.testing.assert_close(forced[:, own], expected, atol=1e-6, rtol=1e-5)


# Random layouts


def group_of(kind, *, switch_chunk=0, far_chunk=0, num_clips=1, returning=(), overdue=()):
    chunks = {"first": [0], "pair": [0], "start": range(START_CHUNKS), "switch": range(SWITCHED_CHUNKS)}
    chunks["memory"] = chunks["wrap"] = range(MEMORY_CHUNKS)
    chunks["far"] = [0, *range(far_chunk, far_chunk + FAR_CHUNKS)]
    chunks["long"] = range(LONG_CHUNKS)
    frames = tuple(3 * chunk + frame for chunk in chunks[kind] for frame in range(3))
    nothing = torch.zeros(num_clips, len(frames), 1, 1, 1)
    comes, waits = (torch.zeros(num_clips, len(chunks[kind]), dtype=torch.bool) for _ in range(2))
    for flags, places in ((comes, returning), (waits, overdue)):
        for clip, chunk in places:
            flags[clip, chunk] = True
    return ClipGroup(
        kind=kind,
        frames=frames,
        switch_chunk=switch_chunk,
        latents=nothing,
        near_object=nothing[:, :, 0] > 0,
        returning=comes,
        overdue=waits,
        scenes=(SCENE,) * num_clips,
    )


@pytest.mark.parametrize(
    "group",
    [
        group_of("first"),
        group_of("pair"),
        group_of("start"),
        *(group_of("switch", switch_chunk=chunk) for chunk in (1, 4, 7)),
        *(group_of("far", far_chunk=chunk) for chunk in (1, 2, 80)),
        group_of("long"),
        group_of("memory"),
        group_of("wrap"),
    ],
    ids=lambda group: f"{group.kind}-{group.frames[3] // 3 if group.kind == 'far' else group.switch_chunk}",
)
def test_random_layouts_stay_in_the_clip_and_every_token_reads_once(group):
    seen, passes = set(), []
    for seed in range(24):
        layout, picks = random_sample(group, torch.Generator().manual_seed(seed), frame_tokens=FRAME_TOKENS)
        again, same = random_sample(group, torch.Generator().manual_seed(seed), frame_tokens=FRAME_TOKENS)
        assert layout == again
        assert torch.equal(picks, same)
        assert set(layout.frames) <= set(group.frames)
        places = [read.queries for read in layout.reads]
        assert places == [(start, start + CHUNK_TOKENS) for start in range(0, len(places) * CHUNK_TOKENS, CHUNK_TOKENS)]
        assert len(places) * 3 == len(layout.frames)
        for read in layout.reads:
            assert any(start <= read.queries[0] and read.queries[1] <= end for start, end in read.keys)
        if group.kind not in ("long", "memory", "wrap", "switch"):  # their matrices are large
            assert mask_of(layout).any(dim=1).all()
        # No noisy chunk shows what is before a switch: its caption would be wrong.
        assert min(layout.noisy) >= 3 * group.switch_chunk
        # Nor a first chunk, where it may not name what the memory scenes' history shows.
        assert group.kind not in ("memory", "wrap") or min(layout.noisy) >= 3
        if group.kind == "switch":
            assert layout.noisy.count(3 * group.switch_chunk) == 2  # where most is new
            assert max(layout.frames) < 3 * (group.switch_chunk + 7)  # what is later is as in any stream
            assert min(layout.frames) == 3 * (group.switch_chunk - 1)  # what a stream keeps at a switch
        seen.add(layout)
        passes.append(len(picks) * len(layout.frames))
    assert len(seen) == 1 if group.kind in ("first", "pair", "start") else len(seen) > 4
    assert max(passes) <= 6 * min(passes)


@pytest.mark.parametrize("kind", ["memory", "wrap"])
def test_what_comes_into_sight_is_learned_oftener_than_the_rest(kind):
    group = group_of(kind, num_clips=4, returning=[(clip, chunk) for clip in range(4) for chunk in (5, 6, 13)])
    times = torch.zeros(MEMORY_CHUNKS)
    for seed in range(200):
        layout, picks = random_sample(group, torch.Generator().manual_seed(seed), frame_tokens=FRAME_TOKENS)
        assert len(picks) == 3
        times[[frame // 3 for frame in layout.noisy[::3]]] += 1
    assert times[[5, 6, 13]].min() > 195
    rest = [chunk for chunk in range(1, MEMORY_CHUNKS) if chunk not in (5, 6, 13)]
    assert 50 < times[rest].min() <= times[rest].max() < 120  # five of twelve
    assert times[0] == 0


@pytest.mark.parametrize(("kind", "num_due"), [("memory", 0), ("wrap", 1)])
def test_chunks_in_which_all_objects_are_overdue_are_not_learned(kind, num_due):
    late = [(clip, chunk) for clip in range(3 - num_due) for chunk in (6, 7, 8)]
    group = group_of(kind, num_clips=3, returning=[(0, 7), (2, 9)], overdue=late)
    drawn = [
        {frame // 3 for frame in random_sample(group, generator, frame_tokens=FRAME_TOKENS)[0].noisy}
        for generator in map(torch.Generator().manual_seed, range(100))
    ]
    learned = sum(bool(chunks & {6, 7, 8}) for chunks in drawn)
    assert learned == 0 if num_due == 0 else 20 < learned < 100
    assert sum(9 in chunks for chunks in drawn) > 60


def test_of_a_long_stream_what_comes_into_sight_in_its_later_half_is_learned_oftenest():
    returning = (10, 20, 22, 30, 45, 70, 78)
    group = group_of("long", num_clips=4, returning=[(clip, chunk) for clip in range(4) for chunk in returning])
    lengths, times, possible = set(), torch.zeros(LONG_CHUNKS), torch.zeros(LONG_CHUNKS)
    for seed in range(200):
        layout, picks = random_sample(group, torch.Generator().manual_seed(seed), frame_tokens=FRAME_TOKENS)
        num_chunks = len(layout.clean) // 3
        lengths.add((num_chunks, len(picks)))
        noisy = [frame // 3 for frame in layout.noisy[::3]]
        assert len(set(noisy)) == len(noisy) == 8
        times[noisy] += 1
        possible[num_chunks // 2 : num_chunks + 1] += 1
    assert lengths == {(24, 2), (48, 1), (79, 1)}
    assert times[:12].sum() == 0
    share = times / possible
    rest = [chunk for chunk in range(12, LONG_CHUNKS) if chunk not in returning]
    assert share[list(returning[1:])].min() > 0.6
    assert share[rest].mean() < 0.3


def test_a_smaller_batch_is_a_share_of_the_clips_and_never_none():
    group = group_of("first", num_clips=9)
    sizes = [
        len(random_sample(group, torch.Generator(), frame_tokens=FRAME_TOKENS, batch_scale=scale)[1])
        for scale in (1.0, 0.25, 0.001)
    ]
    assert sizes == [64, 16, 1]


def test_all_kinds_of_clips_are_in_the_mix():
    assert sum(MIX.values()) == pytest.approx(1)
    assert set(MIX) == set(KINDS)
