"""What a video goes on from: the latents of another one, or a video file, which the VAE then encodes.

A source is looked at before the model is loaded, so that one that does not fit is refused at once, and read when the
model is there. Only whole chunks can be continued. Of latents the first ones are taken, and what is behind them is
made anew; of a video the last frames are taken, because a continuation follows the end of what is seen.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forcing_kv.continuation import given_latents, latents_resolution
from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.geometry import TEMPORAL_STRIDE, filled_latent_frames, pixel_frames, start_seconds
from forcing_kv.models import ModelPreset
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.prompt_schedule import PromptSchedule, schedule_from_json, shifted, taken_over
from forcing_kv.resolution import nearest_resolution
from forcing_kv.video import StreamingVaeEncoder, VideoInfo, iterate_frames, probe

LATENTS_SUFFIX = ".safetensors"
_HASH_DIGITS = 16
_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that a video goes on from, looked at and found to fit; `open_source` makes one.

    Attributes:
        name: The file's name and a hash of its content, so that the metadata of what goes on tells sources apart.
        given_frames: Latent frames that are taken of it: whole chunks.
        resolution: Width and height in pixels.
        first_frames_left_out: Pixel frames at its beginning that are not taken.
        last_frames_left_out: Pixel frames at its end that are not taken.
        prompts: What it was made from, if it says so, from the first frame that is taken.
        read: Gives what is taken, [given_frames, channels, height, width], float32, standardised, on the CPU. Raises
            `ConfigurationError` for a video where the VAE cannot encode, `OutputError` for one that breaks off.
    """

    name: str
    given_frames: int
    resolution: tuple[int, int]
    first_frames_left_out: int = 0
    last_frames_left_out: int = 0
    prompts: PromptSchedule | None = None
    read: Callable[[VideoPipeline], Tensor]

    def continued_with(self, prompts: PromptSchedule, *, fps: float) -> PromptSchedule:
        """Prompts of the whole: what the source was made from, and from its end on `prompts`.

        A model that is told of something else than it is shown goes on badly, so what is given keeps its own prompt
        where that is known. Times of `prompts` count from the beginning of the whole.
        """
        if self.prompts is None:
            return prompts
        return taken_over(self.prompts, prompts, at_seconds=start_seconds(self.given_frames, fps))


