"""The full cache: every frame of the stream, for every head. The baseline, and the reference for quality."""

from dataclasses import dataclass
from typing import ClassVar

from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies.base import CachePlan, CachePolicy, HeadGroup, all_heads


@dataclass(frozen=True, kw_only=True)
class Full(CachePolicy):
    """Keeps everything; memory and time per chunk grow with the length of the stream."""

    name: ClassVar[str] = "full"

    def plan(self, geometry: FrameGeometry, *, grouped: bool) -> CachePlan:
        """One unbounded group per layer."""
        return CachePlan(layers=((HeadGroup(heads=all_heads(geometry)),),) * geometry.num_layers)
