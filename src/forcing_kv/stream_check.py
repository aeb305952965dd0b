"""Whether a planned stream can work at all, said before anything is loaded or allocated."""

from forcing_kv.cache import check_relative_positions
from forcing_kv.memory import PlannedStream
from forcing_kv.models import ModelPreset
from forcing_kv.wan import check_precision


def check_stream(
    preset: ModelPreset,
    planned: PlannedStream,
    *,
    keep_sink: bool = False,
    recache_frames: int | None = None,
) -> None:
    """Refuses settings that cannot work together, or cannot be had on the device; needs no loaded model.

    Args:
        preset: Of the model.
        planned: The stream.
        keep_sink: As in `VideoPipeline.stream`.
        recache_frames: See there.

    Raises:
        ForcingKVError: What cannot work, with the figures and the fix.
    """
    geometry, options = planned.geometry, planned.options
    planned.policy.check(geometry)
    check_precision(planned.precision, planned.config, dtype=planned.dtype, device=planned.device)
    options.backend_on(planned.device, dtype=planned.dtype, head_dim=geometry.head_dim)
    if options.positions == "relative":
        check_relative_positions(
            planned.policy,
            geometry,
            trained_frames=preset.trained_frames,
            num_frames=None if planned.num_chunks is None else planned.num_chunks * geometry.chunk_frames,
            recache_frames=preset.recache_frames if recache_frames is None else recache_frames,
            keep_sink=keep_sink,
        )
