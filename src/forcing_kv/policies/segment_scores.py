"""Rules by which a commit scores the segments of the frames that leave the recent part; the lowest are kept.

The method's rule is `changed`. The others are what a claim about it has to be compared with: as many segments, chosen
otherwise.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_similarity(keys: Tensor, segments_per_frame: int) -> Tensor:
    """Mean cosine similarity of each segment with the same segment one frame later.

    Args:
        keys: [batch, frames + 1, frame_tokens, heads, head_dim]; the heads of a token form one vector.
        segments_per_frame: Runs a frame is cut into; divides frame_tokens.

    Returns:
        [batch, frames, segments_per_frame], float32.
    """
    tokens = keys.flatten(3).float()
    similarity: Tensor = F.cosine_similarity(tokens[:, :-1], tokens[:, 1:], dim=-1)
    return similarity.view(*similarity.shape[:2], segments_per_frame, -1).mean(-1)


def changed(keys: Tensor, segments_per_frame: int, num_segments: int, draw: int) -> Tensor:
    """Segments that differ most from the frame after them: there is motion. The published rule."""
    return segment_similarity(keys, segments_per_frame)


def unchanged(keys: Tensor, segments_per_frame: int, num_segments: int, draw: int) -> Tensor:
    """Segments that differ least: the rule turned round."""
    return -segment_similarity(keys, segments_per_frame)


def random(keys: Tensor, segments_per_frame: int, num_segments: int, draw: int) -> Tensor:
    """Segments drawn anew at each commit, the same for every item of a batch."""
    shape = (keys.shape[1] - 1, segments_per_frame)
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(draw))
    return scores.to(keys.device, non_blocking=True).expand(len(keys), -1, -1)


def uniform(keys: Tensor, segments_per_frame: int, num_segments: int, draw: int) -> Tensor:
    """Segments at even distances: always the same rows of the picture."""
    num_candidates = (keys.shape[1] - 1) * segments_per_frame
    reached = torch.arange(num_candidates + 1, device=keys.device) * num_segments // num_candidates
    scores = 1.0 - reached.diff().clamp_max(1).float()
    return scores.view(-1, segments_per_frame).expand(len(keys), -1, -1)


SegmentScores = Callable[[Tensor, int, int, int], Tensor]
"""(keys as in `segment_similarity`, segments_per_frame, how many are kept, a number that differs from commit to commit)
-> scores as of `segment_similarity`."""

SEGMENT_SCORES: dict[str, SegmentScores] = {rule.__name__: rule for rule in (changed, unchanged, random, uniform)}
