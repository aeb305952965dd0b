"""Scores of attention that was made to measure."""

import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcing_kv import ConfigurationError, FrameGeometry, Full, HeadMapError, StreamCache, Window
from forcing_kv.calibration import FrameMassObserver, measured_head_map
from strategies import random_qkv

ROOT = Path(__file__).parent.parent.parent
GEOMETRY = FrameGeometry(num_layers=1, num_heads=2, head_dim=8, frame_rows=2, frame_cols=2)


def run(geometry, observer, chunks, *, num_passes=1, policy=None, **settings):
    """A stream whose every pass over chunk n has the queries, keys and values `chunks[n]`."""
    cache = StreamCache(geometry, policy or Full(), **settings)
    with cache.observed_by(observer):
        for chunk in chunks:
            for _ in range(num_passes):
                for layer in range(geometry.num_layers):
                    cache.attend(layer, *chunk)
            cache.commit()
    return observer


def scores_by_hand(chunks, geometry, *, sink_frames, recent_frames):
    """Ratios of the last chunk's queries, from the whole matrix in float64: [batch, queries, heads]."""
    q, keys = chunks[-1][0].double(), torch.cat([k for _, k, _ in chunks], dim=1).double()
    weights = (torch.einsum("bqhd,bkhd->bqhk", q, keys) * geometry.head_dim**-0.5).softmax(dim=-1)
    newest = geometry.tokens(recent_frames + geometry.chunk_frames)
    return weights[..., -newest:].sum(-1) / weights[..., geometry.tokens(sink_frames) :].sum(-1)


def test_uniform_attention_scores_the_share_of_frames():
    zeros = torch.zeros(1, GEOMETRY.chunk_tokens, 2, 8)
    seen = run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0]), [(zeros, zeros, zeros)] * 5).observations(
        prompt="nothing", seed=4, model="uniform"
    )
    assert seen.scores[0, :, 0, 0].flatten().tolist() == pytest.approx([4 / 9] * 2 + [4 / 12] * 2)
    assert seen.head_scores()[0].tolist() == pytest.approx([(4 / 9 + 4 / 12) / 2] * 2)
    assert seen.standard_errors.count_nonzero() == 0
    assert (seen.prompts, seen.seeds, seen.chunks, seen.steps) == (("nothing",), (4,), (3, 4), (0,))
    assert seen.settings["model"] == "uniform"
    # 12 and 15 frames read: both chunks see the distances from -6 on, only the later one those before
    assert seen.distances == tuple(range(-9, 3))
    assert seen.distance_mass[0, 1].tolist() == pytest.approx([1 / 15] * 3 + [(1 / 12 + 1 / 15) / 2] * 9)
    assert seen.sink_mass[0, 0].tolist() == pytest.approx([(1 / 12 + 1 / 15) / 2] * 3)


