"""Runs the rows of one stage through `forcing-kv bench`, each beside the prediction that was written down before it.

The stage's JSON is written before the first run, with every prediction in it, and again after every run, so that a
stage that is stopped keeps what it has. A run that cannot be made here is a row with the reason; one that fails is too,
and the stage goes on, to exit with 1 at its end. How often videos are repeated follows from the time there is.

    python benchmarks/gpu/measure.py ladder --out OUT                  # on a CUDA GPU
    python benchmarks/gpu/measure.py 480p-bf16 --out OUT --dry-run     # on a CPU, at toy size: shows that it works
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from predictions import ASSUMED, FRAMES_PER_LATENT, predict
from rows import Run, Way, made_with, quickest_way, stages

from forcing_kv.attention import AUTO
from forcing_kv.models import find_model
from forcing_kv.output_files import atomic_write

LIMIT_SECONDS = 540
"""Of a stage: well under ten minutes."""
START_SECONDS = 60
"""A run takes about so long before its first video: libraries, weights, ceilings, compiling."""
SLOWER = 1.5
"""Videos are taken to be so many times slower than predicted, when repeats are chosen."""
ENCODE_US_PER_PIXEL = 0.02
"""Of H.264, per pixel of every frame of noise; a guess that is on the safe side."""
MAX_REPEATS, DRY_REPEATS = 10, 1

NOT_RUN, MEASURED, SKIPPED, FAILED = "not run", "measured", "skipped", "failed"


def main() -> None:
    """Measures a stage and writes OUT/STAGE.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=tuple(stages(Way())))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS, help="stop then, and keep what is there")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy size, once")
    args = parser.parse_args()
    stage = Stage(args.stage, args.out, limit_seconds=args.limit_seconds, dry_run=args.dry_run)
    stage.measure()
    sys.exit(any(row["status"] == FAILED for row in stage.document["rows"]))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: `measured`, `skipped` or `failed`.
        reason: Of the last two, and of a run that was stopped with a part of its videos made.
        repeats: Timed videos that were asked for.
        seconds: It took.
        report: Of `forcing-kv bench`, finished or not.
    """

    status: str
    reason: str | None = None
    repeats: int = 0
    seconds: float = 0.0
    report: dict[str, Any] | None = None


class Stage:
    """The runs of a stage and its document.

    Args:
        name: Of `rows.stages`.
        out: Folder of the results.
        limit_seconds: Of the stage; what is not done then is not begun, what is under way is stopped.
        dry_run: On a CPU, at toy size.
    """

    def __init__(self, name: str, out: Path, *, limit_seconds: float, dry_run: bool) -> None:
        way = quickest_way(out)
        self.runs = list(stages(way)[name])
        self.path = out / f"{name}.json"
        self.dry_run = dry_run
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.deadline = time.monotonic() + limit_seconds
        self.document: dict[str, Any] = {
            "benchmark": "gpu-stage",
            "stage": name,
            "dry_run": dry_run,
            "complete": False,
            "config": {"limit_seconds": limit_seconds, "way": asdict(way)},
            "assumed": asdict(ASSUMED),
            "rows": [row for run in self.runs for row in begun_rows(name, run)],
            "runs": [],
            "environment": made_with(),
        }
        self.write()

    def measure(self) -> None:
        """All runs, one after the other."""
        for index, run in enumerate(self.runs):
            resolved = self._with_attention(run)
            rows = [row for row in self.document["rows"] if row["run"] == run.name]
            for row, begun in zip(rows, begun_rows(self.document["stage"], resolved), strict=True):
                row.update(begun)
            self.write()  # the prediction, before what is measured
            outcome = self._outcome(resolved, runs_left=len(self.runs) - index)
            for row in rows:
                finish_row(row, resolved, outcome, comparable=not self.dry_run)
                print(describe(row), flush=True)
            self.document["runs"].append({"run": run.name, **asdict(outcome)})
            self.write()
        self.document["complete"] = True
        self.write()

    def write(self) -> None:
        """The document as it is."""
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")

    def _with_attention(self, run: Run) -> Run:
        """A rung of the ladder that leaves its back end open takes the quickest before it."""
        before = [row for row in self.document["rows"] if row["measured"]]
        if self.dry_run or run.attention != AUTO or self.document["stage"] != "ladder" or not before:
            return run
        best = min(before, key=lambda row: float(row["measured"]["chunk_ms"]))
        return replace(run, attention=best["options"]["attention"])

    def _outcome(self, run: Run, *, runs_left: int) -> Outcome:
        if self.dry_run:
            # A rung of the ladder is run as it is or not at all; elsewhere the point is that the run goes through.
            run = run.toy() if self.document["stage"] == "ladder" else run.on_cpu()
        missing = run.lacks(self.device)
        if missing is not None:
            return Outcome(status=SKIPPED, reason=missing)
        seconds_left = self.deadline - time.monotonic()
        if seconds_left < START_SECONDS:
            return Outcome(status=SKIPPED, reason=f"no time was left in this stage ({seconds_left:.0f} s)")
        repeats = DRY_REPEATS if self.dry_run else choose_repeats(run, seconds_left / runs_left)
        return run_bench(run, repeats=repeats, device=self.device, timeout=seconds_left)


def begun_rows(stage: str, run: Run) -> list[dict[str, Any]]:
    """A row per policy, with its prediction and nothing measured yet."""
    return [
        {
            "stage": stage,
            "run": run.name,
            "policy": policy,
            "options": run.options(),
            "compared": run.compared,
            "prediction": predict(run, policy),
            "status": NOT_RUN,
            "reason": None,
            "measured": None,
            "measured_over_predicted": None,
        }
        for policy in run.policies
    ]


def choose_repeats(run: Run, seconds: float) -> int:
    """Timed videos per policy that fit into so many seconds, by the predictions; one at least.

    A chunk is taken to read as much as in the steady state, which most do not.
    """
    preset = find_model(run.model).preset
    chunks = preset.num_chunks(round(run.seconds * preset.fps))
    said = [predict(run, policy) for policy in run.policies]
    pixels = said[0]["vae_ms"] / ASSUMED.vae_us_per_pixel  # thousands of them
    others_ms = said[0]["vae_ms"] + ENCODE_US_PER_PIXEL * pixels
    turn_seconds = 1e-3 * chunks * sum(SLOWER * one["chunk_ms"] + others_ms for one in said)
    return max(1, min(MAX_REPEATS, int((seconds - START_SECONDS) / turn_seconds) - 1))


def run_bench(run: Run, *, repeats: int, device: torch.device, timeout: float) -> Outcome:
    """`forcing-kv bench` in a process of its own, stopped after `timeout` seconds."""
    arguments = run.arguments(repeats=repeats, device=str(device))
    print(f"--- {run.name}: forcing-kv {' '.join(arguments)}", flush=True)
    started = time.monotonic()
    reason = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [sys.executable, "-c", "from forcing_kv.cli import main; main()", *arguments, "--json", str(path)]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
            if process.returncode:
                reason = f"exit code {process.returncode}: {(process.stderr.strip().splitlines() or [''])[-1]}"
                print(process.stderr[-4000:], file=sys.stderr, flush=True)
        except subprocess.TimeoutExpired:
            reason = f"stopped after {timeout:.0f} s: the stage's time was up"
        report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return Outcome(
        status=MEASURED if report is not None else FAILED,
        reason=reason,
        repeats=repeats,
        seconds=round(time.monotonic() - started, 1),
        report=report,
    )


def finish_row(row: dict[str, Any], run: Run, outcome: Outcome, *, comparable: bool) -> None:
    """Puts what was measured beside the prediction.

    Args:
        row: To be completed.
        run: As it was run.
        outcome: Of the run.
        comparable: Whether the prediction is about the same.
    """
    row["status"], row["reason"] = outcome.status, outcome.reason
    if outcome.report is None:
        return
    policy = next((one for one in outcome.report["policies"] if one["name"] == row["policy"]), None)
    if policy is None:
        row["status"], row["reason"] = FAILED, outcome.reason or "the report has no such policy"
        return
    row["measured"] = measured_figures(outcome.report, policy, overlapped=run.overlap)
    predicted, measured = row["prediction"][run.compared], row["measured"][run.compared]
    if comparable and measured is not None:
        times = measured / predicted if run.compared.endswith("_ms") else predicted / measured
        row["measured_over_predicted"] = round(times, 3)


def measured_figures(report: dict[str, Any], policy: dict[str, Any], *, overlapped: bool) -> dict[str, Any]:
    """Of one policy, named as in a prediction; medians.

    Returns:
        `chunk_ms` and `fps`: passes of a steady chunk; overlapped, while they share the device. `vae_ms`: of a steady
        chunk; None without pixels. `fps_end_to_end`: steady chunks through passes and VAE, one after the other, or,
        overlapped, as quickly as the slower of the two. H.264 is not in it, for random pictures are no film:
        `encode_ms`, and the clock over whole videos with it, `fps_by_the_clock`, stand beside it.
    """
    config = report["config"]
    frames = config["chunk_frames"] * FRAMES_PER_LATENT
    steady = [index for index in policy["steady_chunks"] if index < config["chunks"]]
    by_chunk = [
        {part: video[f"{part}_ms"][index] for part in ("diffusion", "decode", "encode")}
        for video in policy["timed"]
        for index in steady
    ]
    has_pixels = config["decoder"] is not None and bool(by_chunk)
    join = max if overlapped else sum
    periods = [join((chunk["diffusion"], chunk["decode"])) for chunk in by_chunk]
    return {
        "videos": policy["videos"],
        "attention": config["attention"],
        "frames_read": policy["frames_read"],
        "chunk_ms": policy["steady_chunk_ms"],
        "chunk_ms_range": policy["steady_chunk_ms_range"],
        "fps": _rounded(1e3 * frames / policy["steady_chunk_ms"]),
        "share_of_ceiling": policy["share_of_ceiling"],
        "vae_ms": _median([chunk["decode"] for chunk in by_chunk]) if has_pixels else None,
        "encode_ms": _median([chunk["encode"] for chunk in by_chunk]) if has_pixels else None,
        "fps_end_to_end": _rounded(1e3 * frames / statistics.median(periods)) if has_pixels else None,
        "fps_by_the_clock": policy["fps_end_to_end"],
        "first_frame_ms": policy["first_frame_ms"],
        "compile_ms": policy["compile_ms"],
        "first_compile_ms": policy["first_compile_ms"],
        "cache_bytes": policy["steady_cache_bytes"],
        "peak_bytes": policy["peak_bytes"],
    }


def describe(row: dict[str, Any]) -> str:
    """For the terminal."""
    name = f"{row['run']}, {row['policy'].partition(':')[0]}"
    compared = row["compared"]
    said = f"{compared} predicted {row['prediction'][compared]:.4g}"
    if row["measured"] is None:
        return f"{name}: {said}, {row['status']}: {row['reason']}"
    measured, ratio = row["measured"][compared], row["measured_over_predicted"]
    times = "" if ratio is None else f", {ratio:.2f} times as long"
    return f"{name}: {said}, measured {'nothing' if measured is None else format(measured, '.4g')}{times}"


def _median(values: Sequence[float]) -> float:
    return _rounded(statistics.median(values))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


if __name__ == "__main__":
    main()
