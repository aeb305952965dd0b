"""From a working folder to a model folder: averaged weights in bf16, the measured head map, and how it was all made."""

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forcing_kv.calibration import calibrate
from forcing_kv.models import ModelPreset, save_model
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.text import TextEncoder
from forcing_kv.tiny.prompts import random_prompts
from forcing_kv.tiny.training.latents import CHUNK_FRAMES, LONG_CHUNKS, START_CHUNKS
from forcing_kv.tiny.training.recipe import Recipe, Shard, load_averaged, load_vae
from forcing_kv.tiny.training.teacher_forcing import MIX, RECACHED_CHUNKS
from forcing_kv.tiny.training.text import TEXT_LEN
from forcing_kv.tiny.training.trainer import condensed
from forcing_kv.tiny.world import FRAMES_PER_SECOND, HEIGHT, WIDTH
from forcing_kv.versions import versions

PRESET = ModelPreset(
    name="tiny",
    description="embedded in the package: coloured shapes that move, hide, leave and return (`forcing-kv prompts`)",
    licence="Apache-2.0",
    default_resolution=(WIDTH, HEIGHT),
    fps=FRAMES_PER_SECOND,
    recache_frames=CHUNK_FRAMES * RECACHED_CHUNKS,
)
_CALIBRATION_CHUNKS = 12


def export_model(folder: Path, target: Path, *, recipe: Recipe, hardware: str = "", notes: Sequence[str] = ()) -> Path:
    """Write the model folder.

    Args:
        folder: the working folder, with a trained VAE and transformer.
        target: the model folder to write.
        recipe: what the training was asked for.
        hardware: a few words on the machine, for `training.json`.
        notes: what else belongs there.

    Returns:
        `target`.

    Raises:
        CheckpointError: if a stage is missing.
    """
    vae = load_vae(folder)
    model = load_averaged(folder)
    model.transformer.bfloat16()
    model.text_encoder.bfloat16()
    preset = replace(PRESET, trained_frames=trained_frames(recipe.shards))
    pipeline = VideoPipeline(
        preset=preset,
        transformer=model.transformer.float(),  # rounded to bf16, computed in fp32
        encode_prompt=TextEncoder(model.text_encoder.float(), model.tokenizer, text_len=TEXT_LEN),
    )
    prompts = random_prompts(recipe.num_calibration_prompts, seed=recipe.seed, held_out=False)
    calibration = calibrate(pipeline, prompts, num_chunks=_CALIBRATION_CHUNKS, seed=recipe.seed)
    save_model(
        target,
        preset=preset,
        transformer=model.transformer.bfloat16(),
        vae=vae.bfloat16(),
        text_encoder=model.text_encoder.bfloat16(),
        tokenizer=model.tokenizer,
        head_map=calibration.head_map,
    )
    document = training_document(folder, recipe, hardware=hardware) | {"notes": list(notes)}
    (target / "training.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return target


def trained_frames(shards: Sequence[Shard]) -> int:
    """Latent frames of the longest stream that was read whole."""
    return CHUNK_FRAMES * max(
        shard.num_chunks or (LONG_CHUNKS if shard.kind == "long" else START_CHUNKS) for shard in shards
    )


def training_document(folder: Path, recipe: Recipe, *, hardware: str) -> dict[str, Any]:
    """How the model was made: seed, data, schedules, loss curves, hardware, time, versions."""
    stages = {}
    schedules = {
        "vae": recipe.vae,
        "vae_sharp": recipe.sharpen,
        "transformer": recipe.transformer,
        "vae_decoder": recipe.decoder,
    }
    for name, schedule in schedules.items():
        state = torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu")
        stages[name] = {
            "schedule": vars(schedule),
            "steps_taken": state["step"],
            "minutes": round(state["seconds"] / 60, 1),
            "loss": condensed(state["losses"]),
        }
    return {
        "seed": recipe.seed,
        "data": {
            "source": "forcing_kv.tiny.world, drawn; scenes whose hash is 0 modulo 10 are held out",
            "clips_by_kind": {
                kind: sum(shard.num_clips for shard in recipe.shards if shard.kind == kind) for kind in MIX
            },
        },
        "stages": stages,
        "shares_of_kinds": MIX,
        "hardware": hardware or f"{recipe.device}, {torch.get_num_threads()} threads, {platform.machine()}",
        "versions": versions(),
    }
