"""The tables people read are the scores on file."""

import json
from pathlib import Path

from forcing_kv.models.zoo import EMBEDDED_MODELS
from forcing_kv.tiny.scoring.tables import cell, markdown_tables

DOCUMENT = Path(__file__).parents[3] / "docs" / "tiny.md"


def share(value, low, high):
    return {"share": value, "interval_95": [low, high], "num_videos": 8}


def test_a_line_per_attribute_and_a_column_per_source():
    record = {
        "parts": {
            "free scenes": {
                "seconds": [0.0, 20.0],
                "sources": {
                    "drawn": {"shares": {"colour": share(1.0, 0.68, 1.0)}},
                    "full": {"shares": {"colour": share(0.5, 0.2153, 0.7847), "moving": share(0.0, 0.0, 0.32)}},
                },
                "drops": {"full": {"colour": {"difference": -0.125, "interval_95": [-0.4, 0.1], "num_videos": 8}}},
            }
        }
    }
    assert markdown_tables(record).splitlines() == [
        "**free scenes**, second 0 to 20, 8 videos",
        "",
        "| | drawn | `full` | `full, lost since the start` |",
        "|---|---|---|---|",
        "| colour | 100.0 (68.0 to 100.0) | 50.0 (21.5 to 78.5) | -12.5 (-40.0 to 10.0) |",
        "| moving |  | 0.0 (0.0 to 32.0) |  |",
    ]
    assert cell(None) == ""


def test_the_page_shows_the_scores_of_the_embedded_model():
    record = json.loads((EMBEDDED_MODELS["tiny"] / "scores.json").read_text(encoding="utf-8"))
    assert markdown_tables(record) in DOCUMENT.read_text(encoding="utf-8")
