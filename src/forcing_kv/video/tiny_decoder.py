"""TAEHV's tiny decoder: latents of the Wan2.1 VAE to pixels for a small part of the VAE's work.

A plain stack of 3x3 convolutions over pictures (https://github.com/madebyollin/taehv, MIT; file `taew2_1`). What it
knows of time lies in two kinds of blocks: a memory block reads each picture beside its predecessor, and a growing block
makes two pictures of one. So the last picture that each memory block read is the whole state of a stream. It takes
standardised latents as they are and gives pixels in [0, 1]; the first three pictures lie before the video's beginning.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forcing_kv.errors import CheckpointError, ConfigurationError, SnapshotError
from forcing_kv.geometry import TEMPORAL_STRIDE
from forcing_kv.video.pictures import joined_on_host, stream_shape, to_host, to_uint8

LATENT_CHANNELS = 16
_LEVELS = ((256, 1), (128, 2), (64, 2))
"""Channels of a level, and the pictures that its growing block makes of one; each level doubles rows and columns."""
_LAST_CHANNELS = 64
_HASH_DIGITS = 16
_MEMORY_BLOCKS = 3
"""Per level."""


class _Bounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Softly within -3 to 3."""
        return torch.tanh(x / 3) * 3


class _MemoryBlock(nn.Module):
    """A residual block that reads each picture beside the one before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Pictures and their predecessors, each [N, C, h, w]."""
        return torch.relu(self.conv(torch.cat((x, before), dim=1)) + x)


class _Grow(nn.Module):
    """Makes several pictures of each."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * growth, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N growth, C, h, w], those of one picture together, in the order of time."""
        grown: Tensor = self.conv(x)
        return grown.reshape(-1, *x.shape[1:])


class TinyDecoder(nn.Module):
    """The network; nothing of a stream is kept on it, so any number of streams may share one.

    Its parameters have the names of the released files.
    """

    def __init__(self, name: str = "tiny decoder") -> None:
        """Random weights.

        Args:
            name: What reports call it.
        """
        super().__init__()
        self.name = name
        layers: list[nn.Module] = [_Bounded(), _conv(LATENT_CHANNELS, _LEVELS[0][0]), nn.ReLU()]
        following = [channels for channels, _ in _LEVELS[1:]] + [_LAST_CHANNELS]
        for (channels, growth), next_channels in zip(_LEVELS, following, strict=True):
            layers += [_MemoryBlock(channels) for _ in range(_MEMORY_BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), _Grow(channels, growth), _conv(channels, next_channels, bias=False)]
        layers += [nn.ReLU(), _conv(_LAST_CHANNELS, 3)]
        self.decoder = nn.Sequential(*layers)

    @property
    def num_parameters(self) -> int:
        """Weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, latents: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Decodes one latent frame.

        Args:
            latents: [B, 16, h, w], standardised.
            memory: What the frame before it left; None for the first.

        Returns:
            Pictures [B, 4, 3, 8 h, 8 w], about 0 to 1, and the memory for the next frame: per memory block the last
            picture that it read, [B, C, rows, columns].
        """
        batch = len(latents)
        x, kept = latents, list[Tensor]()
        for layer in self.decoder:
            if isinstance(layer, _MemoryBlock):
                before = None if memory is None else memory[len(kept)]
                kept.append(_by_video(x, batch)[:, -1].clone())  # a view would keep all of them
                x = layer(x, _predecessors(x, before, batch))
            else:
                x = layer(x)
        return _by_video(x, batch), kept


