"""What a metric is: one number per video, made of series that are measured while the video is made.

A `Series` looks at a video chunk by chunk, beside the same chunk of the reference, and gives a value per frame, per
pair of frames or per chunk; only those values are kept, so memory does not grow with the video. A `Metric` turns series
into the number that is reported. What they need that may be missing here (a library, weights) is told before any work.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from forcing_kv.tiny.scoring.shares import Rights

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class Better(Enum):
    """Which values of a metric are the better ones."""

    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEAR_ONE = "nearest 1 is best"
    NEITHER = "neither is better"


@dataclass(frozen=True, kw_only=True)
class ChunkPair:
    """One chunk of a video, and the same chunk of the reference.

    Attributes:
        frames: uint8 [frames, H, W, 3].
        previous: The last frame before them, uint8 [H, W, 3]; None at the start of the video.
        latents: float32 [latent_frames, channels, rows, columns].
        reference_frames: As `frames`; None where the video is the reference itself.
        reference_latents: As `latents`; None where the video is the reference itself.
    """

    frames: Pixels
    previous: Pixels | None
    latents: npt.NDArray[np.float32]
    reference_frames: Pixels | None = None
    reference_latents: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What series are measured with.

    Attributes:
        flow: Name of the optical flow.
        device: Where networks that measure run.
    """

    flow: str = "dis"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


Meter = Callable[[ChunkPair], Floats]
"""From a chunk to its values: one per frame, per pair of frames (that with the frame before included), or one."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Something that is measured all along a video.

    Attributes:
        name: In files.
        per: What it has a value of.
        open: Makes a meter, which holds nothing of a video. Raises `ConfigurationError` where a library or weights are
            missing; the message says how they are had.
        against_reference: Whether it compares with the reference; then the reference has none.
    """

    name: str
    per: Literal["frame", "pair", "chunk"]
    open: Callable[[Tools], Meter]
    against_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a finished video.

    Attributes:
        series: Values by name of the series.
        chunk_starts: The pixel frame with which each chunk begins.
        num_frames: Pixel frames.
        rights: What is right by the rules of the model's world; None where nothing judges it.
    """

    series: Mapping[str, Floats]
    chunk_starts: tuple[int, ...]
    num_frames: int
    rights: Rights | None = None

    def by_chunk(self, name: str, per: str) -> list[Floats]:
        """The values of a series chunk by chunk; a pair belongs to the chunk of its second frame."""
        values = self.series[name]
        if per == "chunk":
            return np.split(values, len(values))
        offset = 1 if per == "pair" else 0
        return np.split(values, [start - offset for start in self.chunk_starts[1:]])

    def quarters(self, name: str) -> tuple[Floats, Floats]:
        """The values of a series per frame in the first and in the last quarter of the video, at least one each."""
        size = max(1, self.num_frames // 4)
        return self.series[name][:size], self.series[name][-size:]


Compute = Callable[[Measured, Measured], float | None]
"""From a video and its reference to a number; None where it is not defined."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a metric goes on over a video, or over a chunk.

    Attributes:
        title: What its axis shows, with the unit.
        of: From a video and its reference to a value per chunk or place; NaN where there is none.
        finish: From the mean of `of` over the prompts to what is drawn.
        over: `seconds`, a value per chunk; or `place`, a value per pixel frame of a chunk.
    """

    title: str
    of: Callable[[Measured, Measured], Floats]
    finish: Callable[[Floats], Floats] = lambda values: values
    over: Literal["seconds", "place"] = "seconds"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number per video.

    Attributes:
        name: On the command line and in files.
        title: In tables.
        group: Under which heading it stands.
        unit: Of the number; empty for a plain one.
        better: Which values are better.
        about: What it means, and what it cannot tell, in a sentence or two.
        compute: Its definition.
        series: What it is made of.
        against_reference: Whether it compares with the reference; then the reference has none.
        needs_world: Whether it is about what the model's world has rules for.
        is_optional: Whether `all` leaves it out where its libraries or weights are missing.
        curve: Its course, if it is worth a picture.
        digits: Digits behind the point, in tables.
    """

    name: str
    title: str
    group: str
    unit: str = ""
    better: Better
    about: str
    compute: Compute
    series: tuple[Series, ...] = ()
    against_reference: bool = False
    needs_world: bool = False
    is_optional: bool = False
    curve: Curve | None = None
    digits: int = 2

    @property
    def uses_flow(self) -> bool:
        """Whether the kind of optical flow must stand beside it."""
        return any(series.name == "flow" for series in self.series)

    def to_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"title": self.title, "unit": self.unit, "better": self.better.value, "about": self.about}


def chunk_means(measured: Measured, name: str, per: str) -> Floats:
    """The mean of a series over each chunk; NaN for a chunk without a value."""
    parts = measured.by_chunk(name, per)
    return np.array([part.mean() if len(part) else np.nan for part in parts], dtype=np.float64)
