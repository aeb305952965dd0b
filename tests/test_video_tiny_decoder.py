"""The tiny decoder: the released files' names and shapes, its mathematics, and streams of it."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from forcing_kv.errors import CheckpointError, ConfigurationError, SnapshotError
from forcing_kv.resolution import NAMED_RESOLUTIONS
from forcing_kv.video import TINY_DECODER, WAN_VAE, StreamingTinyDecoder, TinyDecoder, load_tiny_decoder
from peak_memory import dry_run
from tiny_decoders import released_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    return released_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "taew2_1.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return load_tiny_decoder(file, dtype=torch.float32, device=CPU)


def make_latents(num_frames, batch=2, seed=1):
    return torch.randn(batch, num_frames, 16, 3, 2, generator=torch.Generator().manual_seed(seed))


def whole_decode(weights, latents):
    """All frames at once, layer by layer, from the names in the file alone: uint8 [T, H, W, 3] of one video."""
    w = {name.removeprefix("decoder."): tensor.float() for name, tensor in weights.items()}

    def conv(index, x):
        return F.conv2d(x, w[f"{index}.weight"], w.get(f"{index}.bias"), padding=1)

    def block(index, x):
        before = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        y = torch.cat((x, before), dim=1)
        for part in (0, 2, 4):
            y = conv(f"{index}.conv.{part}", y)
            y = y.relu() if part < 4 else y
        return (y + x).relu()

    def grow(index, x):
        y = F.conv2d(x, w[f"{index}.conv.weight"])
        return y.reshape(-1, x.shape[1], *x.shape[2:])

    x = conv(1, (latents / 3).tanh() * 3).relu()
    for first in (3, 9, 15):
        for index in range(first, first + 3):
            x = block(index, x)
        x = conv(first + 5, grow(first + 4, F.interpolate(x, scale_factor=2)))
    x = conv(22, x.relu())[3:].clamp(0, 1)
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def streamed(decoder, latents, chunks):
    return torch.cat([decoder.decode(part) for part in latents.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("chunks", [[5], [1] * 5, [3, 2], [1, 3, 1]], ids=str)
def test_streamed_decode_equals_whole_decode(network, weights, chunks):
    latents = make_latents(5)
    frames = streamed(StreamingTinyDecoder(network), latents, chunks)
    assert torch.equal(frames, streamed(StreamingTinyDecoder(network), latents, [5]))
    assert frames.shape == (2, 17, 24, 16, 3)
    for video, of_one in zip(frames, latents, strict=True):
        expected = whole_decode(weights, of_one)
        # Another order of the same sums: half a level may round to either side.
        assert (video.int() - expected.int()).abs().max() <= 1
        assert (video == expected).float().mean() > 0.99
    assert frames.float().std() > 10


def test_the_past_matters(network):
    latents = make_latents(3, batch=1)
    decoder = StreamingTinyDecoder(network)
    with_past = [decoder.decode(part) for part in latents.split(1, dim=1)][2]
    fresh = StreamingTinyDecoder(network)
    fresh.decode(make_latents(1, batch=1, seed=9))
    assert not torch.equal(fresh.decode(latents[:, 2:]), with_past)


def test_interleaved_streams_equal_separate_ones(network):
    videos = [make_latents(4, seed=1), make_latents(4, batch=1, seed=2)]
    decoders = [StreamingTinyDecoder(network) for _ in videos]
    parts = [
        [decoder.decode(video[:, at : at + 2]) for decoder, video in zip(decoders, videos, strict=True)]
        for at in (0, 2)
    ]
    for number, video in enumerate(videos):
        together = torch.cat([turn[number] for turn in parts], dim=1)
        assert torch.equal(together, streamed(StreamingTinyDecoder(network), video, [4]))


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_state_goes_on_bit_for_bit(network, cut):
    latents = make_latents(4)
    expected = streamed(StreamingTinyDecoder(network), latents, [4])
    decoder = StreamingTinyDecoder(network)
    head = decoder.decode(latents[:, :cut]) if cut else expected[:, :0]
    state = decoder.state()
    decoder.decode(make_latents(1))
    restored = StreamingTinyDecoder(network)
    restored.load_state(*state)
    assert restored.num_latent_frames == cut
    assert torch.equal(torch.cat([head, restored.decode(latents[:, cut:])], dim=1), expected)


def test_memory_does_not_grow_and_is_what_is_planned(network):
    decoder, sizes = StreamingTinyDecoder(network), []
    for part in make_latents(6).split(2, dim=1):
        decoder.decode(part)
        sizes.append(decoder.nbytes)
    assert sizes == [TINY_DECODER.feature_bytes(2 * 24 * 16, torch.float32)] * 3
    assert TINY_DECODER.num_parameters == network.num_parameters
    assert TINY_DECODER.weights_bytes(torch.float16) == 2 * network.num_parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decode_bytes_are_what_is_alive(network, dtype):
    with torch.device("meta"):
        network = TinyDecoder().to(dtype)
    peaks = []
    for num_chunks in (3, 12):
        with dry_run() as memory:
            decoder = StreamingTinyDecoder(network)
            for _ in range(num_chunks):
                decoder.decode(torch.empty(1, 3, 16, 60, 104, device="meta"))
        peaks.append(memory.peak_bytes)
    assert peaks[0] == peaks[1]  # however long the video
    assert peaks[0] <= TINY_DECODER.decode_bytes(832 * 480, dtype) <= 1.25 * peaks[0]


def test_the_page_has_the_figures():
    page = (Path(__file__).parent.parent / "docs" / "decode.md").read_text()
    for name, size in (("VAE of Wan2.1", WAN_VAE), ("tiny decoder", TINY_DECODER)):
        needs = []
        for resolution in ("480p", "720p", "1080p"):
            num_pixels = math.prod(NAMED_RESOLUTIONS[resolution])
            needs.append(size.weights_bytes(torch.bfloat16) + size.decode_bytes(num_pixels, torch.bfloat16))
        assert f"| {name} | {' | '.join(f'{need / 1e9:.1f} GB' for need in needs)} |" in page


def test_both_containers_with_and_without_an_encoder(network, weights, tmp_path):
    decoder_only = {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}
    save_file(weights, tmp_path / "taew2_1.safetensors")
    save_file(decoder_only, tmp_path / "decoder.safetensors")
    for name in ("taew2_1", "decoder"):
        loaded = load_tiny_decoder(tmp_path / f"{name}.safetensors", dtype=torch.bfloat16, device=CPU)
        assert loaded.name.startswith(f"{name}.safetensors (sha256 ")
        for key, tensor in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor.bfloat16())


def test_wrong_files_are_refused_by_name(weights, tmp_path):
    def refused(change, message):
        changed = dict(weights)
        change(changed)
        torch.save(changed, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=message) as caught:
            load_tiny_decoder(tmp_path / "wrong.pth", dtype=torch.float32, device=CPU)
        assert "taew2_1" in str(caught.value)

    refused(lambda w: w.pop("decoder.9.conv.2.bias"), "missing decoder.9.conv.2.bias$")
    refused(lambda w: w.update({"decoder.23.weight": torch.zeros(1)}), "unexpected decoder.23.weight$")
    wan22 = {"decoder.1.weight": torch.zeros(256, 48, 3, 3)}
    refused(lambda w: w.update(wan22), r"decoder.1.weight is \[256, 48, 3, 3\], not \[256, 16, 3, 3\]$")
    torch.save({"weights": object()}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="is refused: it is no plain file of weights"):
        load_tiny_decoder(tmp_path / "code.pth", dtype=torch.float32, device=CPU)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tiny_decoder(tmp_path / "none.pth", dtype=torch.float32, device=CPU)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_tiny_decoder(tmp_path, dtype=torch.float32, device=CPU)


def test_refusals_name_the_shapes(network):
    decoder = StreamingTinyDecoder(network)
    with pytest.raises(ConfigurationError, match=r"\(1, 2, 4, 3, 2\).*\[batch, frames, 16, rows, columns\]"):
        decoder.decode(torch.zeros(1, 2, 4, 3, 2))
    decoder.decode(make_latents(1))
    with pytest.raises(ConfigurationError, match="do not continue a stream"):
        decoder.decode(make_latents(1, batch=1))
    tensors, metadata = decoder.state()
    with pytest.raises(SnapshotError, match="another decoder"):
        decoder.load_state({"feature.000": tensors["memory.0"]}, metadata)
    half = {name: tensor.half() for name, tensor in tensors.items()}
    with pytest.raises(SnapshotError, match=r"torch\.float16, this decoder is torch\.float32"):
        decoder.load_state(half, metadata)