class StreamingTinyDecoder:
    """Decodes the latent frames of one video (or one batch of videos), in order, a few at a time.

    It has the interface of `StreamingVaeDecoder`, and the same promises: frames are decoded one at a time, so that a
    video decoded in parts is the video decoded at once, and memory does not grow.
    """

    def __init__(self, network: TinyDecoder) -> None:
        """Start a fresh stream.

        Args:
            network: On its device and in its dtype; only read.
        """
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._memory: list[Tensor] | None = None
        self._num_latent_frames = 0
        self._latent_shape: tuple[int, int, int] | None = None

    @property
    def num_latent_frames(self) -> int:
        """Latent frames decoded so far."""
        return self._num_latent_frames

    @property
    def nbytes(self) -> int:
        """Bytes held between frames."""
        return sum(tensor.nbytes for tensor in self._memory or ())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latent frames of the stream.

        Args:
            latents: [B, F, 16, h, w], any float dtype, standardised (as the transformer makes them); F >= 1.

        Returns:
            Pixel frames [B, T, H, W, 3], uint8, on the CPU. T is 4 F, less 3 at the start of the stream.

        Raises:
            ConfigurationError: Latents of another shape than the decoder takes, or than the frames before them.
        """
        self._check(latents)
        memory = self._memory  # committed at the end: an interrupted call leaves the stream as it was
        parts = []
        for index in range(latents.shape[1]):
            pictures, memory = self._network(latents[:, index].to(self._device, self._dtype), memory)
            if self._num_latent_frames + index == 0:
                pictures = pictures[:, TEMPORAL_STRIDE - 1 :]
            parts.append(to_host(to_uint8(pictures.transpose(1, 2).float().mul(2.0).sub(1.0))))
            del pictures  # or they would live beside the work on the next frame
        result = joined_on_host(parts, self._device)
        self._memory = memory
        self._num_latent_frames += latents.shape[1]
        self._latent_shape = stream_shape(latents)
        return result

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `StreamingVaeDecoder.state`."""
        tensors = {f"memory.{slot}": tensor for slot, tensor in enumerate(self._memory or ())}
        return tensors, {"num_latent_frames": self._num_latent_frames, "latent_shape": self._latent_shape}

    def load_state(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Go on from where `state` was taken, bit for bit.

        Args:
            tensors: As returned by `state`; any device. They are kept and never written into.
            metadata: As returned by `state`, or read back from JSON.

        Raises:
            SnapshotError: The state is another decoder's, or of another dtype.
        """
        names = [f"memory.{slot}" for slot in range(_MEMORY_BLOCKS * len(_LEVELS))] if tensors else []
        if set(names) != set(tensors) or "num_latent_frames" not in metadata:
            raise SnapshotError(
                "the snapshot was made with another decoder: give the --decoder that the run was begun with, or none"
            )
        for tensor in tensors.values():
            if tensor.dtype != self._dtype:
                raise SnapshotError(
                    f"the snapshot's decoder state is {tensor.dtype}, this decoder is {self._dtype}: use the dtype "
                    "that the snapshot was taken in"
                )
        shape = metadata["latent_shape"]
        self._memory = [tensors[name].to(self._device) for name in names] or None
        self._num_latent_frames = int(metadata["num_latent_frames"])
        self._latent_shape = None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2]))

    def _check(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] < 1 or latents.shape[2] != LATENT_CHANNELS:
            raise ConfigurationError(
                f"latents of shape {tuple(latents.shape)} cannot be decoded: the decoder takes [batch, frames, "
                f"{LATENT_CHANNELS}, rows, columns] with at least one frame"
            )
        if self._latent_shape is not None and stream_shape(latents) != self._latent_shape:
            raise ConfigurationError(
                f"latents of batch, rows, columns {stream_shape(latents)} do not continue a stream of "
                f"{self._latent_shape}: make one decoder per video"
            )


@dataclass(frozen=True, kw_only=True)
class TinyDecoderSize:
    """What decides the memory of a tiny decoder; the same questions as `VaeSize` answers."""

    num_parameters: int

    def weights_bytes(self, dtype: torch.dtype) -> int:
        """All weights."""
        return self.num_parameters * dtype.itemsize

    def feature_bytes(self, num_pixels: int, dtype: torch.dtype) -> int:
        """What a stream keeps between latent frames; `num_pixels` are those of one picture of every batch item."""
        values = sum(_MEMORY_BLOCKS * channels / pixels_each for channels, pixels_each in _level_sizes())
        return round(num_pixels * values * dtype.itemsize)

    def decode_bytes(self, num_pixels: int, dtype: torch.dtype) -> int:
        """The most that is alive at once while latent frames are decoded, what is kept between them included.

        That is behind the last growing block: the four pictures that it makes, at full resolution, and what the
        convolution makes of them; with the memory from before the chunk, that of the frame before, and the new one.
        """
        activations = 2 * TEMPORAL_STRIDE * _LAST_CHANNELS * dtype.itemsize
        pictures = 3 * TEMPORAL_STRIDE * 3  # on their way out: a chunk of three latent frames
        return 3 * self.feature_bytes(num_pixels, dtype) + round(num_pixels * (activations + pictures))


def _level_sizes() -> Iterator[tuple[int, int]]:
    """Channels of each level's memory blocks, and how many pixels of the picture a place of theirs stands for."""
    for index, (channels, _) in enumerate(_LEVELS):
        yield channels, 4 ** (len(_LEVELS) - index)


TINY_DECODER = TinyDecoderSize(num_parameters=9_844_611)
"""Of every file that loads."""


def load_tiny_decoder(path: Path, *, dtype: torch.dtype, device: torch.device) -> TinyDecoder:
    """Loads a released file: `.pth` (weights only, nothing in it is run) or `.safetensors`.

    Args:
        path: A file of the TAEHV family for 16 latent channels; an encoder in it is left alone.
        dtype: To compute in.
        device: Where to compute.

    Raises:
        CheckpointError: It cannot be read, or its weights are not this decoder's; the message lists what differs.
    """
    from forcing_kv.models.checkpoint import read_checkpoint
    from forcing_kv.models.lora import listed

    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the tiny decoder's file, such as {path / 'taew2_1.pth'}")
    stored = {name: tensor for name, tensor in read_checkpoint(path).items() if not name.startswith("encoder.")}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with torch.device("meta"):
        network = TinyDecoder(f"{path.name} (sha256 {digest[:_HASH_DIGITS]})")
    wanted = network.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in stored]
    problems += [f"unexpected {name}" for name in stored if name not in wanted]
    problems += [
        f"{name} is {list(stored[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tuple(tensor.shape)
    ]
    if problems:
        raise CheckpointError(
            f"{path} is no tiny decoder for the latents of Wan2.1 (TAEHV's taew2_1.pth or .safetensors is one): "
            f"{listed(problems)}"
        )
    weights = {name: tensor.read().to(device, dtype, copy=True) for name, tensor in stored.items()}
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def _by_video(x: Tensor, batch: int) -> Tensor:
    """[B T, C, h, w] -> [B, T, C, h, w]."""
    return x.view(batch, -1, *x.shape[1:])


def _predecessors(x: Tensor, before: Tensor | None, batch: int) -> Tensor:
    """Of pictures [B T, C, h, w] those one earlier; before the first lies `before` [B, C, h, w], or zeros."""
    pictures = _by_video(x, batch)
    before = torch.zeros_like(pictures[:, 0]) if before is None else before
    return torch.cat((before[:, None], pictures[:, :-1]), dim=1).flatten(0, 1)


def _conv(num_in: int, num_out: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, padding=1, bias=bias)
