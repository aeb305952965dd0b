import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forcing_kv.tiny.teacher_forcing import LayoutMemory, full_history, random_layout, sink_and_window

FRAME_TOKENS = 6
CHUNK_TOKENS = 3 * FRAME_TOKENS


def mask_of(layout):
    """Which token may read which, as a dense matrix."""
    tokens = len(layout.frames) * FRAME_TOKENS
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for read in layout.reads:
        for start, end in read.keys:
            mask[slice(*read.queries), start:end] = True
    return mask


def read_frames(layout, place):
    """Absolute frames that chunk `place` of the sequence reads whole, clean ones first."""
    frames = mask_of(layout)[place * CHUNK_TOKENS].view(-1, FRAME_TOKENS).all(dim=1)
    return [frame for frame, read in zip(layout.frames, frames.tolist(), strict=True) if read]


def test_full_history_reads_everything_before_and_itself():
    layout = full_history(3, [0, 2, 3], frame_tokens=FRAME_TOKENS)
    assert layout.clean == tuple(range(9))
    assert layout.noisy == (0, 1, 2, 6, 7, 8, 9, 10, 11)
    assert read_frames(layout, 1) == list(range(6))  # clean chunk 1
    assert read_frames(layout, 3) == [0, 1, 2]  # noisy chunk 0: nothing but itself
    assert read_frames(layout, 4) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert read_frames(layout, 5) == list(range(12))
    # A noisy chunk never reads its own clean frames.
    assert not mask_of(layout)[4 * CHUNK_TOKENS, 2 * CHUNK_TOKENS : 3 * CHUNK_TOKENS].any()


def test_window_reads_sink_recent_and_itself():
    layout = sink_and_window(5, 2, sink_frames=1, recent_frames=1, frame_tokens=FRAME_TOKENS)
    assert layout.clean == (0, 1, 2, 15, 16, 17, 18, 19, 20)
    assert layout.noisy == (18, 19, 20, 21, 22, 23)
    assert read_frames(layout, 0) == [0, 1, 2]
    assert read_frames(layout, 1) == [0, 15, 16, 17]  # nothing before it is in the window
    assert read_frames(layout, 2) == [0, 17, 18, 19, 20]
    assert read_frames(layout, 3) == [0, 17, 18, 19, 20]  # noisy
    assert read_frames(layout, 4) == [0, 20, 21, 22, 23]


def test_segments_lie_just_before_the_recent_frames():
    keep = torch.zeros(4, 18, dtype=torch.bool)
    keep[3, [0, 7]] = True  # read by the last noisy chunk only
    plain, layout = (
        sink_and_window(5, 3, sink_frames=1, recent_frames=1, segment_keep=segments, frame_tokens=FRAME_TOKENS)
        for segments in (None, keep)
    )
    extra = mask_of(layout) & ~mask_of(plain)
    first_of_last_chunk = (len(layout.frames) - 3) * FRAME_TOKENS
    assert not extra[:first_of_last_chunk].any()
    read = extra[first_of_last_chunk].nonzero().flatten().tolist()
    # Window frames 15..23; the last chunk (24..26) reads 23 whole, so the segments are of frames 20, 21, 22.
    assert [(layout.frames[token // FRAME_TOKENS], token % FRAME_TOKENS) for token in read] == [(20, 0), (21, 1)]


def test_attention_and_its_gradient_equal_a_masked_one():
    torch.manual_seed(0)
    keep = torch.rand(3, 18) < 0.4
    layout = sink_and_window(3, 2, sink_frames=1, recent_frames=1, segment_keep=keep, frame_tokens=FRAME_TOKENS)
    tokens = len(layout.frames) * FRAME_TOKENS
    q, k, v = (torch.randn(2, tokens, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, tokens, 3, 8, dtype=torch.float64)

    ours = LayoutMemory(layout).attend(0, q, k, v)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    theirs = scaled_dot_product_attention(*heads_first, attn_mask=mask_of(layout)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    for our_gradient, their_gradient in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(our_gradient, their_gradient)


@pytest.mark.parametrize("max_chunks", [8, 27])
def test_random_layouts_stay_in_the_clip_and_every_query_reads(max_chunks):
    kinds = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        layout, num_samples = random_layout(generator, max_chunks=max_chunks, frame_tokens=FRAME_TOKENS)
        assert max(layout.frames) < max_chunks * 3
        assert mask_of(layout).any(dim=1).all()
        assert len(layout.reads) * 3 == len(layout.frames)
        kinds.add((len(layout.clean), num_samples))
    assert len({samples for _, samples in kinds}) == (4 if max_chunks == 27 else 3)
