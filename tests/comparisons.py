"""Finished comparisons, made up: videos are measured as a model's would be, and no model is needed."""

from pathlib import Path

import numpy as np
import torch

from forcing_kv.evaluation import Comparison
from forcing_kv.evaluation.comparison import Chosen, Contestant
from forcing_kv.evaluation.finished import ComparedVideo
from forcing_kv.evaluation.metrics import METRICS, Measured
from forcing_kv.evaluation.run import Compared
from forcing_kv.geometry import pixel_frames
from forcing_kv.policies import parse_policy
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video.h264 import encode_mp4

CHUNK_FRAMES = 3
ATTRIBUTES = ("colour", "shape", "motion", "camera")


def measured(num_chunks=4, *, flow=1.0, boundary_flow=None, rights=None, is_reference=False, rng=None, **levels):
    """A video whose series have one value all along, with a little noise where there is a generator.

    Args:
        num_chunks: Of three latent frames.
        flow: Of pairs within a chunk.
        boundary_flow: Of pairs over a boundary; as the others if not given.
        rights: By the rules of a world.
        is_reference: Whether it has no series that compare.
        rng: Of the noise.
        **levels: Values of other series.
    """
    chunk_starts = tuple(pixel_frames(CHUNK_FRAMES * chunk) for chunk in range(num_chunks))
    num_frames = pixel_frames(CHUNK_FRAMES * num_chunks)
    values = {"squared-error": 25.0, "ssim": 0.9, "cosine": 0.95}
    values |= {"red": 100.0, "green": 110.0, "blue": 120.0, "contrast": 50.0, "sharpness": 4.0} | levels
    series = {name: np.full(num_chunks if name == "cosine" else num_frames, value) for name, value in values.items()}
    series["flow"] = np.full(num_frames - 1, flow)
    if boundary_flow is not None:
        series["flow"][[start - 1 for start in chunk_starts[1:]]] = boundary_flow
    if rng is not None:
        series = {name: each * rng.uniform(0.97, 1.03, each.shape) for name, each in series.items()}
    if is_reference:
        series = {name: each for name, each in series.items() if name not in ("squared-error", "ssim", "cosine")}
    return Measured(series=series, chunk_starts=chunk_starts, num_frames=num_frames, rights=rights)


def compared_video(video, *, cache_bytes=1_000_000):
    """A finished video with these measurements."""
    return ComparedVideo(
        identity={},
        measured=video,
        cache_bytes=cache_bytes,
        full_cache_bytes=6_000_000,
        milliseconds={"diffusion": 800.0, "decode": 100.0},
    )


def compared(videos, folder: Path, *, metrics=None, size=(48, 32), not_judged=None, cache_bytes=None):
    """A comparison of made-up videos.

    Args:
        videos: Spelling of a policy -> what was measured of each prompt; the first is the reference.
        folder: Where small video files are made, one per policy that all prompts share.
        metrics: Names; all but LPIPS if not given.
        size: Width and height.
        not_judged: Reasons by index of the prompt.
        cache_bytes: By spelling.
    """
    policies = [parse_policy(spec) for spec in videos]
    specs = [policy.spec() for policy in policies]
    num_prompts = len(next(iter(videos.values())))
    first = next(iter(videos.values()))[0]
    metrics = [name for name in METRICS if name != "lpips"] if metrics is None else metrics
    paths = {}
    for number, spec in enumerate(specs):
        path = folder / f"{number}.mp4"
        path.write_bytes(encode_mp4(_pictures(first.num_frames, *size, shift=5 * number), fps=16))
        paths[spec] = [path] * num_prompts
    return Compared(
        asked=Comparison(policies=tuple(specs), num_frames=first.num_frames, seed=7),
        prompts=tuple(f"prompt <{index}> & more" for index in range(num_prompts)),
        contestants=tuple(Contestant(policy=policy, options=StreamOptions()) for policy in policies),
        chosen=Chosen(
            metrics=tuple(METRICS[name] for name in metrics),
            left_out={"lpips": "LPIPS needs lpips"},
            meters={},
            flow="DIS (OpenCV)",
            world=None,
        ),
        videos={
            spec: [compared_video(video, cache_bytes=(cache_bytes or {}).get(spec, 1_000_000)) for video in each]
            for spec, each in zip(specs, videos.values(), strict=True)
        },
        paths=paths,
        not_judged=not_judged or {},
        settings={
            "model": "made-up",
            "resolution": list(size),
            "fps": 16,
            "num_chunks": len(first.chunk_starts),
            "chunk_frames": CHUNK_FRAMES,
            "timesteps": [1000.0, 937.5, 833.3, 625.0],
            "precision": None,
            "positions": "absolute",
            "kv_dtype": None,
            "step_cache": None,
            "steps_skipped": 0,
            "reference": specs[0],
        },
    )


def _pictures(num_frames, width, height, *, shift):
    """A grey gradient that moves."""
    levels = torch.arange(width) + torch.arange(height)[:, None] + 2 * torch.arange(num_frames)[:, None, None] + shift
    return (levels % 256).to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
