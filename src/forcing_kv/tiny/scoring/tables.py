"""The scores of a model as tables for people to read: Markdown, from what `scores_record` keeps.

One table per part, a line per attribute, a column per source; shares in per cent with their intervals. What a policy
loses over a minute, and what memory scenes lose under a window too short, stand in the last columns.
"""

from collections.abc import Mapping
from typing import Any


def markdown_tables(record: Mapping[str, Any]) -> str:
    """Every part of a record, each under a heading of its own."""
    return "\n\n".join(_table(name, part) for name, part in record["parts"].items())


def _table(name: str, part: Mapping[str, Any]) -> str:
    columns: dict[str, Mapping[str, Any]] = {source: scored["shares"] for source, scored in part["sources"].items()}
    columns |= {f"{policy}, lost since the start": drops for policy, drops in part.get("drops", {}).items()}
    columns |= {f"{policy} less the window": gains for policy, gains in part.get("differences", {}).items()}
    attributes = dict.fromkeys(attribute for values in columns.values() for attribute in values)
    num_videos = max(value["num_videos"] for value in next(iter(columns.values())).values())
    start, stop = part["seconds"]
    lines = [
        f"**{name}**, second {start:g} to {stop:g}, {num_videos} videos",
        "",
        f"| | {' | '.join(_heading(source) for source in columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {attribute} | {' | '.join(cell(values.get(attribute)) for values in columns.values())} |"
            for attribute in attributes
        ),
    ]
    return "\n".join(lines)


def cell(value: Mapping[str, Any] | None) -> str:
    """A share or a difference in per cent, with its interval; nothing where an attribute does not apply."""
    if value is None:
        return ""
    low, high = value["interval_95"]
    middle = value["share"] if "share" in value else value["difference"]
    return f"{100 * middle:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _heading(source: str) -> str:
    return source if source.startswith("drawn") else f"`{source}`"
