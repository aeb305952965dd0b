"""The figure of a benchmark: speed and cache memory of every policy over the length of the video."""

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcing_kv.figure_style import COLOURS, INK, PALE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", ":")
"""One after the other, each for as many policies as there are colours."""


def write_figure(document: dict[str, Any], path: Path) -> None:
    """Draws the document of a benchmark as a PNG, replacing what is there.

    Raises:
        OutputError: The file cannot be written.
    """
    save_figure(path, lambda: benchmark_figure(document))


def benchmark_figure(document: dict[str, Any]) -> "Figure":
    """Above, frames per second of diffusion, chunk by chunk: medians, and shaded all videos; below, what is held."""
    config = document["config"]
    width, height = config["resolution"]
    figure = new_figure(
        f"{config['model']}, {width}x{height}: speed and cache over the length of the video", height=7.2
    )
    speed, memory = figure.subplots(2, 1, sharex=True)
    styles = cycle([(line, colour) for line in _LINES for colour in COLOURS])
    for row, (line, colour) in zip(document["policies"], styles, strict=False):
        course = row["by_chunk"]
        ends = course["end_seconds"]
        least, most = zip(*course["fps_diffusion_range"], strict=True)
        style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3.5 if len(ends) < 40 else 0}
        speed.plot(ends, course["fps_diffusion"], label=row["name"], **style)
        speed.fill_between(ends, least, most, color=colour, alpha=0.15, linewidth=0)
        memory.plot(ends, [held / 1e6 for held in course["cache_bytes"]], **style)
    if speed.get_ylim()[1] > config["fps_video"]:
        speed.axhline(config["fps_video"], color=INK, linewidth=1, linestyle="--", zorder=1, label="real time")
    for axes in (speed, memory):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    layers, weights = config["num_layers"], ", random weights" if config["weights"] == "random" else ""
    cache = "" if config["kv_dtype"] is None else f", {config['kv_dtype']} cache"
    steps = "" if config["step_cache"] is None else f", step cache {config['step_cache']:g}"
    speed.set_title(
        f"Frames per second of diffusion, by chunk: the median of {config['repeats']} videos; shaded, all of them. "
        f"{layers} layers{weights}, {config['dtype']} on {config['device']}{cache}{steps}.",
        color=PALE,
    )
    speed.set_ylabel("frames per second")
    memory.set_title("Keys and values held, room for the current chunk included", color=PALE)
    memory.set_ylabel("MB")
    memory.set_xlabel("seconds of video")
    longest = max((len(row["name"]) for row in document["policies"]), default=0)
    figure.legend(loc="outside lower left", ncols=max(1, 120 // (longest + 8)))
    return figure
