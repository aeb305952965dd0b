"""What `make demo` does, timed: a prompt becomes an MP4 through the embedded model, end to end.

The goal is real time, the embedded model's 16 video frames per second, with text encoder, diffusion, VAE decode and
H.264 encode on the clock. One run warms up; medians of the others are reported.

    python benchmarks/demo.py --json benchmarks/results/demo_cpu_DATE.json
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from forcing_kv import VideoPipeline
from forcing_kv.bench import environment
from forcing_kv.generation import GenerationReport, VideoRequest, generate_video
from forcing_kv.prompt_schedule import prompt_schedule

PROMPT = "a large red circle moving right slowly at the left on a striped gray background"
POLICIES = ("full", "forcing-kv")
MEASURES = ("fps_diffusion", "fps_end_to_end", "cache_bytes", "full_cache_bytes")


def main() -> None:
    """Measures both policies in turn, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="length of each video")
    parser.add_argument("--repeats", type=int, default=5, help="timed videos per policy")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()

    made_with = environment()  # before the run: the tree may change under a long one
    pipeline = VideoPipeline.from_pretrained("tiny", dtype=args.dtype)
    num_frames = args.seconds * pipeline.preset.fps
    runs: dict[str, list[GenerationReport]] = {policy: [] for policy in POLICIES}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.repeats + 1):
            for policy in POLICIES:
                request = VideoRequest(
                    prompts=prompt_schedule(PROMPT),
                    path=Path(folder) / "out.mp4",
                    num_frames=num_frames,
                    seed=turn,
                    policy=policy,
                )
                report = generate_video(pipeline, request, overwrite=True)
                print(f"turn {turn}, {policy}: {report.fps_end_to_end:.1f} FPS end to end", flush=True)
                if turn:
                    runs[policy].append(report)

    rows = [
        {"policy": policy, **{name: statistics.median(getattr(run, name) for run in reports) for name in MEASURES}}
        for policy, reports in runs.items()
    ]
    document = {
        "benchmark": "demo",
        "config": {
            "model": "tiny",
            "prompt": PROMPT,
            "seconds": args.seconds,
            "repeats": args.repeats,
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "real_time_fps": pipeline.preset.fps,
        },
        "policies": rows,
        "runs": {policy: [times(run) for run in reports] for policy, reports in runs.items()},
        "environment": made_with,
    }
    for row in rows:
        print(
            f"{row['policy']:<12} {row['fps_diffusion']:.1f} FPS diffusion, {row['fps_end_to_end']:.1f} end to end, "
            f"{row['cache_bytes'] / 1e6:.2f} MB held of {row['full_cache_bytes'] / 1e6:.2f} MB in a full cache"
        )
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def times(report: GenerationReport) -> dict[str, float]:
    """Where the time of one video went; writing snapshots stands apart, as in `generate --json`."""
    return {name: value for name, value in report.to_json().items() if name.startswith("fps_") or name.endswith("_ms")}


if __name__ == "__main__":
    main()
