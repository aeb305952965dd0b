"""Quality of the embedded model on held-out prompts, per cache policy, beside the scorer's own ceilings.

python benchmarks/tiny_world.py --json benchmarks/results/tiny_world_cpu_DATE.json
python benchmarks/tiny_world.py --model FOLDER/model --prompts 8 --seconds 5      # a quick look
"""

import argparse
import json
from pathlib import Path
from typing import Any

from forcing_kv import VideoPipeline
from forcing_kv.bench import environment
from forcing_kv.tiny.evaluate import NUM_PROMPTS, SECONDS, evaluate


def main() -> None:
    """Evaluates, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--policies", nargs="+", default=["full", "forcing-kv"])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="held-out prompts")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of each video")
    parser.add_argument("--batch", type=int, default=8, help="videos made together")
    parser.add_argument("--seed", type=int, default=1000, help="of the first video's noise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()

    made_with = environment()  # before the run: the tree may change under a long one
    pipeline = VideoPipeline.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    results = evaluate(
        pipeline,
        policies=args.policies,
        num_prompts=args.prompts,
        seconds=args.seconds,
        batch_size=args.batch,
        seed=args.seed,
        report=lambda line: print(line, flush=True),
    )
    print_table(results)
    if args.json:
        config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        config.pop("json")
        document = {"benchmark": "tiny_world", "config": config, "results": results, "environment": made_with}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def print_table(results: dict[str, Any]) -> None:
    """One line per source, one column per attribute."""
    columns = [name for name in next(iter(results.values())) if name != "videos"]
    print("\n" + " " * 24 + "".join(f"{name:>24}" for name in columns))
    for source, result in results.items():
        print(f"{source:<24}" + "".join(f"{_cell(result[name]):>24}" for name in columns))


def _cell(value: dict[str, Any]) -> str:
    low, high = value["interval_95"]
    return f"{100 * value['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    main()