def open_source(
    path: Path,
    *,
    preset: ModelPreset,
    num_channels: int,
    resolution: tuple[int, int] | None = None,
    has_encoder: bool = True,
) -> Source:
    """Looks at a file that a video is to go on from; safetensors hold latents, anything else is a video.

    Args:
        path: The file.
        preset: Of the model that goes on: its chunks and frame rate.
        num_channels: Channels of the model's latents.
        resolution: Width and height in pixels that are asked for; None for the file's own.
        has_encoder: Whether the model's VAE is there, which turns a video into latents.

    Raises:
        ConfigurationError: The file is missing, cannot be continued, needs an encoder that is not there, or does not
            fit the model or the resolution.
        OutputError: It should be a video, and is none.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    # A safetensors file begins with eight bytes of length and then JSON; no video does.
    if path.suffix == LATENTS_SUFFIX or head[8:] == b"{":
        return _latents_source(path, preset, num_channels, resolution)
    if not has_encoder:
        raise ConfigurationError(
            f"{path} cannot be turned into latents: the tiny decoder took the place of the model's VAE; leave out "
            "--decoder, or continue from latents (--save-latents keeps them)"
        )
    return _video_source(path, preset, resolution)


def _latents_source(path: Path, preset: ModelPreset, num_channels: int, resolution: tuple[int, int] | None) -> Source:
    stored, metadata = _stored_latents(path)
    try:
        (latents,) = given_latents(
            stored,
            batch_size=1,
            chunk_frames=preset.chunk_frames,
            num_channels=num_channels,
            resolution=resolution,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    # Of the values, not of the file: one written twice has its metadata in another order.
    digest = hashlib.sha256(latents.contiguous().numpy())
    return Source(
        name=_name(path, digest.hexdigest()),
        given_frames=len(latents),
        resolution=latents_resolution(latents),
        last_frames_left_out=TEMPORAL_STRIDE * (stored.shape[-4] - len(latents)),
        prompts=_recorded_prompts(metadata),
        read=lambda _: latents,
    )


def _stored_latents(path: Path) -> tuple[Tensor, dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            names = sorted(file.keys())
            if "latents" in names:
                return file.get_tensor("latents"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path} cannot be read as latents: {error}") from error
    listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
    raise ConfigurationError(
        f"{path} holds no latents but {listed or 'nothing'}: give a file that --save-latents wrote, or a video"
    )


def _video_source(path: Path, preset: ModelPreset, resolution: tuple[int, int] | None) -> Source:
    info = probe(path)
    own_resolution = (info.width, info.height)
    wanted = resolution or nearest_resolution(*own_resolution)
    if own_resolution != wanted or round(info.fps, 2) != preset.fps:
        raise ConfigurationError(
            f"{path} is {info.width}x{info.height} at {info.fps:g} frames per second, and must be "
            f"{wanted[0]}x{wanted[1]} at {preset.fps} to be continued: {_conversion(path, wanted, preset.fps)}"
        )
    shortest = pixel_frames(preset.chunk_frames)
    if info.num_frames < shortest:
        raise ConfigurationError(
            f"{path} has {info.num_frames} frames, too few to be continued: at least {shortest} are needed, one chunk"
        )
    num_filled = filled_latent_frames(info.num_frames)
    given_frames = num_filled - num_filled % preset.chunk_frames
    first_frames_left_out = info.num_frames - pixel_frames(given_frames)
    prompts = _recorded_prompts(info.metadata)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Source(
        name=_name(path, digest.hexdigest()),
        given_frames=given_frames,
        resolution=own_resolution,
        first_frames_left_out=first_frames_left_out,
        prompts=None if prompts is None else shifted(prompts, seconds=first_frames_left_out / preset.fps),
        read=lambda pipeline: _encode(path, info, given_frames, pipeline),
    )


def _recorded_prompts(metadata: Mapping[str, str]) -> PromptSchedule | None:
    """The prompts in the metadata that this program writes; None for a file of another program."""
    try:
        return schedule_from_json(json.loads(metadata["comment"])["prompt"])
    except (KeyError, TypeError, ValueError):
        return None


def _name(path: Path, digest: str) -> str:
    return f"{path.name} (sha256 {digest[:_HASH_DIGITS]})"


def _conversion(path: Path, resolution: tuple[int, int], fps: int) -> str:
    return shlex.join(["ffmpeg", "-i", str(path), "-vf", f"scale={resolution[0]}:{resolution[1]},fps={fps}", "out.mp4"])


def _encode(path: Path, info: VideoInfo, given_frames: int, pipeline: VideoPipeline) -> Tensor:
    """The last frames of a video as latents; a chunk of pictures is in memory at a time."""
    encoder = StreamingVaeEncoder(pipeline.vae)
    chunk_frames = pipeline.preset.chunk_frames
    pictures = iterate_frames(path)
    num_decoded = sum(1 for _ in islice(pictures, info.num_frames - pixel_frames(given_frames)))
    parts: list[Tensor] = []
    for num_latents in range(chunk_frames, given_frames + 1, chunk_frames):
        size = pixel_frames(num_latents) - pixel_frames(num_latents - chunk_frames)
        chunk = list(islice(pictures, size))
        num_decoded += len(chunk)
        if len(chunk) == size:
            parts.append(encoder.encode(torch.stack(chunk)[None])[0].cpu())
    num_decoded += sum(1 for _ in pictures)
    if num_decoded != info.num_frames:
        raise OutputError(
            f"{path} is damaged: {num_decoded} of its {info.num_frames} frames can be decoded; repair it with "
            f"{_conversion(path, (info.width, info.height), pipeline.preset.fps)}"
        )
    return torch.cat(parts)
