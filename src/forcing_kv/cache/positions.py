"""Where frames stand on the temporal axis of the rotary embedding: at their index, or relative to the current chunk.

Absolute positions grow with the stream, and so does the distance between the sink and the current chunk. With relative
positions the history of every head group stands consecutively before the current chunk, `[sink][candidates][recent]`,
and moves up at every commit, so that no distance exceeds what the policy holds. A candidate frame takes one position
however few of its segments were selected: what is kept of the newest frames stays at its true distance, and only the
sink is drawn near.
"""

from typing import Protocol

from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePolicy, HeadGroup

POSITIONS = ("absolute", "relative")
"""The ways to count, by name."""


class TemporalRotation(Protocol):
    """Moves keys along the temporal axis of the rotary embedding they carry: `wan.TemporalShift`, or a model's own."""

    def shift(self, keys: Tensor, num_frames: int) -> None:
        """Rotates `keys` [batch, tokens, heads, head_dim], in place, as if they stood `num_frames` later."""
        ...


def check_relative_positions(
    policy: CachePolicy,
    geometry: FrameGeometry,
    *,
    trained_frames: int,
    num_frames: int | None,
    recache_frames: int,
    keep_sink: bool,
) -> None:
    """Refuses a stream in which relative positions would reach past the trained range.

    Args:
        policy: What the cache keeps.
        geometry: Of the stream.
        trained_frames: Latent frames the model was trained at.
        num_frames: Latent frames of the whole stream; None for an endless one.
        recache_frames: Newest frames that are encoded again when the prompt changes.
        keep_sink: Whether they are encoded behind the old sink.

    Raises:
        ConfigurationError: A chunk or a re-cache that reads more frames than the model was trained at.
    """
    limit = f"the model was trained at {trained_frames}"
    held = _most_positions(policy, geometry)
    if held is None and (num_frames is None or num_frames > trained_frames):
        length = "an endless stream" if num_frames is None else f"a stream of {num_frames} latent frames"
        raise ConfigurationError(
            f"policy {policy.spec()!r} keeps every frame, so relative positions cannot hold {length}: {limit}; make it "
            "shorter, use a policy that forgets (forcing-kv, window), or --positions absolute"
        )
    if held is not None and held + geometry.chunk_frames > trained_frames:
        raise ConfigurationError(
            f"policy {policy.spec()!r} reads {held + geometry.chunk_frames} latent frames with relative positions "
            f"({held} of history, a chunk of {geometry.chunk_frames}): {limit}; let it keep fewer, or use "
            "--positions absolute"
        )
    sink_frames = max(group.sink_frames for group in _groups(policy, geometry, grouped=True)) if keep_sink else 0
    if recache_frames + sink_frames > trained_frames:
        sink = f" behind a kept sink of {sink_frames}" if sink_frames else ""
        raise ConfigurationError(
            f"recache_frames={recache_frames}{sink} cannot be encoded with relative positions: {limit}; use at most "
            f"{trained_frames - sink_frames}, or --positions absolute"
        )


def _most_positions(policy: CachePolicy, geometry: FrameGeometry) -> int | None:
    """The most positions that the history of a head group ever takes; None where it grows with the stream."""
    most = 0
    for grouped in (False, True):
        for group in _groups(policy, geometry, grouped=grouped):
            if group.recent_frames is None:
                return None
            candidates = geometry.chunk_frames if grouped and group.selected_segments else 0
            most = max(most, group.sink_frames + candidates + group.recent_frames)
    return most


def _groups(policy: CachePolicy, geometry: FrameGeometry, *, grouped: bool) -> list[HeadGroup]:
    return [group for groups in policy.plan(geometry, grouped=grouped).layers for group in groups]
