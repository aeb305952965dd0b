"""What came out of a run: sizes, speed, memory, and everything needed to make the same video again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forcing_kv.generation.request import VideoRequest
from forcing_kv.versions import versions
from forcing_kv.video import probe


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """One video file.

    Attributes:
        path: The MP4.
        prompt: The text, or the schedule as in a prompt file.
        frames: Pixel frames in the file.
        frames_given: Pixel frames in the file that were given, not made: its beginning.
        frames_requested: Pixel frames asked for, those given not counted.
        frames_made: Pixel frames made by this run; fewer than all that are new after a resume. Speeds count these.
        width: In pixels.
        height: In pixels.
        fps_video: Frames per second of the video.
        given_ms: Reading what was given, and committing, decoding and writing it, over this run; in no speed.
        text_ms: Time of the text encoder, over the run, as are the next ones.
        diffusion_ms: All transformer passes: denoising, commit, re-cache. Where decoding is overlapped, by the clock,
            while the device is shared with it.
        decode_ms: The decoder's own time, which is beside that of the passes where it is overlapped.
        encode_ms: H.264's own time, likewise, and joining the file.
        waited_ms: Time by the clock in which no pass ran because decoding, writing or joining was not done; without
            overlap all of `decode_ms` and `encode_ms`, with it what could not be hidden.
        snapshot_ms: Writing snapshots to resume from; in no speed, but for what of it makes the passes wait where they
            are overlapped.
        cache_bytes: Held by the cache at the end.
        full_cache_bytes: What a cache of every frame would hold at that point.
        policy: Spelling, settings included.
        positions: How temporal positions were counted.
        kv_dtype: How the cache stored keys and values; None for as they are.
        step_cache: Threshold under which denoising steps left their blocks out; None where none did.
        steps_skipped: Of each chunk's denoising steps, those that did.
        attention: Back end that computed attention to the history.
        model: Name.
        weights: What tells its weights from others.
        device: Where it ran.
        dtype: What it was computed in.
        decoder: Which decoder made pixels: the model's VAE, or the name and content hash of a tiny decoder's file.
        decoder_dtype: What that computed in.
        decoder_layout: How its weights lay in memory.
        decoder_compiled: Whether it went through `torch.compile`.
        overlapped: Whether chunks were decoded and written beside the passes of the next one.
        seed: Of the noise.
        continue_from: Name and content hash of what was given, if anything.
        first_frames_left_out: Pixel frames at the beginning of what was given that are not in the file.
        last_frames_left_out: Those at its end, in place of which others were made.
        precision: Of the linear layers; None for `dtype`.
        execution: How passes were run.
        compile_ms: Compiling, and capturing graphs; in the end-to-end speed alone.
        interrupted: Whether the run was stopped before all chunks were made.
        versions: Of this package and of what it runs on.
    """

    path: Path
    prompt: str | list[dict[str, Any]]
    frames: int
    frames_given: int
    frames_requested: int
    frames_made: int
    width: int
    height: int
    fps_video: float
    given_ms: float
    text_ms: float
    diffusion_ms: float
    decode_ms: float
    encode_ms: float
    waited_ms: float
    snapshot_ms: float
    cache_bytes: int
    full_cache_bytes: int
    policy: str
    positions: str
    kv_dtype: str | None
    step_cache: float | None
    steps_skipped: int
    attention: str
    model: str
    weights: str
    device: str
    dtype: str
    decoder: str
    decoder_dtype: str
    decoder_layout: str
    decoder_compiled: bool
    overlapped: bool
    seed: int
    continue_from: str | None = None
    first_frames_left_out: int = 0
    last_frames_left_out: int = 0
    precision: str | None = None
    execution: str = "eager"
    compile_ms: float = 0.0
    interrupted: bool = False
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def seconds_video(self) -> float:
        """Length of the video."""
        return self.frames / self.fps_video

    @property
    def fps_diffusion(self) -> float:
        """Pixel frames made per second of transformer passes, commit included."""
        return _per_second(self.frames_made, self.diffusion_ms)

    @property
    def fps_end_to_end(self) -> float:
        """Pixel frames made per second of all it took, by the clock: overlaps count once."""
        return _per_second(self.frames_made, self.text_ms + self.compile_ms + self.diffusion_ms + self.waited_ms)

    def to_json(self) -> dict[str, Any]:
        """The document `generate --json` writes."""
        return {
            **asdict(self),
            "path": str(self.path),
            "seconds_video": self.seconds_video,
            "fps_diffusion": round(self.fps_diffusion, 3),
            "fps_end_to_end": round(self.fps_end_to_end, 3),
        }


def skipped_json(request: VideoRequest) -> dict[str, Any]:
    """The document for a video that an earlier run has finished: what its file says, without speeds."""
    info = probe(request.path)
    return {
        "path": str(request.path),
        "skipped": True,
        "frames": info.num_frames,
        "width": info.width,
        "height": info.height,
        "seconds_video": info.num_frames / info.fps,
        **json.loads(info.metadata["comment"]),
    }


def _per_second(count: int, milliseconds: float) -> float:
    return 1e3 * count / milliseconds if milliseconds else 0.0