def test_a_head_that_looks_at_itself_scores_one_and_one_that_looks_back_scores_nothing():
    chunks = []
    for chunk in range(4):
        k = torch.zeros(1, GEOMETRY.chunk_tokens, 2, 8)
        k[:, :, 0, chunk] = 1  # head 0 looks for this chunk's mark
        k[:, :, 1, 0] = float(chunk == 1)  # head 1 looks for chunk 1's, frames 3 to 5
        q = torch.zeros_like(k)
        q[:, :, 0, chunk] = q[:, :, 1, 0] = 400
        chunks.append((q, k, k))
    seen = run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0]), chunks).observations(prompt="p", seed=0)
    assert seen.head_scores()[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
    by_distance = dict(zip(seen.distances, seen.distance_mass[0].T.tolist(), strict=True))
    assert by_distance[0] == pytest.approx([1 / 3, 0], abs=1e-5)
    assert by_distance[-5] == pytest.approx([0, 1 / 3], abs=1e-5)


def test_a_query_that_reads_the_sink_only_is_no_evidence_and_no_nan():
    k = torch.zeros(1, GEOMETRY.chunk_tokens, 2, 8)
    q = torch.full_like(k, 1e4)
    chunks = [(q, torch.full_like(k, 1e4), k), *[(q, k, k)] * 3]
    seen = run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0]), chunks).observations(prompt="p", seed=0)
    assert seen.head_scores().tolist() == [[0, 0]]
    assert seen.sink_mass.sum() == pytest.approx(2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_scores_are_those_of_the_whole_matrix(data):
    geometry = FrameGeometry(
        num_layers=1,
        num_heads=data.draw(st.integers(1, 4)),
        head_dim=data.draw(st.integers(1, 5)),
        frame_rows=1,
        frame_cols=data.draw(st.integers(1, 5)),
        chunk_frames=data.draw(st.integers(1, 4)),
    )
    batch_size, sink_frames, recent_frames = (data.draw(st.integers(*sizes)) for sizes in ((1, 2), (0, 4), (0, 3)))
    # A sample that takes all queries, or more than there are, is no sample.
    max_queries = data.draw(st.none() | st.integers(max(2, geometry.chunk_tokens), 100))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    num_chunks = -(-12 // geometry.chunk_frames)
    chunks = [random_qkv(geometry, batch_size, geometry.chunk_frames, generator) for _ in range(num_chunks)]
    observer = FrameMassObserver(
        geometry, steps=[1], sink_frames=sink_frames, recent_frames=recent_frames, max_queries=max_queries, max_bytes=64
    )
    order = torch.randperm(geometry.num_heads, generator=generator).tolist()
    settings = {"batch_size": batch_size, "dtype": torch.float64, "head_order": [order]}
    seen = run(geometry, observer, chunks, num_passes=2, **settings).observations(prompt="p", seed=0)
    assert seen.chunks == (num_chunks - 1,)
    by_hand = scores_by_hand(chunks, geometry, sink_frames=sink_frames, recent_frames=recent_frames).mean(dim=(0, 1))
    torch.testing.assert_close(seen.head_scores()[0, order].double(), by_hand, rtol=1e-4, atol=1e-6)
    assert seen.standard_errors.count_nonzero() == 0
    total = seen.distance_mass.sum(-1) + seen.sink_mass.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_error_of_a_sample_is_as_said():
    geometry = FrameGeometry(num_layers=1, num_heads=3, head_dim=4, frame_rows=5, frame_cols=7)
    generator = torch.Generator().manual_seed(0)
    chunks = [[3 * x for x in random_qkv(geometry, 2, 3, generator)] for _ in range(4)]
    exact = scores_by_hand(chunks, geometry, sink_frames=3, recent_frames=1).mean(dim=(0, 1))
    errors, said = [], []
    for seed in range(300):
        observer = FrameMassObserver(geometry, steps=[0], max_queries=40, seed=seed)
        seen = run(geometry, observer, chunks, batch_size=2, dtype=torch.float64).observations(prompt="p", seed=0)
        errors.append(seen.head_scores()[0] - exact)
        said.append(seen.head_standard_errors()[0])
    spread = torch.stack(errors).square().mean(dim=0).sqrt()
    torch.testing.assert_close(torch.stack(said).mean(dim=0).double(), spread, rtol=0.15, atol=0)
    again = FrameMassObserver(geometry, steps=[0], max_queries=40, seed=299)
    again = run(geometry, again, chunks, batch_size=2, dtype=torch.float64).observations(prompt="p", seed=0)
    assert torch.equal(again.scores, seen.scores)


def test_the_passes_that_are_named_are_observed():
    generator = torch.Generator().manual_seed(0)
    chunks = [random_qkv(GEOMETRY, 1, 3, generator) for _ in range(6)]
    settings = {"num_passes": 3, "dtype": torch.float64}
    observer = run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[2, 0], chunks=[5, 3]), chunks, **settings)
    seen = observer.observations(prompt="p", seed=0)
    assert (seen.chunks, seen.steps) == ((3, 5), (0, 2))
    assert seen.scores.shape == (1, 2, 2, 1, 2)
    assert seen.distances == tuple(range(-12, 3))
    assert seen.distance_mass.count_nonzero() == seen.distance_mass.numel()


def test_what_cannot_be_measured_is_refused():
    zeros = (torch.zeros(1, GEOMETRY.chunk_tokens, 2, 8),) * 3
    with pytest.raises(ConfigurationError, match="no pass was measured: make at least 4 chunks"):
        run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0]), [zeros] * 3).observations(prompt="p", seed=0)
    with pytest.raises(ConfigurationError, match="make at least 5 chunks"):  # 9 + 1 + 3 of 13 frames would score 1
        run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0], sink_frames=9), [zeros] * 4).observations(
            prompt="p", seed=0
        )
    with pytest.raises(ConfigurationError, match="layer 0 made no pass 1 over chunk 3"):
        run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0, 1]), [zeros] * 4).observations(prompt="p", seed=0)
    with pytest.raises(ConfigurationError, match=r"chunk 5 reads 15 of the 18 frames so far: .*under the full cache"):
        run(GEOMETRY, FrameMassObserver(GEOMETRY, steps=[0]), [zeros] * 6, policy=Window(window_frames=15))
    for name, value in (("sink_frames", -1), ("recent_frames", -1), ("max_queries", 1)):
        with pytest.raises(ConfigurationError, match=f"{name}={value} must be at least"):
            FrameMassObserver(GEOMETRY, steps=[0], **{name: value})


def test_any_transformer_can_be_measured():
    """The one of `examples/own_model.py`: its heads are told apart without a line of ours in it."""
    example = runpy.run_path(str(ROOT / "examples" / "own_model.py"))
    torch.manual_seed(0)
    model = example["OwnModel"]().eval()
    geometry = FrameGeometry(
        num_layers=example["NUM_LAYERS"],
        num_heads=example["NUM_HEADS"],
        head_dim=example["DIM"] // example["NUM_HEADS"],
        frame_rows=example["ROWS"],
        frame_cols=example["COLS"],
    )
    cache = StreamCache(geometry, Full())
    observer = FrameMassObserver(geometry, steps=range(4))
    with torch.no_grad(), cache.observed_by(observer):
        for _ in range(5):
            chunk = torch.randn(1, geometry.chunk_tokens, example["DIM"])
            for _ in range(4):
                chunk = model(chunk, cache)
            model(chunk, cache)
            cache.commit()
    seen = observer.observations(prompt="noise", seed=0, model="own")
    assert seen.scores.shape == (1, 2, 4, 3, 4)
    head_map = measured_head_map(seen, target_static_fraction=0.25)
    assert (head_map.model, head_map.num_layers, head_map.num_heads, head_map.num_static) == ("own", 3, 4, 3)
    with pytest.raises(HeadMapError, match="has 3 layers x 4 heads, the model has 3 x 5"):
        head_map.check_fits(num_layers=3, num_heads=5)
