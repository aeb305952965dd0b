"""Whether decoding and writing beside the diffusion pays: the same videos with and without, in turns.

The two make the same file, byte for byte; what differs is the time by the clock, and what the passes take while they
share the device. One turn warms up; medians of the others are reported.

    python benchmarks/overlap.py --json benchmarks/results/overlap_cpu_DATE.json
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from forcing_kv import VideoPipeline
from forcing_kv.bench import environment
from forcing_kv.generation import VideoRequest, generate_video
from forcing_kv.prompt_schedule import prompt_schedule
from forcing_kv.video import DecoderOptions

PROMPT = "a large red circle moving right slowly at the left on a striped gray background"
MEASURES = ("fps_end_to_end", "fps_diffusion", "decode_ms", "encode_ms", "waited_ms", "cpu_seconds")


def main() -> None:
    """Measures both ways in turn, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--decoder", type=Path, help="a tiny decoder's file")
    parser.add_argument("--policy", default="forcing-kv")
    parser.add_argument("--seconds", type=int, default=10, help="length of each video")
    parser.add_argument("--repeats", type=int, default=5, help="timed videos each way")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()

    made_with = environment()  # before the run: the tree may change under a long one
    pipeline = VideoPipeline.from_pretrained(args.model, device=args.device, decoding=DecoderOptions(file=args.decoder))
    num_frames = args.seconds * pipeline.preset.fps
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "overlapped": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.repeats + 1):
            files = []
            for way, timings in runs.items():
                pipeline.decoding = replace(pipeline.decoding, overlap=way == "overlapped")
                path = Path(folder) / f"{way}.mp4"
                run = timed(pipeline, path, num_frames=num_frames, seed=turn, policy=args.policy)
                files.append(path.read_bytes())
                print(f"turn {turn}, {way}: {run['fps_end_to_end']:.1f} FPS end to end", flush=True)
                if turn:
                    timings.append(run)
            assert files[0] == files[1], "the files differ"

    rows = {
        way: {name: statistics.median(run[name] for run in each) for name in MEASURES} for way, each in runs.items()
    }
    gain = rows["overlapped"]["fps_end_to_end"] / rows["plain"]["fps_end_to_end"]
    document = {
        "benchmark": "overlap",
        "config": {
            "model": args.model,
            "policy": args.policy,
            "prompt": PROMPT,
            "seconds": args.seconds,
            "repeats": args.repeats,
            "device": str(pipeline.device),
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **(pipeline.decoder.settings() if pipeline.decoder else {}),
        },
        "medians": rows,
        "gain": gain,
        "runs": runs,
        "environment": made_with,
    }
    for name, row in rows.items():
        print(f"{name:<10} {row['fps_end_to_end']:.1f} FPS end to end, {row['fps_diffusion']:.1f} of diffusion")
    print(f"gain {gain:.3f}")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def timed(pipeline: VideoPipeline, path: Path, *, num_frames: int, seed: int, policy: str) -> dict[str, float]:
    """One video: what its report says, and the processor time of all threads."""
    request = VideoRequest(prompts=prompt_schedule(PROMPT), path=path, num_frames=num_frames, seed=seed, policy=policy)
    worked = time.process_time()
    report = generate_video(pipeline, request, overwrite=True)
    values = {**report.to_json(), "cpu_seconds": time.process_time() - worked}
    return {name: values[name] for name in (*MEASURES, "diffusion_ms", "text_ms", "snapshot_ms")}


if __name__ == "__main__":
    main()
