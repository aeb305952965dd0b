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
        diffusion_ms: All transformer passes: denoising, commit, re-cache.
        decode_ms: VAE.
        encode_ms: H.264, and joining the file.
        snapshot_ms: Writing snapshots to resume from; in no speed.
        cache_bytes: Held by the cache at the end.
        full_cache_bytes: What a cache of every frame would hold at that point.
        policy: Spelling, settings included.
        positions: How temporal positions were counted.
        kv_dtype: How the cache stored keys and values; None for as they are.
        step_cache: Threshold under which denoising steps left their blocks out; None where none did.
        steps_skipped: Of each chunk's denoising steps, those that did.
        model: Name.
        weights: What tells its weights from others.
        device: Where it ran.
        dtype: What it was computed in.
        seed: Of the noise.
        continue_from: Name and content hash of what was given, if anything.
        first_frames_left_out: Pixel frames at the beginning of what was given that are not in the file.
        last_frames_left_out: Those at its end, in place of which others were made.
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
    snapshot_ms: float
    cache_bytes: int
    full_cache_bytes: int
    policy: str
    positions: str
    kv_dtype: str | None
    step_cache: float | None
    steps_skipped: int
    model: str
    weights: str
    device: str
    dtype: str
    seed: int
    continue_from: str | None = None
    first_frames_left_out: int = 0
    last_frames_left_out: int = 0
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
        """Pixel frames made per second of text, diffusion, decode and encode."""
        return _per_second(self.frames_made, self.text_ms + self.diffusion_ms + self.decode_ms + self.encode_ms)

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
