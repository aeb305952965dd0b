"""The sheet shows the right frames in the right places."""

import pytest
import torch
from PIL import Image

from forcing_kv.errors import ConfigurationError
from forcing_kv.video import ContactSheetRow, contact_sheet
from forcing_kv.video.contact_sheet import evenly_spaced


def grey_ramp(num_frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    levels = torch.linspace(0, 255, num_frames).to(torch.uint8)
    return levels.view(-1, 1, 1, 1).expand(num_frames, height, width, 3)


@pytest.mark.parametrize(
    ("num_frames", "num_columns", "expected"),
    [(33, 5, [0, 8, 16, 24, 32]), (3, 6, [0, 1, 2]), (1, 4, [0]), (9, 1, [0]), (10, 2, [0, 9])],
)
def test_frames_are_evenly_spaced_from_first_to_last(num_frames, num_columns, expected):
    assert evenly_spaced(num_frames, num_columns) == expected


def test_tiny_frames_are_scaled_up_and_stand_in_order(tmp_path):
    path = contact_sheet([ContactSheetRow(frames=grey_ramp(33))], tmp_path / "sheet.png", num_columns=3)
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 192 + 2 * 6 + 2 * 12, 128 + 2 * 12)
        levels = [sheet.getpixel((12 + 96 + column * 198, 12 + 64)) for column in range(3)]
    assert levels == [(0, 0, 0), (127, 127, 127), (255, 255, 255)]


def test_labels_make_room_and_large_frames_shrink(tmp_path):
    rows = [
        ContactSheetRow(frames=grey_ramp(5, 96, 960), label="full cache 12.3 MB"),
        ContactSheetRow(frames=grey_ramp(2)),
    ]
    path = contact_sheet(rows, tmp_path / "sheet.png", num_columns=2, title="a prompt " * 100)
    with Image.open(path) as sheet:
        assert sheet.width == 2 * 480 + 6 + 2 * 12
        assert sheet.height > 48 + 128 + 3 * 12


def test_refusals(tmp_path):
    for rows, num_columns in (([], 3), ([ContactSheetRow(frames=grey_ramp(3))], 0)):
        with pytest.raises(ConfigurationError, match="at least one row"):
            contact_sheet(rows, tmp_path / "sheet.png", num_columns=num_columns)
