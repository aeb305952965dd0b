"""The examples run, and say what they promise."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_own_model(capsys):
    runpy.run_path(str(EXAMPLES / "own_model.py"), run_name="__main__")
    heads_times_frames = 4 * 5 + (2 + 1) * 5 + (2 + 3) * 6  # dense layer 0; static heads and dynamic heads of 1 and 2
    bytes_per_frame = 24 * 8 * 2 * 4  # tokens x head_dim x (key, value) x float32
    held, full = heads_times_frames * bytes_per_frame, 120 * 3 * 4 * bytes_per_frame
    assert capsys.readouterr().out == f"120 frames: {held:,} bytes held, {full:,} in a full cache (95% saved)\n"
