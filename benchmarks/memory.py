"""What a stream really takes of its device, beside what it was said to need before it began.

Full shapes of Wan 1.3B (or --layers of them) and the whole Wan VAE, random weights, the published head map. On a GPU
the peak is the allocator's; on a CPU it is the program's anonymous memory over what it had before the model.

    python benchmarks/memory.py --device cuda --json OUT                      # 480p, 720p and 1080p, all layers
    python benchmarks/memory.py --layers 2 --resolutions 288x192 --json OUT   # on a CPU
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan  # noqa: F401  # before anything is measured

from forcing_kv import VideoPipeline
from forcing_kv.bench import PEAK_MEMORY, environment, random_pipeline
from forcing_kv.geometry import pixel_frames
from forcing_kv.models import ModelPreset, published_head_map
from forcing_kv.resolution import parse_resolution
from forcing_kv.wan import WAN_1_3B

POLICIES = ("forcing-kv", "window", "full")


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=WAN_1_3B.num_layers, help="blocks of the model to build (of 30)")
    parser.add_argument("--device", default="cpu", choices=tuple(PEAK_MEMORY))
    parser.add_argument("--resolutions", nargs="+", default=["480p", "720p", "1080p"])
    parser.add_argument("--chunks", type=int, default=7, help="length of every stream; 7 are 21 latent frames")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--one", nargs=2, metavar=("RESOLUTION", "POLICY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        resolution, policy = args.one
        print(json.dumps(measure(resolution, policy, args.device, args.layers, args.chunks)))
        return

    made_with = environment()
    rows = []
    for resolution in args.resolutions:
        for policy in POLICIES:
            # A program of its own each: memory that was freed is not always given back.
            command = [sys.executable, __file__, *sys.argv[1:], "--one", resolution, policy]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rows.append(row)
            print(
                f"{resolution:<8} {policy:<11} said {row['need_bytes'] / 1e9:7.2f} GB, "
                f"took {row['peak_bytes'] / 1e9:7.2f} GB, {100 * row['peak_over_need']:.0f} %",
                flush=True,
            )
    document = {
        "benchmark": "memory",
        "config": {
            "model": "Wan 1.3B and its VAE, random weights",
            "layers": args.layers,
            "device": args.device,
            "dtype": "bfloat16",
            "chunks": args.chunks,
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
        "environment": made_with,
    }
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(resolution: str, policy: str, device: str, num_layers: int, num_chunks: int) -> dict[str, Any]:
    """Makes a model and runs a stream on it: what it was said to need, and the peak."""
    with PEAK_MEMORY[device]() as meter:
        pipeline = build_pipeline(torch.device(device), num_layers)
        settings: dict[str, Any] = {
            "policy": policy,
            "resolution": parse_resolution(resolution),
            "num_frames": pixel_frames(num_chunks * pipeline.preset.chunk_frames),
        }
        need = pipeline.memory_need("a prompt", **settings)
        for _ in pipeline.stream("a prompt", **settings):
            pass
    return {
        "resolution": resolution,
        "policy": policy,
        "need": need.parts(),
        "need_bytes": need.total_bytes,
        "peak_bytes": meter.taken_bytes,
        "peak_over_need": meter.taken_bytes / need.total_bytes,
    }


def build_pipeline(device: torch.device, num_layers: int) -> VideoPipeline:
    """A model of random weights, built where it runs."""
    return random_pipeline(
        ModelPreset(name="random"),
        replace(WAN_1_3B, num_layers=num_layers),
        head_map=published_head_map("self-forcing-1.3b").first_layers(num_layers),
        device=device,
        dtype=torch.bfloat16,
        with_vae=True,
    )


if __name__ == "__main__":
    main()
