"""What a result is worth: cache policies side by side, from the same noise, on a set of prompts.

`compare` makes and measures the videos, `summarise` makes figures of the measurements, and `write_json` and
`write_page` a report of the figures.
"""

from forcing_kv.evaluation.bootstrap import Bootstrap, Estimate
from forcing_kv.evaluation.comparison import Comparison, choose_metrics, plan_comparison
from forcing_kv.evaluation.metrics import FLOWS, METRICS, split_metrics
from forcing_kv.evaluation.page import check_page_available, write_page
from forcing_kv.evaluation.report import write_json
from forcing_kv.evaluation.run import Compared, compare
from forcing_kv.evaluation.summary import Summary, summarise
from forcing_kv.evaluation.table import format_table
from forcing_kv.evaluation.worlds import WORLDS

__all__ = [
    "FLOWS",
    "METRICS",
    "WORLDS",
    "Bootstrap",
    "Compared",
    "Comparison",
    "Estimate",
    "Summary",
    "check_page_available",
    "choose_metrics",
    "compare",
    "format_table",
    "plan_comparison",
    "split_metrics",
    "summarise",
    "write_json",
    "write_page",
]
