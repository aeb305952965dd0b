"""Three pictures of a calibration: the roles, where every head looks, and how far its score moves.

Static heads are blue, dynamic heads vermilion, the threshold is a dashed line.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forcing_kv.calibration.observations import Observations
from forcing_kv.calibration.stability import AXES, AxisStability, Stability
from forcing_kv.figure_style import COLOURS, INK, PALE, SHADE, WIDTH, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STATIC, _DYNAMIC = COLOURS[:2]
_SCORE_MAP = "viridis"


def write_figures(observations: Observations, stability: Stability, *, model: str, folder: Path) -> list[Path]:
    """Write `roles.png`, `frame_mass.png` and `spread.png` into `folder`, replacing what is there.

    Raises:
        OutputError: A file cannot be written.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "roles.png": partial(roles_figure, stability, model=model),
        "frame_mass.png": partial(frame_mass_figure, observations, stability, model=model),
        "spread.png": partial(spread_figure, stability, model=model),
    }
    paths = []
    for name, draw in figures.items():
        save_figure(folder / name, draw)
        paths.append(folder / name)
    return paths


def roles_figure(stability: Stability, *, model: str) -> "Figure":
    """Layers x heads: the score as a colour and, where it fits, a number; static heads are outlined."""
    from matplotlib import colormaps

    scores, is_static = stability.scores.T.numpy(), stability.is_static.T.numpy()  # layers run to the right
    num_heads, num_layers = scores.shape
    cell_width = 0.84 * WIDTH / num_layers
    cell_height = min(0.45, max(0.19, 0.85 * cell_width))
    figure = new_figure(
        f"{stability.num_static} of {stability.num_heads} heads of {model} are static",
        height=max(3.2, 1.3 + num_heads * cell_height),
    )
    axes = figure.subplots()
    picture = axes.imshow(scores, cmap=_SCORE_MAP, vmin=0, vmax=1, aspect="auto")
    luminance = np.asarray(colormaps[_SCORE_MAP](scores))[..., :3] @ (0.3, 0.59, 0.11)
    ink = np.where(luminance > 0.5, INK, "white")
    _outline(axes, is_static, ink, cell_width, cell_height)
    font_size = 72 * min(cell_width / 2.3, cell_height / 1.4, 0.125)
    if font_size >= 5:
        for (head, layer), score in np.ndenumerate(scores):
            axes.text(
                layer,
                head,
                f"{score:.2f}".removeprefix("0"),
                size=font_size,
                weight="bold" if is_static[head, layer] else "normal",
                color=ink[head, layer],
                ha="center",
                va="center_baseline",
            )
    axes.set_xticks(range(0, num_layers, 1 if cell_width > 0.2 else 5))
    axes.set_yticks(range(0, num_heads, 1 if num_heads <= 16 else 2 if num_heads <= 40 else 5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    axes.set_title(
        f"Score: share of attention on the newest frames. Outlined: static, {stability.threshold:.2f} or more.",
        color=PALE,
    )
    bar = figure.colorbar(picture, ax=axes, pad=0.015, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.axhline(stability.threshold, color=INK, linewidth=2)
    bar.ax.plot(-0.25, stability.threshold, marker=">", color=INK, markersize=6, clip_on=False)
    bar.set_label("score")
    return figure


def frame_mass_figure(observations: Observations, stability: Stability, *, model: str) -> "Figure":
    """Attention per key frame of every head: the first frames of the stream, then by distance to the current chunk."""
    is_static = stability.is_static.flatten().numpy()
    sink_mass = observations.sink_mass.flatten(0, 1).numpy()  # [layers * heads, sink frames]
    distance_mass = observations.distance_mass.flatten(0, 1).numpy()
    sink_frames, distances = sink_mass.shape[1], np.array(observations.distances)
    figure = new_figure(f"Where the heads of {model} look", height=5.2)
    if sink_frames:
        ratios = [max(2, sink_frames) + 1.0, len(distances) + 1.0]
        sink_axes, axes = figure.subplots(1, 2, sharey=True, width_ratios=ratios)
        _curves(sink_axes, np.arange(sink_frames), sink_mass, is_static)
        sink_axes.set_xticks(range(sink_frames))
        sink_axes.set_xlim(-0.5, sink_frames - 0.5)
        sink_axes.set_xlabel("frame of the stream")
        sink_axes.set_title("First frames", color=PALE)
        axes.tick_params(axis="y", which="both", left=False)
        axes.spines["left"].set_visible(False)
    else:
        sink_axes = axes = figure.subplots()
    sink_axes.set_ylabel("attention on one frame")
    newest = -observations.settings["recent_frames"] - 0.5
    axes.axvspan(newest, distances[-1] + 0.5, color=SHADE, zorder=0)
    _curves(axes, distances, distance_mass, is_static)
    axes.legend(loc="upper left", ncols=2)
    axes.set_xlim(distances[0] - 0.5, distances[-1] + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("latent frames from the first frame of the current chunk (negative: history)")
    axes.set_title("Later frames; shaded: the newest, whose share is the score", color=PALE)
    _scale_of_masses(axes, np.concatenate((sink_mass, distance_mass), axis=1), is_static)
    return figure


def spread_figure(stability: Stability, *, model: str) -> "Figure":
    """Heads sorted by score; around each score the scores at single prompts, denoising steps and chunk positions."""
    scores, is_static = stability.scores.flatten().numpy(), stability.is_static.flatten().numpy()
    order = np.argsort(scores, kind="stable")
    figure = new_figure(f"How far the scores of {model} move", height=8.6)
    panels = figure.subplots(len(stability.axes), 1, sharex=True, sharey=True)
    for axes, axis in zip(panels, stability.axes, strict=True):
        axes.axhline(
            stability.threshold,
            color=INK,
            linewidth=1,
            linestyle="--",
            zorder=1,
            label=f"threshold {stability.threshold:.2f}",
        )
        _single_values(axes, axis, order)
        _scores_by_role(axes, scores[order], is_static[order])
        axes.set_ylabel("score")
    panels[0].set_ylim(-0.1, 1.03)
    panels[0].set_xlim(-1, len(scores))
    handles, labels = panels[-1].get_legend_handles_labels()
    legend = panels[0].legend(handles, labels, loc="upper left", ncols=3)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([22.0])
    panels[-1].set_xlabel("heads, sorted by score")
    if len(scores) <= 60:
        num_heads = stability.scores.shape[1]
        names = [f"{place // num_heads}.{place % num_heads}" for place in order]
        panels[-1].set_xticks(range(len(scores)), names, size=7, rotation=90)
        panels[-1].set_xlabel("heads (layer.head), sorted by score")
    return figure


def _outline(axes: "Axes", is_static: Any, ink: Any, cell_width: float, cell_height: float) -> None:
    """Inside the cells, so that neighbours keep an outline each."""
    from matplotlib.patches import Rectangle

    margin = min(0.02, 0.1 * cell_width)  # inches
    width, height = 1 - 2 * margin / cell_width, 1 - 2 * margin / cell_height
    for head, layer in np.argwhere(is_static):
        corner = (layer - width / 2, head - height / 2)
        line_width = min(1.8, 5 * cell_width)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=ink[head, layer], linewidth=line_width))


def _curves(axes: "Axes", places: Any, masses: Any, is_static: Any) -> None:
    """One thin line per head, in the order of the heads so that neither role covers the other; role means on top."""
    from matplotlib.collections import LineCollection

    if len(places) == 1:  # a short bar: a line through one point cannot be seen
        places, masses = places + np.array([-0.2, 0.2]), masses.repeat(2, axis=1)
    axes.add_collection(
        LineCollection(
            [np.column_stack((places, mass)) for mass in masses],
            colors=[_STATIC if static else _DYNAMIC for static in is_static],
            alpha=min(0.45, max(0.06, 40 / len(masses))),
            linewidths=0.7,
        )
    )
    for role, members, colour in _roles(is_static):
        label = f"mean of {members.sum()} {role} head{'s' if members.sum() > 1 else ''}"
        mean = masses[members].mean(axis=0)
        axes.plot(places, mean, color="white", linewidth=4.5)  # a rim that lifts it off the thin lines
        axes.plot(places, mean, color=colour, linewidth=2.5, marker="o", markersize=4, label=label)


def _scale_of_masses(axes: "Axes", masses: Any, is_static: Any) -> None:
    """Logarithmic, in per cent; the means in full, and of the single heads what is not next to nothing."""
    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_major_formatter(lambda mass, _: f"{100 * mass:g} %")
    axes.yaxis.set_minor_formatter("")
    shown = masses[masses > 0]
    if shown.size:
        # A head that never looks somewhere would stretch the scale over decades in which nothing is to be seen.
        means = [np.nanmin(masses[members].mean(axis=0)) for _, members, _ in _roles(is_static)]
        lowest = min(np.percentile(shown, 1), *means)
        axes.set_ylim(max(1e-5, lowest) / 1.5, min(1.5, 3 * shown.max()))


def _single_values(axes: "Axes", axis: AxisStability, order: Any) -> None:
    """The scores at every value of one axis, and a mark under each head whose role flips there."""
    words = AXES[axis.name]
    if axis.has_one_value:
        axes.set_title(f"{words.capitalize()}: one only, nothing to compare", color=PALE)
        return
    means, flips = axis.means.flatten(1).numpy()[:, order], axis.flips.flatten().numpy()[order]
    num_values, num_heads = means.shape
    offsets = np.linspace(-0.32, 0.32, num_values)[:, None]
    shades = np.full(num_values, 0.6) if axis.name == "prompts" else np.linspace(0.8, 0.25, num_values)
    axes.scatter(
        np.arange(num_heads) + offsets,
        means,
        s=min(9.0, max(1.5, 1800 / num_heads)),
        c=np.repeat(shades, num_heads),
        cmap="gray",
        vmin=0,
        vmax=1,
        alpha=0.6 if axis.name == "prompts" else 1,
        linewidths=0,
        zorder=2,
    )
    axes.plot(np.flatnonzero(flips), np.full(flips.sum(), -0.055), "^", color=INK, markersize=4, linewidth=0, zorder=3)
    order_words = "" if axis.name == "prompts" else ", the first light, the last dark"
    axes.set_title(
        f"{words.capitalize()}: {num_values} dots per head{order_words}. The role changes (triangle) in "
        f"{axis.num_flips} of {num_heads} heads ({100 * axis.num_flips / num_heads:.1f} %).",
        color=PALE,
    )


def _scores_by_role(axes: "Axes", scores: Any, is_static: Any) -> None:
    size = min(22.0, max(2.0, 1500 / len(scores)))
    for role, members, colour in _roles(is_static):
        places = np.flatnonzero(members)
        axes.scatter(places, scores[members], s=size, color=colour, linewidths=0, zorder=4, label=f"{role} heads")


def _roles(is_static: Any) -> list[tuple[str, Any, str]]:
    """Name, members and colour of every role that some head has."""
    roles = [("static", is_static, _STATIC), ("dynamic", ~is_static, _DYNAMIC)]
    return [role for role in roles if role[1].any()]
