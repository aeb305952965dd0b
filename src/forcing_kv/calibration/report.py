"""The report of a calibration: every number in `report.json`, three pictures, and a short table for the terminal."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from forcing_kv.calibration.figures import write_figures
from forcing_kv.calibration.observations import Observations
from forcing_kv.calibration.stability import Stability, measure_stability
from forcing_kv.calibration.table import format_table
from forcing_kv.figure_style import check_figures_available
from forcing_kv.heads import HeadMap
from forcing_kv.output_files import atomic_write
from forcing_kv.versions import versions

FORMAT = "forcing-kv-calibration-report"
VERSION = 1
REPORT_FILE = "report.json"


def write_report(observations: Observations, head_map: HeadMap, folder: Path) -> str:
    """Write `report.json`, `roles.png`, `frame_mass.png` and `spread.png` into a folder, replacing what is there.

    Args:
        observations: What the calibration saw.
        head_map: The map made of it.
        folder: Where the files go; it exists.

    Returns:
        The table for the terminal.

    Raises:
        ConfigurationError: matplotlib is missing.
        HeadMapError: The map has other layers or heads than the observations.
        OutputError: A file cannot be written.
    """
    check_figures_available()
    stability = measure_stability(observations, head_map)
    document = _document(observations, head_map, stability)
    # An entry per line: one number per line would make thousands of them, and no line at all nothing to search in.
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry, allow_nan=False)}" for name, entry in document.items())
    with atomic_write(folder / REPORT_FILE) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    write_figures(observations, stability, model=head_map.model, folder=folder)
    return format_table(stability)


def _document(observations: Observations, head_map: HeadMap, stability: Stability) -> dict[str, Any]:
    """What `report.json` holds; all that is said per head is [layer][head]."""
    compared = {axis.name: axis for axis in stability.axes if not axis.has_one_value}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": head_map.model,
        "num_layers": head_map.num_layers,
        "num_heads": head_map.num_heads,
        "threshold": head_map.threshold,
        "versions": versions(),
        "settings": dict(observations.settings),
        "stability": stability.to_json(),
        "prompts": list(observations.prompts),
        "seeds": list(observations.seeds),
        "chunks": list(observations.chunks),
        "steps": list(observations.steps),
        "roles": list(head_map.roles),
        "scores": _numbers(stability.scores),
        "sampling_errors": _numbers(stability.sampling_errors),
        "standard_deviations": {name: _numbers(axis.deviations) for name, axis in compared.items()},
        "flips": {name: axis.flips.tolist() for name, axis in compared.items()},
        "distances": list(observations.distances),
        "distance_mass": _numbers(observations.distance_mass),
        "sink_mass": _numbers(observations.sink_mass),
    }


def _numbers(values: Tensor) -> list[Any]:
    """Nested lists with the six digits that float32 is good for; what was never seen (NaN) is null."""

    def shortened(value: Any) -> Any:
        if isinstance(value, list):
            return [shortened(item) for item in value]
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return [shortened(row) for row in values.tolist()]
