"""Head roles of a checkpoint, measured: which heads look at the newest frames only, and how sure that is."""

from forcing_kv.attention.frame_mass import frame_mass
from forcing_kv.calibration.observations import Observations
from forcing_kv.calibration.observer import FrameMassObserver
from forcing_kv.calibration.roles import measured_head_map
from forcing_kv.calibration.run import Calibration, calibrate, default_num_chunks, observed_passes

__all__ = [
    "Calibration",
    "FrameMassObserver",
    "Observations",
    "calibrate",
    "default_num_chunks",
    "frame_mass",
    "measured_head_map",
    "observed_passes",
]
