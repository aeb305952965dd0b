"""Roles of the heads of a checkpoint, measured."""

from forcing_kv.calibration.frame_mass import FrameMassMemory, measure_frame_mass

__all__ = ["FrameMassMemory", "measure_frame_mass"]
