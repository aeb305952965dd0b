"""Looking on while a `StreamCache` attends: who asks to is told what each head group reads.

An observer changes nothing and is there for the length of a `with` block (`StreamCache.observed_by`); outside of one,
attention does exactly the work it always does.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionRead:
    """What the heads of one group read in one call of `StreamCache.attend`; views, valid during the call only.

    Attributes:
        layer: Which layer calls.
        heads: Released number of each head, in the order of the head axis of `q` and `k`.
        q: Queries of the current chunk, [batch, chunk_tokens, heads, head_dim].
        k: All keys that they read, [batch, len(key_frames) * frame_tokens, heads, head_dim].
        key_frames: Absolute index of every key frame, in the order in which they lie in `k`.
        first_frame: Absolute index of the current chunk's first frame.
    """

    layer: int
    heads: tuple[int, ...]
    q: Tensor
    k: Tensor
    key_frames: tuple[int, ...]
    first_frame: int


class AttentionObserver(Protocol):
    """Who looks on."""

    def observe(self, read: AttentionRead) -> None:
        """Called for every head group of every layer in every pass, after it has attended."""
        ...
