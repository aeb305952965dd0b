"""Streamed decode equals whole decode, for every way of cutting a video into chunks."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from forcing_kv.errors import ConfigurationError, SnapshotError
from forcing_kv.video import StreamingVaeDecoder
from vaes import CHANNELS, KINDS, random_vae


@pytest.fixture(params=KINDS)
def vae(request) -> AutoencoderKLWan:
    return random_vae(request.param)


def make_latents(num_frames: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, num_frames, CHANNELS, 3, 5, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole_decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The library's own decode of everything at once, as uint8 [B, T, H, W, 3]."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    pixels = vae.decode(latents.transpose(1, 2) * std + mean).sample
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def streamed(decoder: StreamingVaeDecoder, latents: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    return torch.cat([decoder.decode(part) for part in latents.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 3, 1], [2, 5], [1, 2, 3, 1]], ids=str)
def test_streamed_decode_equals_whole_decode(vae, chunks):
    latents = make_latents(7)
    expected = whole_decode(vae, latents)
    frames = streamed(StreamingVaeDecoder(vae), latents, chunks)
    assert frames.dtype == torch.uint8
    assert frames.shape == expected.shape
    assert frames.shape[1] == 4 * 7 - 3
    assert torch.equal(frames, expected)
    assert expected.float().std() > 1  # not a flat picture that anything would match


def test_first_latent_frame_is_one_picture_and_later_ones_four(vae):
    decoder = StreamingVaeDecoder(vae)
    latents = make_latents(6, batch=1)
    assert [decoder.decode(part).shape[1] for part in latents.split([1, 3, 2], dim=1)] == [1, 12, 8]
    assert decoder.num_latent_frames == 6


def test_interleaved_streams_equal_separate_ones(vae):
    first, second = make_latents(6, seed=1), make_latents(6, batch=1, seed=2)
    expected = [streamed(StreamingVaeDecoder(vae), latents, [3, 3]) for latents in (first, second)]
    decoders = [StreamingVaeDecoder(vae), StreamingVaeDecoder(vae)]
    parts: list[list[torch.Tensor]] = [[], []]
    for index in range(2):
        parts[0].append(decoders[0].decode(first[:, 3 * index : 3 * index + 3]))
        whole_decode(vae, make_latents(2))  # the library's own decode in between must not matter either
        parts[1].append(decoders[1].decode(second[:, 3 * index : 3 * index + 3]))
    for part, want in zip(parts, expected, strict=True):
        assert torch.equal(torch.cat(part, dim=1), want)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_state_goes_through_a_file_and_on_bit_for_bit(vae, cut, tmp_path: Path):
    latents = make_latents(6)
    expected = streamed(StreamingVaeDecoder(vae), latents, [6])
    decoder = StreamingVaeDecoder(vae)
    head = decoder.decode(latents[:, :cut]) if cut else expected[:, :0]
    tensors, metadata = decoder.state()
    save_file(tensors, tmp_path / "state.safetensors")
    decoder.decode(latents[:, cut : cut + 1])  # what the old stream does next must not change the state
    restored = StreamingVaeDecoder(vae)
    restored.load_state(load_file(tmp_path / "state.safetensors"), metadata)
    assert restored.num_latent_frames == cut
    assert torch.equal(torch.cat([head, restored.decode(latents[:, cut:])], dim=1), expected)


def test_bfloat16_vae_takes_float32_latents():
    vae = random_vae().to(torch.bfloat16)
    latents = make_latents(4)
    frames = streamed(StreamingVaeDecoder(vae), latents, [1, 3])
    assert torch.equal(frames, streamed(StreamingVaeDecoder(vae), latents, [2, 2]))


def test_feature_cache_does_not_grow(vae):
    decoder = StreamingVaeDecoder(vae)
    latents = make_latents(8)
    sizes = []
    for part in latents.split(2, dim=1):
        decoder.decode(part)
        sizes.append(decoder.nbytes)
    assert sizes[0] > 0
    assert len(set(sizes[1:])) == 1


def test_an_interrupted_decoder_goes_on_from_a_state_only(monkeypatch):
    vae = random_vae()
    latents = make_latents(4)
    decoder = StreamingVaeDecoder(vae)
    expected = streamed(StreamingVaeDecoder(vae), latents, [2, 2])
    head = decoder.decode(latents[:, :2])
    state = decoder.state()
    calls = iter([False, True])
    original = vae.decoder.forward

    def interrupted(*args, **kwargs):
        if next(calls):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(vae.decoder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.decode(latents[:, 2:])
    monkeypatch.setattr(vae.decoder, "forward", original)
    assert decoder.nbytes == 0
    for use in (lambda: decoder.decode(latents[:, 2:]), decoder.state):
        with pytest.raises(SnapshotError, match="interrupted within a chunk: restore a snapshot, or start over"):
            use()
    decoder.load_state(*state)
    assert torch.equal(torch.cat([head, decoder.decode(latents[:, 2:])], dim=1), expected)


def test_refusals_name_the_shapes():
    decoder = StreamingVaeDecoder(random_vae())
    with pytest.raises(ConfigurationError, match=r"\(1, 2, 7, 3, 5\).*\[batch, frames, 4, rows, columns\]"):
        decoder.decode(torch.zeros(1, 2, 7, 3, 5))
    with pytest.raises(ConfigurationError, match="at least one frame"):
        decoder.decode(torch.zeros(1, 0, CHANNELS, 3, 5))
    decoder.decode(torch.zeros(1, 1, CHANNELS, 3, 5))
    with pytest.raises(ConfigurationError, match="do not continue a stream"):
        decoder.decode(torch.zeros(2, 1, CHANNELS, 3, 5))
    tensors, metadata = decoder.state()
    with pytest.raises(SnapshotError, match="feature slots"):
        StreamingVaeDecoder(random_vae("residual")).load_state(tensors, {**metadata, "num_slots": 3})
    with pytest.raises(SnapshotError, match="dtype"):
        StreamingVaeDecoder(random_vae().to(torch.bfloat16)).load_state(tensors, metadata)
