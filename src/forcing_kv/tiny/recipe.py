"""The whole recipe of the embedded model, stage by stage; every stage picks up where it was stopped.

    vae          train the VAE, measure its latents' mean and deviation   -> FOLDER/vae
    latents      draw clips, encode them                                  -> FOLDER/latents/*.pt
    transformer  train transformer and text encoder                       -> FOLDER/transformer.pt
    decoder      train the VAE's decoder further, its encoder unchanged   -> FOLDER/vae
    (export.py writes the model folder from these)

The working folder holds checkpoints and data; nothing in it is needed once the model is exported.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from forcing_kv.errors import CheckpointError
from forcing_kv.tiny.latents import LatentClips, encode_clip_means, encode_clips, load_group, save_group
from forcing_kv.tiny.trainer import Progress, Schedule
from forcing_kv.tiny.transformer import (
    TRANSFORMER_SCHEDULE,
    TextAndTransformer,
    add_transformer_gradients,
    transformer_trainer,
)
from forcing_kv.tiny.vae import VAE_SCHEDULE, build_vae, random_clips, vae_loss, vae_trainer
from forcing_kv.tiny.vae_decoder import DECODER_SCHEDULE, add_decoder_gradients, decoder_trainer

STAGES = ("vae", "latents", "transformer", "decoder")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the training set: so many clips of so many latent frames."""

    num_clips: int
    num_frames: int
    index: int

    @property
    def name(self) -> str:
        """File name."""
        return f"clips_{self.num_frames}_{self.index:02d}.pt"


SHARDS = tuple(
    shard
    for index in range(10)
    for shard in (
        Shard(num_clips=20, num_frames=81, index=index),
        Shard(num_clips=100, num_frames=24, index=index),
    )
)
"""81 latent frames are 20 s; 24 are enough for the first eight chunks."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run of the recipe is made of; two runs with equal recipes give equal models on one machine."""

    seed: int = 0
    vae: Schedule = VAE_SCHEDULE
    transformer: Schedule = TRANSFORMER_SCHEDULE
    decoder: Schedule = DECODER_SCHEDULE
    shards: tuple[Shard, ...] = SHARDS
    num_measured_clips: int = 64
    num_calibration_prompts: int = 64
    batch_scale: float = 1.0
    device: str = "cpu"


def train_vae(folder: Path, recipe: Recipe, *, max_seconds: float) -> Iterator[Progress]:
    """Stage one. Writes FOLDER/vae when the schedule, or this call's time, is over."""
    trainer = vae_trainer(folder, seed=recipe.seed, schedule=recipe.vae)
    trainer.resume()
    trainer.to(recipe.device)

    def add_gradients(generator: torch.Generator, step: int) -> float:
        loss = vae_loss(trainer.model, generator, device=recipe.device)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    yield from trainer.run(add_gradients, max_seconds=max_seconds)
    trainer.use_average()
    vae = trainer.model.cpu()
    assert isinstance(vae, AutoencoderKLWan)
    measure_latents(vae, recipe.num_measured_clips)
    vae.save_pretrained(folder / "vae")


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, num_clips: int = 64) -> None:
    """Put mean and deviation of each latent channel, over random clips, into the VAE's config."""
    parts = [
        encode_clip_means(vae, random_clips(8, 33, torch.Generator().manual_seed(seed)))
        for seed in range(num_clips // 8)
    ]
    latents = torch.cat(parts)
    mean, std = latents.mean(dim=(0, 1, 3, 4)), latents.std(dim=(0, 1, 3, 4))
    vae.register_to_config(
        latents_mean=[round(value, 5) for value in mean.tolist()],
        latents_std=[round(value, 5) for value in std.tolist()],
    )


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE that stage one left in a working folder, fp32.

    Raises:
        CheckpointError: if there is none yet.
    """
    if not (folder / "vae" / "config.json").exists():
        raise CheckpointError(f"{folder} has no trained VAE yet; run the stage 'vae' first")
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    vae = build_vae()
    vae.register_to_config(latents_mean=config["latents_mean"], latents_std=config["latents_std"])
    vae.load_state_dict(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    return vae


def encode_training_set(
    folder: Path, recipe: Recipe, *, report: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Stage two. Shards that exist are kept.

    Args:
        folder: the working folder.
        recipe: seeds and shards.
        report: called with the number of shards done and of all.
    """
    vae = load_vae(folder).to(recipe.device)
    for done, shard in enumerate(recipe.shards):
        path = folder / "latents" / shard.name
        if not path.exists():
            seed = recipe.seed * 100_000 + shard.num_frames * 100 + shard.index
            save_group(encode_clips(vae, shard.num_clips, shard.num_frames, seed=seed), path)
        report(done + 1, len(recipe.shards))


def load_training_set(folder: Path, recipe: Recipe) -> LatentClips:
    """What stage two left in a working folder.

    Raises:
        CheckpointError: if a shard is missing.
    """
    missing = [shard.name for shard in recipe.shards if not (folder / "latents" / shard.name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder}/latents lacks {len(missing)} of {len(recipe.shards)} files, the first is {missing[0]}; "
            "run the stage 'latents' first"
        )
    return LatentClips([load_group(folder / "latents" / shard.name) for shard in recipe.shards])


def train_transformer(folder: Path, recipe: Recipe, *, max_seconds: float) -> Iterator[Progress]:
    """Stage three. Checkpoints to FOLDER/transformer.pt."""
    clips = load_training_set(folder, recipe)
    trainer = transformer_trainer(folder, seed=recipe.seed, schedule=recipe.transformer)
    trainer.resume()
    trainer.to(recipe.device)
    model = trainer.model
    assert isinstance(model, TextAndTransformer)
    yield from trainer.run(
        lambda generator, step: add_transformer_gradients(
            model, clips, generator, step=step, batch_scale=recipe.batch_scale
        ),
        max_seconds=max_seconds,
    )


def load_averaged(folder: Path) -> TextAndTransformer:
    """The averaged transformer and text encoder of a working folder's checkpoint, fp32.

    Raises:
        CheckpointError: if there is none yet.
    """
    path = folder / "transformer.pt"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; run the stage 'transformer' first")
    model = TextAndTransformer()
    average = torch.load(path, weights_only=True, map_location="cpu")["average"]
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(average[name])
    return model.eval()


def train_decoder(folder: Path, recipe: Recipe, *, max_seconds: float) -> Iterator[Progress]:
    """Stage four. Writes FOLDER/vae again, with another decoder."""
    vae = load_vae(folder).requires_grad_(False)
    trainer = decoder_trainer(vae, folder, seed=recipe.seed, schedule=recipe.decoder)
    trainer.model.requires_grad_(True)
    trainer.resume()
    vae.to(recipe.device)
    trainer.to(recipe.device)
    parameters = list(trainer.parameters.values())
    yield from trainer.run(
        lambda generator, step: add_decoder_gradients(vae, parameters, generator, device=recipe.device),
        max_seconds=max_seconds,
    )
    trainer.use_average()
    vae.cpu().save_pretrained(folder / "vae")


def recipe_with(*, seed: int = 0, num_steps: int | None = None, device: str = "cpu") -> Recipe:
    """The recipe with another seed, another length of both schedules, or on another device."""
    recipe = Recipe(seed=seed, device=device)
    if num_steps is None:
        return recipe
    return replace(
        recipe,
        vae=replace(recipe.vae, num_steps=num_steps, stop_step=None),
        transformer=replace(recipe.transformer, num_steps=num_steps, stop_step=None),
        decoder=replace(recipe.decoder, num_steps=num_steps, stop_step=None),
    )
