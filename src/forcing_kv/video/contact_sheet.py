"""One picture that shows a video: evenly spaced frames with their times, one row per video.

Several rows put videos of one prompt under each other, say one per cache policy, each with its label, so that a page
can show without a player what a setting costs in quality.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.output_files import atomic_write
from forcing_kv.video.writer import DEFAULT_FPS

_MARGIN = 12
_GAP = 6
_MIN_CELL_WIDTH = 192  # smaller frames are scaled up by a whole number, so that a page shows them as they are
_MAX_CELL_WIDTH = 480  # larger ones are scaled down
_LABEL_SIZE = 18
_TIME_SIZE = 13
_BACKGROUND = (24, 26, 30)
_LABEL_COLOUR = (232, 234, 238)
_TIME_COLOUR = (255, 255, 255)
_TIME_SHADE = (0, 0, 0, 150)


@dataclass(frozen=True, kw_only=True)
class ContactSheetRow:
    """One video of a sheet.

    Attributes:
        frames: [T, H, W, 3], uint8, RGB, on any device.
        label: Text above the row; empty for none.
        at_seconds: Time of each frame, if they are chosen already: then all are shown. Empty to choose from them.
    """

    frames: Tensor
    label: str = ""
    at_seconds: tuple[float, ...] = ()


def contact_sheet(
    rows: Sequence[ContactSheetRow],
    path: str | Path,
    *,
    num_columns: int = 6,
    fps: int = DEFAULT_FPS,
    title: str = "",
) -> Path:
    """Write a PNG of evenly spaced frames, from the first to the last of each video.

    Args:
        rows: One per video, at least one; videos may differ in size and length.
        path: Where the PNG goes; replaced if there.
        num_columns: Frames per video; fewer where a video is shorter.
        fps: Pixel frames per second of the videos, for the times.
        title: Text above everything, such as the prompt; shortened to the width of the sheet.

    Returns:
        The path of the PNG.

    Raises:
        ConfigurationError: No rows, no frames or no columns.
        OutputError: The file cannot be written.
    """
    if not rows or num_columns < 1 or any(row.frames.shape[0] < 1 for row in rows):
        raise ConfigurationError("a contact sheet needs at least one row, one column and one frame in each row")
    strips = [_strip(row, num_columns, fps) for row in rows]
    label_font, title_font = ImageFont.load_default(_LABEL_SIZE), ImageFont.load_default(_LABEL_SIZE + 4)
    width = max(strip.width for strip in strips) + 2 * _MARGIN
    header_height = _LABEL_SIZE + 4 + _MARGIN if title else 0
    heights = [
        strip.height + (_LABEL_SIZE + _GAP + 2 if row.label else 0) for strip, row in zip(strips, rows, strict=True)
    ]
    height = 2 * _MARGIN + header_height + sum(heights) + _MARGIN * (len(rows) - 1)

    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        text = _shortened(title, title_font, width - 2 * _MARGIN)
        draw.text((_MARGIN, _MARGIN - 2), text, font=title_font, fill=_LABEL_COLOUR)
    top = _MARGIN + header_height
    for row, strip, row_height in zip(rows, strips, heights, strict=True):
        if row.label:
            text = _shortened(row.label, label_font, width - 2 * _MARGIN)
            draw.text((_MARGIN, top - 2), text, font=label_font, fill=_LABEL_COLOUR)
        sheet.paste(strip, (_MARGIN, top + row_height - strip.height))
        top += row_height + _MARGIN
    path = Path(path)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return path


def evenly_spaced(num_frames: int, num_columns: int) -> list[int]:
    """Frame numbers from the first to the last, as far apart as they can be."""
    if num_columns == 1 or num_frames == 1:
        return [0]
    count = min(num_columns, num_frames)
    return [round(index * (num_frames - 1) / (count - 1)) for index in range(count)]


def _strip(row: ContactSheetRow, num_columns: int, fps: int) -> Image.Image:
    """One row of frames side by side, each with its time."""
    frames = row.frames
    if row.at_seconds:
        numbers, seconds = list(range(frames.shape[0])), list(row.at_seconds)
    else:
        numbers = evenly_spaced(frames.shape[0], num_columns)
        seconds = [number / fps for number in numbers]
    width, height, resampling = _cell_size(frames.shape[2], frames.shape[1])
    strip = Image.new("RGB", (len(numbers) * (width + _GAP) - _GAP, height), _BACKGROUND)
    for column, (number, second) in enumerate(zip(numbers, seconds, strict=True)):
        picture = Image.fromarray(frames[number].cpu().numpy()).resize((width, height), resampling)
        strip.paste(_with_time(picture, f"{second:.1f} s"), (column * (width + _GAP), 0))
    return strip


def _cell_size(width: int, height: int) -> tuple[int, int, Image.Resampling]:
    if width < _MIN_CELL_WIDTH:
        factor = -(-_MIN_CELL_WIDTH // width)
        return width * factor, height * factor, Image.Resampling.BICUBIC
    if width > _MAX_CELL_WIDTH:
        return _MAX_CELL_WIDTH, max(1, round(height * _MAX_CELL_WIDTH / width)), Image.Resampling.LANCZOS
    return width, height, Image.Resampling.NEAREST


def _with_time(picture: Image.Image, text: str) -> Image.Image:
    font = ImageFont.load_default(_TIME_SIZE)
    overlay = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(overlay)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    box_width, box_height = right - left + 10, bottom - top + 8
    corner = (picture.width - box_width - 4, picture.height - box_height - 4)
    draw.rounded_rectangle((*corner, corner[0] + box_width, corner[1] + box_height), radius=4, fill=_TIME_SHADE)
    draw.text((corner[0] + 5 - left, corner[1] + 4 - top), text, font=font, fill=_TIME_COLOUR)
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
