"""Whether the quick ways compute what the plain way computes, before any of them is timed.

First the tests that need a GPU, or run there if there is one: goldens, attention back ends, CUDA graphs, fp8, our
kernels, overlap, and that a steady pass neither waits for the device nor asks it for memory. Then passes of six
layers at the true shapes of Wan 1.3B in every way, over one and the same history, beside the plain way: eager, torch's
own attention. Exits with 1 if a test fails or a difference is over its limit.

    python benchmarks/gpu/parity.py --out OUT                 # on a CUDA GPU
    python benchmarks/gpu/parity.py --out OUT --dry-run       # on a CPU: its tests are skipped, toy size
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from rows import Run, made_with
from steady_pass import DRY_LAYERS, DRY_RESOLUTION, SteadyPass, sharpen
from torch import Tensor

from forcing_kv.attention import BACKENDS
from forcing_kv.bench import random_transformer
from forcing_kv.execution import EXECUTIONS
from forcing_kv.output_files import atomic_write
from forcing_kv.wan import WAN_1_3B

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "-rs"]
CUDA_TESTS = ["tests/test_goldens.py", "tests/test_steady_pass.py", "tests/test_video_overlap.py", "tests/execution"]
CUDA_TESTS += ["tests/wan/test_fp8.py", "tests/wan/test_triton_heads.py"]
BACKEND_TESTS = [f"tests/attention/{name}.py" for name in ("test_backends", "test_groups", "test_side_by_side")]
SELECTIONS = ([*CUDA_TESTS, "-k", "cuda or gpu"], BACKEND_TESTS)
"""Arguments of pytest: what is for a GPU alone, and what takes one where there is one."""

PLAIN = Run(name="plain", attention="sdpa")
HOLDS_ALL_SCORES = "plain"
POLICIES = ("forcing-kv", "window")
NUM_LAYERS = 6
"""All are alike, and roundings grow from layer to layer; so many show what a mistake in one of them would do."""
LIMITS = {"fp8": 0.15, "replayed": 1e-3, "other kernels": 4e-2}
"""Of a velocity's difference, norm over norm: linear layers rounded to four bits; the same kernels, replayed; other
kernels, which round otherwise. On a CPU another back end was off by 0.011 and fp8 by 0.05; two heads of one layer with
each other's history by 0.09."""


def main() -> None:
    """Tests, compares, prints and writes OUT/parity.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy size")
    args = parser.parse_args()
    environment = made_with()
    tests = [test for selection in SELECTIONS[: 1 if args.dry_run else 2] for test in run_tests(selection)]
    counts = Counter(test["outcome"] for test in tests)
    print(f"tests: {dict(counts)}", flush=True)
    document: dict[str, Any] = {
        "benchmark": "gpu-parity",
        "dry_run": args.dry_run,
        "complete": False,
        "passed": not counts["failed"],
        "limits": LIMITS,
        "tests": {"counts": dict(counts), "not_passed": [test for test in tests if test["outcome"] != "passed"]},
        "passes": [],
        "environment": environment,
    }
    write(document, args.out)
    for row in compare_passes(dry_run=args.dry_run):
        print(describe(row), flush=True)
        document["passes"].append(row)
        document["passed"] = document["passed"] and row["status"] != "failed"
        write(document, args.out)
    document["complete"] = True
    write(document, args.out)
    sys.exit(not document["passed"])


def write(document: dict[str, Any], out: Path) -> None:
    """The document as it is."""
    with atomic_write(out / "parity.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def run_tests(selection: list[str]) -> list[dict[str, Any]]:
    """Runs pytest in a process of its own.

    Returns:
        Per test its name, its outcome (`passed`, `failed`, `skipped`) and, if it is not the first, the reason.

    Raises:
        RuntimeError: pytest did not get as far as running tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *PYTEST, *selection, f"--junitxml={path}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not path.exists():
            raise RuntimeError(f"pytest ended with {code} and no result: {' '.join(command)}")
        return read_tests(path)


