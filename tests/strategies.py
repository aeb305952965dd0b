"""Random geometries, policies and tensors, for the property tests of the cache."""

import torch
from hypothesis import strategies as st

from forcing_kv import DummyForcing, ForcingKV, FrameGeometry, Full, HeadMap, Window


@st.composite
def setups(draw, head_dim=4):
    """A geometry and a policy that fits it, odd sizes included."""
    num_layers, num_heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    segments = draw(st.sampled_from([1, 2, 3]))
    chunk_frames = draw(st.integers(1, 4))
    geometry = FrameGeometry(
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=head_dim,
        frame_rows=segments,
        frame_cols=draw(st.integers(1, 3)),
        chunk_frames=chunk_frames,
    )
    kind = draw(st.sampled_from(["full", "window", "forcing-kv", "forcing-kv", "static-only", "dummy"]))
    if kind == "full":
        return geometry, Full()
    if kind == "dummy":
        return geometry, DummyForcing(
            num_dummy=draw(st.none() | st.integers(0, num_layers * num_heads)),
            ar_start=draw(st.integers(1, 3)),
            local_context=draw(st.integers(1, 2)),
            seed=draw(st.integers(0, 9)),
        )
    sink = draw(st.integers(0, 4))
    if kind == "window":
        return geometry, Window(sink_frames=sink, window_frames=sink + chunk_frames + draw(st.integers(0, 7)))
    role = st.text("sd", min_size=num_heads, max_size=num_heads)
    roles = draw(st.lists(role, min_size=num_layers, max_size=num_layers))
    pruning = kind == "forcing-kv"
    static_recent = draw(st.integers(0, 3))
    dynamic_recent = draw(st.integers(1, chunk_frames) if pruning else st.integers(0, 5))
    needed = sink + max(static_recent, dynamic_recent)
    return geometry, ForcingKV(
        head_map=HeadMap(model="test", roles=tuple(roles)),
        sink_frames=sink,
        static_recent_frames=static_recent,
        dynamic_recent_frames=dynamic_recent,
        segments_per_frame=segments,
        selected_segments=draw(st.none() | st.integers(0, segments * chunk_frames)),
        similarity_pruning=pruning,
        segments=draw(st.sampled_from(["changed", "unchanged"])),
        roles=draw(st.sampled_from(["measured", "measured", "static", "dynamic", "shuffled"])),
        warmup_chunks=max(1, -(-needed // chunk_frames)) + draw(st.integers(0, 1)),
        dense_layers=draw(st.sampled_from([frozenset({0}), frozenset()])),
    )


def random_qkv(geometry, batch_size, num_frames, generator):
    shape = (3, batch_size, geometry.tokens(num_frames), geometry.num_heads, geometry.head_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).unbind(0)
