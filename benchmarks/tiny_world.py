"""Quality of the embedded model on held-out prompts, per cache policy, beside the scorer's own ceilings.

python benchmarks/tiny_world.py --json benchmarks/results/tiny_world_HARDWARE_DATE.json
python benchmarks/tiny_world.py --model FOLDER/model --quick      # a quick look
python benchmarks/tiny_world.py --record FOLDER/model/scores.json --dtype float32      # what lies beside the weights
python benchmarks/tiny_world.py --keep scores --share 1/2                               # half of it; and 2/2 beside it
python benchmarks/tiny_world.py --keep scores --json result.json                        # what both have made
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forcing_kv import VideoPipeline
from forcing_kv.bench import environment
from forcing_kv.tiny.scoring.evaluate import evaluate, evaluate_share, scores_in, scores_record
from forcing_kv.tiny.scoring.parts import Evaluation
from forcing_kv.tiny.scoring.tables import cell

FULL = Evaluation()
QUICK = Evaluation(
    num_prompts=8, seconds=5.0, long_seconds=5.0, num_memory_prompts=8, memory_seconds=10.0, num_switches=8
)


def main() -> None:
    """Evaluates, prints a table per part and writes the JSON."""
    args = _arguments()
    base = QUICK if args.quick else FULL
    given = {name: value for name in asdict(base) if (value := getattr(args, name, None)) is not None}
    asked = Evaluation(
        **{**asdict(base), **given, "policies": tuple(args.policies), "long_policies": tuple(args.long_policies)}
    )

    made_with = environment()  # before the run: the tree may change under a long one
    pipeline = VideoPipeline.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    kept = scores_in(args.keep, pipeline, asked) if args.keep else None

    def report(line: str) -> None:
        print(line, flush=True)

    if kept and args.share:
        evaluate_share(pipeline, asked, kept=kept, share=args.share, report=report)
        return
    results = evaluate(pipeline, asked, kept=kept, report=report)
    print_tables(results)
    if args.json:
        preset = pipeline.preset.to_json()
        config = {"model": args.model, "preset": preset, "device": str(pipeline.device), **asdict(asked)}
        document = {"benchmark": "tiny_world", "config": config, "results": results, "environment": made_with}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.record:
        args.record.write_text(json.dumps(scores_record(results, asked), indent=1) + "\n", encoding="utf-8")


def print_tables(results: dict[str, Any]) -> None:
    """Per part one line per attribute and one column per source, then the paired differences."""
    psnr = results["vae_psnr"]
    print(f"\nVAE: {psnr['mean_db']} dB, the worst of {psnr['num_videos']} videos {psnr['lowest_db']} dB")
    for name, part in results["parts"].items():
        print(f"\n{name}, second {part['seconds'][0]:g} to {part['seconds'][1]:g}")
        columns = {source: scored["shares"] for source, scored in part["sources"].items()}
        columns |= {f"drop, {policy}": drops for policy, drops in part.get("drops", {}).items()}
        columns |= {f"{policy} less window": values for policy, values in part.get("differences", {}).items()}
        widths = {source: max(len(source), 20) + 2 for source in columns}
        print(" " * 34 + "".join(f"{source:>{width}}" for source, width in widths.items()))
        for attribute in dict.fromkeys(attribute for values in columns.values() for attribute in values):
            cells = (f"{cell(columns[source].get(attribute)):>{width}}" for source, width in widths.items())
            print(f"{attribute:<34}" + "".join(cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--quick", action="store_true", help="8 of each, 5 s: other values where they are not given")
    parser.add_argument("--policies", nargs="+", default=FULL.policies)
    parser.add_argument("--prompts", type=int, dest="num_prompts", help="free scenes")
    parser.add_argument("--seconds", type=float, help="of a free video that are scored, at its start and at its end")
    parser.add_argument("--long-seconds", type=float, help="length of a free video, for the long policies")
    parser.add_argument("--long-policies", nargs="*", default=FULL.long_policies, help="judged after so long, too")
    parser.add_argument("--long-prompts", type=int, dest="num_long_prompts", help="free scenes of that length")
    parser.add_argument("--memory-prompts", type=int, dest="num_memory_prompts", help="memory scenes")
    parser.add_argument("--memory-seconds", type=float, help="length of each")
    parser.add_argument("--switches", type=int, dest="num_switches", help="videos whose prompt switches")
    parser.add_argument("--batch", type=int, dest="batch_size", help="videos made together")
    parser.add_argument("--seed", type=int, help="of the first video's noise")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--keep", type=Path, help="folder that keeps the scores of batches; those in it are not made again"
    )
    parser.add_argument("--share", type=_share, help="I/N: make every N-th batch only, from the I-th, for --keep")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--record", type=Path, help="where to write the shares alone, as kept beside the weights")
    args = parser.parse_args()
    if args.share and not args.keep:
        parser.error("--share needs --keep: the scores of a share are for a later call to find")
    return args


def _share(text: str) -> tuple[int, int]:
    """I/N, counted from 1, as the number from 0 and N."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not such as 1/2 or 2/2")
    return int(number) - 1, int(of)


if __name__ == "__main__":
    main()