def read_tests(path: Path) -> list[dict[str, Any]]:
    """The tests in a JUnit file, as `run_tests` gives them."""
    tests = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        test: dict[str, Any] = {"name": f"{case.get('classname')}::{case.get('name')}", "outcome": "passed"}
        for tag, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            found = case.find(tag)
            if found is not None:
                test |= {"outcome": outcome, "reason": found.get("message")}
        tests.append(test)
    return tests


def ways() -> list[Run]:
    """Every back end, every execution, and fp8, one at a time; and every back end under a graph."""
    backends = [name for name in BACKENDS if name != HOLDS_ALL_SCORES]
    made = [replace(PLAIN, attention=name) for name in backends]
    made += [replace(PLAIN, attention=name, execution="cuda-graphs") for name in backends]
    made += [replace(PLAIN, execution=name) for name in EXECUTIONS if name not in ("eager", "cuda-graphs")]
    made += [replace(PLAIN, precision="fp8", execution=name) for name in ("eager", "compile+cuda-graphs")]
    return [way for way in made if way != PLAIN]


@torch.no_grad()
def compare_passes(*, dry_run: bool) -> Iterator[dict[str, Any]]:
    """A row per policy and way; one that cannot be had here says why."""
    device = torch.device("cpu" if dry_run else "cuda")
    config = replace(WAN_1_3B, num_layers=DRY_LAYERS if dry_run else NUM_LAYERS)
    resolution = DRY_RESOLUTION if dry_run else PLAIN.resolution
    transformers = {
        precision: random_transformer(config, device=device, dtype=torch.bfloat16, precision=precision)
        for precision in (None, "fp8")
    }
    for transformer in transformers.values():
        sharpen(transformer)
    for policy in POLICIES:
        plain = SteadyPass(
            transformers[None], policy, resolution=resolution, attention=PLAIN.attention, execution=PLAIN.execution
        )
        expected = plain().clone()
        for way in ways():
            row = {"policy": policy, "options": way.options(), "resolution": resolution}
            if dry_run and way.attention == "flex":
                yield {**row, "status": "skipped", "reason": "a dry run does not wait for its compiling"}
                continue
            missing = way.lacks(device)
            if missing is not None:
                yield {**row, "status": "skipped", "reason": missing}
                continue
            try:
                torch.compiler.reset()  # what is compiled for other ways counts towards a limit
                steady = SteadyPass(
                    transformers[way.precision],
                    policy,
                    resolution=resolution,
                    attention=way.attention,
                    execution=way.execution,
                    filled=plain,
                )
                velocities = [steady().clone() for _ in range(3)]  # the second captures, the third replays
            except Exception as error:  # of whatever kind: the other ways are still to be looked at
                yield {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"}
                continue
            differences = [relative_difference(velocity, expected) for velocity in velocities]
            limit = limit_of(way)
            right = all(difference <= limit for difference in differences)  # NaN is not
            yield {
                **row,
                "status": "passed" if right else "failed",
                "reason": None if right else f"over {limit:g}",
                "differences": differences,
            }


def limit_of(way: Run) -> float:
    """How far a way may be from the plain one."""
    if way.precision is not None:
        return LIMITS["fp8"]
    return LIMITS["replayed" if way == replace(PLAIN, execution="cuda-graphs") else "other kernels"]


def relative_difference(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm, in float32."""
    return float((value.float() - expected.float()).norm() / expected.float().norm())


def describe(row: dict[str, Any]) -> str:
    """For the terminal."""
    options = row["options"]
    name = f"{row['policy']}, {options['attention']}, {options['execution']}, {options['precision'] or 'bf16'}"
    if "differences" in row:
        return f"{name}: {row['status']}, off by {max(row['differences']):.2g}"
    return f"{name}: {row['status']}: {row['reason']}"


if __name__ == "__main__":
    main()
