"""Puts one prompt's videos of a comparison under each other, a row per policy: a picture for a page.

python benchmarks/quality_sheet.py quality docs/quality_sheet.png              # the worst prompt of quality/report.json
python benchmarks/quality_sheet.py quality docs/quality_sheet.png --prompt 7   # another one, counted from 1
"""

import argparse
import json
from pathlib import Path
from typing import Any

from forcing_kv.generation import videos_contact_sheet
from forcing_kv.video import probe


def main() -> None:
    """Finds the videos by what they say of themselves, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of forcing-kv compare")
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--prompt", type=int, help="number of the prompt, from 1")
    args = parser.parse_args()
    report = json.loads((args.folder / "report.json").read_text(encoding="utf-8"))
    texts = [prompt["prompt"] for prompt in report["prompts"]]
    number = texts.index(report["shown"]["worst"]) + 1 if args.prompt is None else args.prompt
    by_policy = {_made_with(path): path for path in sorted(args.folder.glob(f"videos/*/{number:03d}-*.mp4"))}
    rows = [(by_policy[row["name"]], _label(row, number - 1)) for row in report["policies"]]
    videos_contact_sheet(rows, args.output, title=texts[number - 1])


def _made_with(path: Path) -> str:
    return str(json.loads(probe(path).metadata["comment"])["policy"])


def _label(row: dict[str, Any], index: int) -> str:
    score = row["metrics"]["world"]["values"][index]
    return f"{row['name']}, {row['cache_bytes'] / 1e6:.2f} MB: world score {score:.0f} %"


if __name__ == "__main__":
    main()
