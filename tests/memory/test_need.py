"""What a run needs, against what is really allocated."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcing_kv import ForcingKV, FrameGeometry, Full, HeadMap, StreamCache, Window
from forcing_kv.cache import cache_bytes
from forcing_kv.memory import (
    HEADROOM,
    UMT5_XXL_PARAMETERS,
    MemoryNeed,
    PlannedStream,
    memory_table,
)
from forcing_kv.resolution import NAMED_RESOLUTIONS
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE, StreamingVaeDecoder, VaeSize
from forcing_kv.wan import (
    WAN_1_3B,
    WAN_14B,
    CausalWanTransformer,
    TransformerConfig,
    pass_bytes,
    weights_bytes,
)
from peak_memory import dry_run
from plans import planned
from strategies import setups

GB = 10**9
DOCUMENT = Path(__file__).parents[2] / "docs" / "memory.md"
KREA_POLICY = "forcing-kv:sink_frames=0,dynamic_recent_frames=3,similarity_pruning=false"
CPU = torch.device("cpu")


# What the cache holds


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    setup=setups(),
    batch_size=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    num_chunks=st.integers(1, 14),
)
def test_cache_bytes_are_what_the_cache_holds_at_its_most(setup, batch_size, dtype, num_chunks):
    geometry, policy = setup
    cache = StreamCache(geometry, policy, batch_size=batch_size, dtype=dtype)
    held = [cache.nbytes]
    tokens = torch.zeros(batch_size, geometry.chunk_tokens, geometry.num_heads, geometry.head_dim, dtype=dtype)
    for chunk in range(1, num_chunks + 1):
        for layer in range(geometry.num_layers):
            cache.attend(layer, tokens, tokens, tokens)
        cache.commit()
        held.append(cache.nbytes)
        sizes = {"batch_size": batch_size, "dtype": dtype}
        said = cache_bytes(policy, geometry, num_chunks=chunk, **sizes)
        # A policy that looks first may turn out to keep less than it could have.
        assert said >= max(held) if policy.looking_tokens(geometry) else said == max(held)


def test_published_cache_sizes():
    stream = planned()
    frame = stream.geometry.kv_bytes(1, bytes_per_value=2)
    assert frame == pytest.approx(0.288 * GB, rel=2e-3)
    assert 21 * frame == pytest.approx(6.04 * GB, rel=1e-3)
    assert replace(stream, policy=Full(), num_chunks=7).need().cache_bytes == 27 * frame  # blocks of 12, and 3 current
    assert replace(stream, policy=Full()).need() == replace(stream, policy=Full(), num_chunks=7).need()
    assert replace(stream, policy=Window()).need().cache_bytes == 12 * frame
    assert stream.need().cache_bytes == pytest.approx(5.6 * frame, rel=5e-3)
    assert replace(stream, batch_size=3).need().cache_bytes == 3 * stream.need().cache_bytes


# What the models weigh

ODD_CONFIGS = [
    TransformerConfig(dim=24, ffn_dim=31, num_layers=1, num_heads=2, in_dim=5, out_dim=7, text_dim=9, freq_dim=6),
    TransformerConfig(dim=12, ffn_dim=8, num_layers=3, num_heads=1, qk_norm=False, patch_size=(1, 3, 1)),
    TransformerConfig(dim=12, ffn_dim=8, num_layers=2, num_heads=3, cross_attn_norm=False),
    TransformerConfig(dim=18, ffn_dim=7, num_layers=1, num_heads=3, coordinates=True),
]


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B, replace(WAN_14B, coordinates=True), *ODD_CONFIGS])
def test_transformer_parameters_are_the_transformers(config):
    with torch.device("meta"):
        transformer = CausalWanTransformer(config)
    assert config.num_parameters == sum(parameter.numel() for parameter in transformer.parameters())


def test_published_parameters():
    assert WAN_1_3B.num_parameters == pytest.approx(1.419e9, rel=1e-3)
    assert WAN_14B.num_parameters == pytest.approx(14.288e9, rel=1e-3)
    need = planned().need()
    assert need.weights_bytes == pytest.approx(2.84 * GB, rel=1e-3)
    assert need.text_encoder_bytes == pytest.approx(11.36 * GB, rel=1e-3)
    assert need.vae_weights_bytes == pytest.approx(0.254 * GB, rel=2e-3)


def test_text_encoder_parameters_are_umt5_xxls():
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == UMT5_XXL_PARAMETERS


# What passes and decoding have alive, in a dry run of the real code


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("config", "size", "batch_size", "chunk_frames"),
    [
        (WAN_1_3B, (30, 52), 1, 3),
        (WAN_14B, (30, 52), 1, 3),
        (WAN_1_3B, (7, 5), 2, 1),
        (TransformerConfig(dim=768, ffn_dim=256, num_layers=9, num_heads=6), (13, 11), 1, 2),  # attention is the most
        (replace(WAN_1_3B, coordinates=True), (7, 5), 1, 3),
        (replace(WAN_14B, coordinates=True), (6, 10), 2, 1),
    ],
)
def test_pass_bytes_are_what_passes_have_alive(config, size, batch_size, chunk_frames, dtype):
    num_layers = 3  # alike from the second on
    config = replace(config, num_layers=num_layers)
    rows, cols = size
    geometry = FrameGeometry(
        num_layers=num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        frame_rows=rows,
        frame_cols=cols,
        chunk_frames=chunk_frames,
    )
    third = config.num_heads // 3
    head_map = HeadMap(model="test", roles=("s" * third + "d" * (config.num_heads - third),) * num_layers)
    policy = ForcingKV(head_map=head_map, segments_per_frame=1, warmup_chunks=2)
    with torch.device("meta"):
        transformer = CausalWanTransformer(config).to(dtype).requires_grad_(False)
        transformer.join_projections()  # as a loaded one's are
        states = torch.empty(batch_size, config.text_len, config.text_dim)
    cache = StreamCache(geometry, policy, batch_size=batch_size, dtype=dtype, device="meta")

    def make_pass(frames, memory):
        latents = torch.empty(batch_size, len(frames), config.in_dim, 2 * rows, 2 * cols, device="meta")
        timesteps = torch.empty(batch_size, len(frames), device="meta")
        positions = transformer.token_positions(frames, rows, cols)
        transformer(latents, timesteps, text=text, positions=positions, memory=memory)

    def expected(num_frames):
        return pass_bytes(config, num_frames=batch_size * num_frames, frame_tokens=rows * cols, dtype=dtype)

    with torch.no_grad():
        text = transformer.encode_text(states)
    for _ in range(4):
        with dry_run() as memory:
            make_pass(range(cache.num_frames, cache.num_frames + chunk_frames), cache)
        assert memory.peak_bytes <= expected(chunk_frames) <= 1.25 * memory.peak_bytes
        with dry_run() as memory:
            cache.commit()
        assert memory.peak_bytes <= (1 + HEADROOM) * expected(chunk_frames)
    recache = cache.recache(4 * chunk_frames)
    with dry_run() as memory:
        make_pass(recache.frames, recache)
    assert memory.peak_bytes <= expected(4 * chunk_frames) <= 1.25 * memory.peak_bytes


def test_fp8_and_graphs_are_in_the_plan():
    stream = planned()
    need, quantised = stream.need(), replace(stream, precision="fp8").need()
    assert quantised.weights_bytes == weights_bytes(WAN_1_3B, dtype=torch.bfloat16, precision="fp8")
    assert quantised.weights_bytes == pytest.approx(1.673 * GB, rel=1e-3)
    assert quantised.passes_bytes > need.passes_bytes
    one_pass = pass_bytes(WAN_1_3B, num_frames=3, frame_tokens=1560, dtype=torch.bfloat16)
    for execution, passes in (("compile", 0), ("cuda-graphs", 1), ("compile+cuda-graphs", 1)):
        graphed = replace(stream, options=StreamOptions(execution=execution)).need()
        assert graphed.passes_bytes == need.passes_bytes + passes * one_pass


def test_coordinates_take_one_tensor_more():
    sizes = {"num_frames": 5, "frame_tokens": 7, "dtype": torch.bfloat16}
    with_them, without = (pass_bytes(replace(WAN_1_3B, coordinates=told), **sizes) for told in (True, False))
    assert with_them - without == 5 * 7 * 1536 * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decode_bytes_are_what_the_wan_vae_has_alive(dtype):
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan().to(dtype)
    assert VaeSize.of(vae) == WAN_VAE
    for width, height, batch_size in ((832, 480, 1), (112, 80, 2)):
        check_decoding(vae, width, height, batch_size, dtype)


def test_decode_bytes_are_enough_for_the_embedded_model():
    from forcing_kv.tiny.training.vae import build_vae

    vae = build_vae().to("meta")
    assert VaeSize.of(vae).num_parameters == 1_528_804
    check_decoding(vae, 160, 96, 1, torch.float32)


def check_decoding(vae, width, height, batch_size, dtype):
    size, num_pixels = VaeSize.of(vae), batch_size * width * height
    with dry_run() as memory:
        decoder = StreamingVaeDecoder(vae)
        for _ in range(3):
            decoder.decode(torch.empty(batch_size, 3, vae.config.z_dim, height // 8, width // 8, device="meta"))
    assert memory.peak_bytes <= size.decode_bytes(num_pixels, dtype) <= 1.25 * memory.peak_bytes
    if size == WAN_VAE:
        assert decoder.nbytes == size.feature_bytes(num_pixels, dtype)


# The sum


def test_parts_add_up():
    need = MemoryNeed(
        weights_bytes=100,
        text_encoder_bytes=200,
        vae_weights_bytes=30,
        cache_bytes=1000,
        passes_bytes=100,
        decode_bytes=400,
        snapshot_bytes=7,
    )
    assert need.vae_bytes == 430
    assert need.model_bytes == 330
    assert need.headroom_bytes == 150
    assert need.total_bytes == sum(need.parts().values()) == 100 + 200 + 430 + 1000 + 100 + 7 + 150


def test_portrait_needs_what_landscape_does():
    for name in ("480p", "720p", "1080p"):
        upright = planned(resolution=NAMED_RESOLUTIONS[f"{name}-portrait"])
        assert upright.resolution == NAMED_RESOLUTIONS[name][::-1]
        assert upright.need() == planned(resolution=NAMED_RESOLUTIONS[name]).need()


def test_videos_without_a_decoder_and_a_changing_prompt():
    stream = planned()
    latents_only = replace(stream, vae=None).need()
    assert latents_only.vae_bytes == 0
    assert latents_only.cache_bytes == stream.need().cache_bytes
    activations = pass_bytes(WAN_1_3B, num_frames=3, frame_tokens=1560, dtype=torch.bfloat16)
    text = stream.need().passes_bytes - activations
    assert replace(stream, recache_frames=12).need().passes_bytes == 4 * activations + text
    assert replace(stream, recache_frames=2).need() == stream.need()


def test_a_snapshot_takes_memory_only_where_the_host_is_the_device():
    stream = planned(policy=Full(), num_chunks=7)
    assert stream.need().snapshot_bytes == 0
    need = replace(stream, device=CPU).need()
    features = WAN_VAE.feature_bytes(832 * 480, torch.bfloat16)
    assert need.snapshot_bytes == need.cache_bytes + features - (need.passes_bytes + need.decode_bytes - features)
    small = replace(planned(), device=CPU, batch_size=1, vae=None, recache_frames=12).need()
    assert small.snapshot_bytes == max(0, small.cache_bytes - small.passes_bytes)


# The page


def table_lines():
    """The table of docs/memory.md."""
    yield "| model | size | policy | weights | VAE | cache | passes | headroom | total | + text encoder |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, config in (("1.3B", WAN_1_3B), ("14B", WAN_14B)):
        stream = planned(config)
        for size, needs in memory_table(stream).items():
            for spec, need in needs.items():
                policy = spec.replace(KREA_POLICY, "forcing-kv, Krea's settings").replace("full", "full, 21 frames")
                parts = need.parts()
                total = need.total_bytes - need.text_encoder_bytes
                figures = [*(parts[part] for part in ("weights", "VAE", "cache", "passes", "headroom")), total]
                row = [name, size, policy, *(f"{figure / GB:.1f}" for figure in (*figures, need.total_bytes))]
                yield f"| {' | '.join(row)} |"


def test_the_page_has_the_figures_of_the_code():
    lines = "\n".join(table_lines())
    assert lines in DOCUMENT.read_text(), f"put this table into {DOCUMENT.name}:\n{lines}"


def test_a_plan_needs_nothing_but_sizes():
    head_map = HeadMap.uniform("d", num_layers=3, num_heads=2)
    config = TransformerConfig(dim=24, ffn_dim=31, num_layers=3, num_heads=2)
    geometry = FrameGeometry(num_layers=3, num_heads=2, head_dim=12, frame_rows=2, frame_cols=3)
    stream = PlannedStream(config=config, geometry=geometry, policy=ForcingKV(head_map=head_map), device=CPU)
    assert stream.resolution == (48, 32)
    assert stream.need().total_bytes > 0
