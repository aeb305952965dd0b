"""Time and peak host memory of loading the full-shape Wan 1.3B: a released .pt, our safetensors, and a LoRA release.

Random weights in exactly the released containers are written to a temporary folder first (some 15 GB), then each is
loaded in a program of its own, several times in turn. The limit is stated first: the model's own bytes, and the time it
takes to read the file once and to write those bytes.

    python benchmarks/loading.py --json benchmarks/results/loading_cpu_DATE.json
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from forcing_kv.bench import environment
from forcing_kv.bench.host_memory import AnonymousMemory
from forcing_kv.models import find_model
from forcing_kv.models.convert import convert
from forcing_kv.models.weights import block_linears, shapes_of
from forcing_kv.wan import WAN_1_3B

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LORA_RANK = 256
SEED = 0


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed loads of each kind, after one that is not")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--one", nargs=4, metavar=("MODEL", "WEIGHTS", "LORA", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(load_once(*args.one)))
        return

    made_with = environment()
    model_bytes = {
        name: sum(map(math.prod, shapes_of(WAN_1_3B).values())) * dtype.itemsize for name, dtype in DTYPES.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("writing 1.3B of random weights as .pt, LoRA and safetensors", flush=True)
        write_release(folder / "released.pt")
        write_lora(folder / "lora.pt")
        convert(find_model("self-forcing-1.3b", weights=folder / "released.pt"), folder / "saved")
        kinds = {
            ".pt, float32 -> bfloat16": ("self-forcing-1.3b", folder / "released.pt", "none", "bfloat16"),
            ".pt, float32 -> float32": ("self-forcing-1.3b", folder / "released.pt", "none", "float32"),
            "safetensors, float32 -> bfloat16": ("self-forcing-1.3b", folder / "saved", "none", "bfloat16"),
            "safetensors, float32 -> float32": ("self-forcing-1.3b", folder / "saved", "none", "float32"),
            ".pt + LoRA, float32 -> bfloat16": (
                "longlive-1.3b",
                folder / "released.pt",
                folder / "lora.pt",
                "bfloat16",
            ),
        }
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for turn in range(args.repeats + 1):
            for kind, arguments in kinds.items():
                row = load_in_a_program_of_its_own(*map(str, arguments))
                print(f"turn {turn}, {kind}: {row['seconds']:.1f} s{'' if turn else ' (warm-up)'}", flush=True)
                if turn:
                    runs[kind].append(row)

    rows = [describe(kind, runs[kind], model_bytes[arguments[3]]) for kind, arguments in kinds.items()]
    document = {
        "benchmark": "loading",
        "config": {
            "model": "Wan 1.3B, random weights, in the containers of self-forcing-1.3b and longlive-1.3b",
            "device": "cpu",
            "files": "in the page cache: the disk is not measured",
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
        "environment": made_with,
    }
    print(f"\n{'':<34} {'s':>6} {'model GB':>9} {'peak GB':>8} {'x model':>8}")
    for row in rows:
        print(
            f"{row['kind']:<34} {row['seconds']:>6.1f} {row['model_bytes'] / 1e9:>9.2f} "
            f"{row['peak_bytes'] / 1e9:>8.2f} {row['peak_over_model']:>8.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_once(model: str, weights: str, lora: str, dtype: str) -> dict[str, float]:
    """Loads a transformer on the CPU: seconds, and peak anonymous memory over what the program had before."""
    source = find_model(model, weights=weights, lora=lora)
    with AnonymousMemory() as memory:
        started = time.perf_counter()
        transformer = source.load_transformer(dtype=DTYPES[dtype], device=torch.device("cpu"))
        seconds = time.perf_counter() - started
    num_weights = sum(parameter.numel() for parameter in transformer.parameters())
    return {"seconds": seconds, "peak_bytes": memory.taken_bytes, "weights": num_weights}


def load_in_a_program_of_its_own(*arguments: str) -> dict[str, float]:
    """`load_once` with a fresh interpreter, whose memory nothing else has touched."""
    command = [sys.executable, __file__, "--one", *arguments]
    row: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return row


def describe(kind: str, runs: list[dict[str, float]], model_bytes: int) -> dict[str, Any]:
    """Medians of the time, the largest of the peaks."""
    peak = max(run["peak_bytes"] for run in runs)
    return {
        "kind": kind,
        "seconds": statistics.median(run["seconds"] for run in runs),
        "all_seconds": [round(run["seconds"], 3) for run in runs],
        "model_bytes": model_bytes,
        "peak_bytes": peak,
        "peak_over_model": peak / model_bytes,
    }


def write_release(path: Path) -> None:
    """Self Forcing's container: averaged weights in float32 under `generator_ema`, keys `model.*`."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {f"model.{name}": random(shape, generator) for name, shape in shapes_of(WAN_1_3B).items()}
    torch.save({"generator_ema": weights}, path)


def write_lora(path: Path) -> None:
    """LongLive's container: a LoRA of rank 256 on every Linear layer of the blocks."""
    generator = torch.Generator().manual_seed(SEED + 1)
    lora = {}
    for name, (rows, columns) in block_linears(WAN_1_3B).items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        lora[f"{layer}.lora_A.weight"] = random((LORA_RANK, columns), generator)
        lora[f"{layer}.lora_B.weight"] = random((rows, LORA_RANK), generator)
    torch.save({"generator_lora": lora}, path)


def random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Cheap random values; what they are does not matter."""
    return torch.empty(shape).uniform_(-0.1, 0.1, generator=generator)


if __name__ == "__main__":
    main()
