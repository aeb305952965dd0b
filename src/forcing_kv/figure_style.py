"""How the figures of this project look, and how they reach the disk.

All are 1600 pixels wide, in colours that the colour-blind tell apart. They are drawn with matplotlib's objects and its
default style, whatever the user's own settings are, and pyplot with its global figures is left alone. matplotlib is an
extra, and imported when a figure is drawn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcing_kv.errors import ConfigurationError
from forcing_kv.output_files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_PIXELS = 1600
WIDTH = 10.0
"""In inches: fixes how large text is on the picture."""

INK, PALE, SHADE = "#1c1e22", "#6b7078", "#eef0f3"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's: blue, vermilion, green, purple, orange, sky."""

_STYLE: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "figure.dpi": WIDTH_PIXELS / WIDTH,
    "savefig.dpi": "figure",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def check_figures_available() -> None:
    """Refuse to start work whose pictures could not be drawn at its end.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "matplotlib, which draws the figures, is not installed: pip install 'forcing-kv[figures]'"
        ) from error


def new_figure(title: str, *, height: float) -> "Figure":
    """An empty figure, `height` inches high, to be filled under `save_figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(title, x=0.012, ha="left", size=13, weight="bold")
    return figure


def save_figure(path: Path, draw: Callable[[], "Figure"]) -> None:
    """Draws in the style above and writes a PNG, replacing what is there.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib import style

    with style.context(["default", _STYLE]):
        figure = draw()
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png")
