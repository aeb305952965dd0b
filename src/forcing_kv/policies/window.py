"""The window cache: sink frames and a sliding window, the same for every head (LongLive's rule)."""

from dataclasses import dataclass
from typing import ClassVar

from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies.base import CachePlan, CachePolicy, HeadGroup, all_heads, check_at_least


@dataclass(frozen=True, kw_only=True)
class Window(CachePolicy):
    """Keeps the sink and the newest frames; attention reads at most `window_frames` frames.

    Attributes:
        window_frames: Frames read, sink and current chunk included.
        sink_frames: First frames of the stream, kept for ever.
    """

    window_frames: int = 12
    sink_frames: int = 3

    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        check_at_least(self, 1, "window_frames")
        check_at_least(self, 0, "sink_frames")

    def plan(self, geometry: FrameGeometry, *, grouped: bool) -> CachePlan:
        """One group per layer: sink, and what the window leaves after sink and current chunk."""
        recent_frames = self.window_frames - self.sink_frames - geometry.chunk_frames
        if recent_frames < 0:
            raise ConfigurationError(
                f"window_frames={self.window_frames} cannot hold sink_frames={self.sink_frames} and a chunk of "
                f"{geometry.chunk_frames}; make it at least {self.sink_frames + geometry.chunk_frames}"
            )
        group = HeadGroup(heads=all_heads(geometry), sink_frames=self.sink_frames, recent_frames=recent_frames)
        return CachePlan(layers=((group,),) * geometry.num_layers)
