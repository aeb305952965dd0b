"""Streamed encode equals whole encode, for every way of cutting a video into pieces."""

from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st

from forcing_kv.errors import ConfigurationError
from forcing_kv.models import find_model
from forcing_kv.tiny.training.vae import clips_of, decode_whole, encode_moments, pixels_of, random_clips
from forcing_kv.video import StreamingVaeDecoder, StreamingVaeEncoder
from vaes import KINDS, random_vae


@cache
def vae_of(kind: str) -> AutoencoderKLWan:
    """A random VAE of one of the `KINDS`, or the embedded model's."""
    if kind == "tiny":
        return find_model("tiny").components.load_vae(dtype=torch.float32, device=torch.device("cpu"))
    return random_vae(kind)


def make_frames(num_latents: int, batch: int = 2, rows: int = 1, cols: int = 2, seed: int = 1) -> torch.Tensor:
    shape = (batch, 4 * num_latents - 3, 16 * rows, 16 * cols, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole_encode(vae: AutoencoderKLWan, frames: torch.Tensor) -> torch.Tensor:
    """The library's own encode of everything at once, standardised, as [B, F, C, h, w]."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents = vae.encode(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
    return ((latents - mean) / std).transpose(1, 2)


def streamed(encoder: StreamingVaeEncoder, frames: torch.Tensor, latent_counts: list[int]) -> torch.Tensor:
    sizes = [4 * count for count in latent_counts]
    sizes[0] -= 3
    return torch.cat([encoder.encode(part) for part in frames.split(sizes, dim=1)], dim=1)


@given(
    kind=st.sampled_from([*KINDS, "tiny"]),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    batch=st.integers(1, 2),
    rows=st.integers(1, 3),
    cols=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_streamed_encode_equals_whole_encode(*, kind, counts, batch, rows, cols, seed):
    vae = vae_of(kind)
    frames = make_frames(sum(counts), batch, rows, cols, seed)
    latents = streamed(StreamingVaeEncoder(vae), frames, counts)
    assert latents.shape[:3] == (batch, sum(counts), vae.config.z_dim)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, StreamingVaeEncoder(vae).encode(frames))
    # Their last layer sees one latent frame here and all of them there: for pictures of a single latent value torch
    # takes another matrix product then, and rounds the last bit otherwise.
    torch.testing.assert_close(latents, whole_encode(vae, frames), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "tiny"])
def test_streamed_encode_equals_whole_encode_bit_for_bit(kind):
    vae = vae_of(kind)
    frames = make_frames(5, rows=3, cols=5)
    expected = whole_encode(vae, frames)
    assert torch.equal(streamed(StreamingVaeEncoder(vae), frames, [2, 3]), expected)
    assert expected.std() > 0.01  # not a flat picture that anything would match


def test_encode_undoes_decode_on_the_embedded_model():
    vae = vae_of("tiny")
    clips = random_clips(2, 21, torch.Generator().manual_seed(0))
    latents = StreamingVaeEncoder(vae).encode(clips)
    again = StreamingVaeDecoder(vae).decode(latents)
    assert again.shape == clips.shape
    error = (again.float() - clips.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 29  # decibel; some of these clips switch
    with torch.no_grad():
        raw, _ = encode_moments(vae, pixels_of(clips))  # the training's own way through the same networks
        assert (clips_of(decode_whole(vae, raw)).int() - again.int()).abs().max() <= 1


def test_interleaved_streams_equal_separate_ones():
    vae = vae_of("plain")
    first, second = make_frames(4, seed=1), make_frames(4, batch=1, seed=2)
    expected = [streamed(StreamingVaeEncoder(vae), frames, [2, 2]) for frames in (first, second)]
    encoders = [StreamingVaeEncoder(vae), StreamingVaeEncoder(vae)]
    parts: list[list[torch.Tensor]] = [[], []]
    for turn in (slice(0, 5), slice(5, 13)):
        parts[0].append(encoders[0].encode(first[:, turn]))
        whole_encode(vae, make_frames(2))  # the library's own encode in between must not matter either
        parts[1].append(encoders[1].encode(second[:, turn]))
    for part, want in zip(parts, expected, strict=True):
        assert torch.equal(torch.cat(part, dim=1), want)


@pytest.mark.parametrize("kind", [*KINDS, "tiny"])
def test_feature_cache_does_not_grow(kind):
    encoder = StreamingVaeEncoder(vae_of(kind))
    sizes = []
    for part in make_frames(8).split([5, 8, 8, 8], dim=1):
        encoder.encode(part)
        sizes.append(encoder.nbytes)
    assert sizes[0] > 0
    assert len(set(sizes[1:])) == 1


def test_interrupted_encode_leaves_the_stream_as_it_was(monkeypatch):
    vae = vae_of("plain")
    frames = make_frames(4)
    expected = streamed(StreamingVaeEncoder(vae), frames, [2, 2])
    encoder = StreamingVaeEncoder(vae)
    head = encoder.encode(frames[:, :5])
    calls = iter([False, True])
    original = vae.encoder.forward

    def interrupted(*args, **kwargs):
        if next(calls):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(vae.encoder, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(frames[:, 5:])
    assert torch.equal(torch.cat([head, encoder.encode(frames[:, 5:])], dim=1), expected)


@pytest.mark.parametrize("num_frames", [0, 2, 4, 8])
def test_frames_that_make_no_whole_latents_are_refused(num_frames):
    frames = torch.zeros(1, num_frames, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ConfigurationError, match=f"{num_frames} frames make no whole latent frames: .* multiple of 4"):
        StreamingVaeEncoder(vae_of("plain")).encode(frames)


def test_refusals_name_the_shapes():
    encoder = StreamingVaeEncoder(vae_of("plain"))
    for bad in (torch.zeros(1, 1, 16, 16, 3), torch.zeros(1, 1, 16, 12, 3, dtype=torch.uint8)):
        with pytest.raises(ConfigurationError, match=r"\(1, 1, 16, .*uint8, with height and width in multiples of 8"):
            encoder.encode(bad)
    encoder.encode(make_frames(1))
    with pytest.raises(ConfigurationError, match="1 frames make no whole latent frames"):
        encoder.encode(make_frames(1))  # alone it is a whole one at the start only
    with pytest.raises(ConfigurationError, match="do not continue a stream of"):
        encoder.encode(torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ConfigurationError, match=r"has no encoder.*continue from latents"):
        StreamingVaeEncoder(None)
