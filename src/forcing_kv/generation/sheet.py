"""A contact sheet of finished video files."""

from collections.abc import Sequence
from pathlib import Path

from forcing_kv.video import ContactSheetRow, contact_sheet, probe, read_frames
from forcing_kv.video.contact_sheet import evenly_spaced


def videos_contact_sheet(
    videos: Sequence[tuple[Path, str]], path: Path, *, num_columns: int = 6, title: str = ""
) -> Path:
    """Write a PNG with a row for each video; only the frames that are shown are held in memory.

    Args:
        videos: MP4 files, each with its label.
        path: Where the PNG goes; replaced if there.
        num_columns: Frames per video.
        title: Text above everything.

    Raises:
        OutputError: A video that cannot be read, or a PNG that cannot be written.
    """
    rows = []
    for video, label in videos:
        info = probe(video)
        numbers = evenly_spaced(info.num_frames, num_columns)
        seconds = tuple(number / info.fps for number in numbers)
        rows.append(ContactSheetRow(frames=read_frames(video, numbers), label=label, at_seconds=seconds))
    return contact_sheet(rows, path, num_columns=num_columns, title=title)
