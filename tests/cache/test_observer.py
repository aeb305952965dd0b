"""Who looks on is told what is read, costs nothing when gone, and is gone after the block, come what may."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forcing_kv import ConfigurationError, ForcingKV, FrameGeometry, Full, HeadMap, StreamCache, Window
from strategies import random_qkv

GEOMETRY = FrameGeometry(num_layers=2, num_heads=3, head_dim=4, frame_rows=1, frame_cols=2, chunk_frames=2)


class Recorder:
    def __init__(self):
        self.reads = []

    def observe(self, read):
        self.reads.append(read)


class Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def marked_chunk(first_frame, head_order):
    """q, k and v that say which frame and which head they belong to."""
    frames = torch.arange(first_frame, first_frame + GEOMETRY.chunk_frames).repeat_interleave(GEOMETRY.frame_tokens)
    k = torch.zeros(1, GEOMETRY.chunk_tokens, GEOMETRY.num_heads, GEOMETRY.head_dim)
    k[..., 0] = frames[None, :, None]
    k[..., 1] = torch.tensor(head_order, dtype=k.dtype)
    return k.clone(), k, k.clone()


@pytest.mark.parametrize("policy", [Full(), Window(sink_frames=3, window_frames=8), Window(sink_frames=0)])
@pytest.mark.parametrize("head_order", [(0, 1, 2), (2, 0, 1)])
def test_it_is_told_which_frame_every_key_belongs_to(policy, head_order):
    cache = StreamCache(GEOMETRY, policy, head_order=[head_order] * GEOMETRY.num_layers)
    for chunk in range(11):  # past one block of growth
        recorder = Recorder()
        q, k, v = marked_chunk(2 * chunk, head_order)
        with cache.observed_by(recorder):
            out = cache.attend(1, q, k, v)
        (read,) = recorder.reads
        assert (read.layer, read.first_frame, read.heads) == (1, 2 * chunk, head_order)
        assert torch.equal(read.q, q)
        assert read.k.shape[1] == out.shape[1] + cache.history_tokens(1)[0]
        assert read.k[0, :: GEOMETRY.frame_tokens, 0, 0].tolist() == list(read.key_frames)
        assert read.k[0, 0, :, 1].tolist() == list(read.heads)
        cache.attend(0, q, k, v)
        cache.commit()


def test_head_groups_are_told_apart():
    head_map = HeadMap(model="test", roles=("sds", "dds"))
    policy = ForcingKV(head_map=head_map, similarity_pruning=False, dense_layers=frozenset(), dynamic_recent_frames=2)
    cache = StreamCache(GEOMETRY, policy, head_order=[(2, 1, 0)] * 2)
    for chunk in range(4):
        recorder = Recorder()
        with cache.observed_by(recorder):
            for layer in range(2):
                cache.attend(layer, *marked_chunk(2 * chunk, (2, 1, 0)))
        for read in recorder.reads:
            assert read.k[0, 0, :, 1].tolist() == list(read.heads)
            assert read.k[0, :: GEOMETRY.frame_tokens, 0, 0].tolist() == list(read.key_frames)
        cache.commit()
    last = {(read.layer, read.heads): read.key_frames for read in recorder.reads}
    static, dynamic = (5, 0, 6, 7), (5, 4, 0, 6, 7)
    assert last == {(0, (2, 0)): static, (0, (1,)): dynamic, (1, (2,)): static, (1, (1, 0)): dynamic}


def test_a_re_encoded_sink_has_its_new_frames():
    cache = StreamCache(GEOMETRY, Window(sink_frames=2, window_frames=6))
    recorder = Recorder()
    for chunk in range(4):
        for layer in range(2):
            cache.attend(layer, *marked_chunk(2 * chunk, (0, 1, 2)))
        cache.commit()
    memory = cache.recache(4)
    span = [
        torch.cat(parts, dim=1) for parts in zip(*(marked_chunk(first, (0, 1, 2)) for first in (4, 6)), strict=True)
    ]
    with cache.observed_by(recorder):
        for layer in range(2):
            memory.attend(layer, *span)
        assert not recorder.reads
        cache.attend(0, *marked_chunk(8, (0, 1, 2)))
    (read,) = recorder.reads
    assert read.key_frames == (7, 6, 5, 4, 8, 9)
    assert read.k[0, :: GEOMETRY.frame_tokens, 0, 0].tolist() == list(read.key_frames)


def test_segments_are_no_frames():
    cache = StreamCache(GEOMETRY, ForcingKV(head_map=HeadMap(model="test", roles=("sds",) * 2), segments_per_frame=2))
    with (
        pytest.raises(ConfigurationError, match=r"keeps segments of frames.*observe the full cache"),
        cache.observed_by(Recorder()),
    ):
        pass


def test_without_an_observer_the_work_is_the_same_as_ever():
    generator = torch.Generator().manual_seed(0)
    qkv = random_qkv(GEOMETRY, 1, GEOMETRY.chunk_frames, generator)

    def operations(cache):
        with Operations() as operations:
            out = cache.attend(0, *qkv)
        return operations.names, out

    never, once = (StreamCache(GEOMETRY, Full(), dtype=torch.float64) for _ in range(2))
    with once.observed_by(Recorder()):
        during, out = operations(once)
    after, _ = operations(once)
    expected, wanted = operations(never)
    assert after == expected
    assert len(during) > len(expected)
    assert torch.equal(out, wanted)


def test_it_is_gone_after_an_exception_and_the_one_before_is_back():
    cache, outer, inner = StreamCache(GEOMETRY, Full()), Recorder(), Recorder()
    chunk = marked_chunk(0, (0, 1, 2))
    with cache.observed_by(outer):
        with pytest.raises(ZeroDivisionError), cache.observed_by(inner):  # noqa: PT012  # not at the first call
            cache.attend(0, *chunk)
            raise ZeroDivisionError
        cache.attend(0, *chunk)
    cache.attend(0, *chunk)
    assert (len(inner.reads), len(outer.reads)) == (1, 1)
