"""The whole recipe of the embedded model, stage by stage; every stage picks up where it was stopped.

    vae          train the VAE                                            -> FOLDER/vae
    sharpen      train it further, objects first; measure its latents     -> FOLDER/vae
    latents      draw clips, encode them                                  -> FOLDER/latents/*.pt
    transformer  train transformer and text encoder                       -> FOLDER/transformer.pt
    decoder      train the VAE's decoder still further, latents unchanged -> FOLDER/vae
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
from forcing_kv.models.components import channels_last
from forcing_kv.tiny.training.latents import KINDS, LatentClips, encode_clip_means, encode_group, load_group, save_group
from forcing_kv.tiny.training.trainer import Progress, Schedule, Trainer, one_core_per_part
from forcing_kv.tiny.training.transformer import (
    TRANSFORMER_SCHEDULE,
    TextAndTransformer,
    add_transformer_gradients,
    compile_blocks,
)
from forcing_kv.tiny.training.vae import (
    DECODER_SCHEDULE,
    OBJECT_WEIGHT,
    SHARPEN_SCHEDULE,
    VAE_SCHEDULE,
    DecoderOnly,
    add_vae_gradients,
    build_vae,
    random_clips,
)

STAGES = ("vae", "sharpen", "latents", "transformer", "decoder")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the training set: so many clips of a kind."""

    kind: str
    num_clips: int
    index: int
    num_chunks: int | None = None

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.kind}_{self.index:03d}.pt"


def _shards(kind: str, num_shards: int, num_clips: int) -> tuple[Shard, ...]:
    return tuple(Shard(kind=kind, num_clips=num_clips, index=index) for index in range(num_shards))


SHARDS = (
    *_shards("first", 6, 600),
    *_shards("pair", 8, 600),
    *_shards("start", 16, 50),
    *_shards("switch", 14, 30),
    *_shards("memory", 60, 14),
    *_shards("wrap", 8, 14),
    *_shards("far", 36, 12),
    *_shards("long", 30, 8),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run of the recipe is made of; two runs with equal recipes give equal models on one machine."""

    seed: int = 0
    vae: Schedule = VAE_SCHEDULE
    sharpen: Schedule = SHARPEN_SCHEDULE
    transformer: Schedule = TRANSFORMER_SCHEDULE
    decoder: Schedule = DECODER_SCHEDULE
    shards: tuple[Shard, ...] = SHARDS
    num_measured_clips: int = 64
    num_calibration_prompts: int = 64
    batch_scale: float = 1.0
    device: str = "cpu"
    compiled: bool = True
    """Whether torch compiles the transformer's blocks, where it can: minutes at the start, a third off every step."""


def train_vae(folder: Path, recipe: Recipe, *, max_seconds: float) -> Iterator[Progress]:
    """Stage one. Writes FOLDER/vae when the schedule, or this call's time, is over."""
    vae = build_vae(recipe.seed)
    trainer = Trainer(vae, recipe.vae, seed=recipe.seed, checkpoint=folder / "vae.pt")
    yield from _train_vae_part(vae, trainer, recipe, max_seconds=max_seconds, object_weight=0.0)
    vae.save_pretrained(folder / "vae")


def sharpen_vae(folder: Path, recipe: Recipe, *, max_seconds: float) -> Iterator[Progress]:
    """Stage two. Writes FOLDER/vae again, with the mean and deviation of its latents."""
    vae = load_vae(folder)
    trainer = Trainer(vae, recipe.sharpen, seed=recipe.seed + 1, checkpoint=folder / "vae_sharp.pt")
    yield from _train_vae_part(vae, trainer, recipe, max_seconds=max_seconds, object_weight=OBJECT_WEIGHT)
    measure_latents(vae, recipe.num_measured_clips)
    vae.save_pretrained(folder / "vae")


def train_decoder(folder: Path, recipe: Recipe, *, max_seconds: float) -> Iterator[Progress]:
    """The last stage. Writes FOLDER/vae again, with another decoder."""
    vae = load_vae(folder).requires_grad_(False)
    part = DecoderOnly(vae).requires_grad_(True)
    trainer = Trainer(part, recipe.decoder, seed=recipe.seed + 2, checkpoint=folder / "vae_decoder.pt")
    yield from _train_vae_part(vae, trainer, recipe, max_seconds=max_seconds, object_weight=OBJECT_WEIGHT)
    vae.save_pretrained(folder / "vae")


def _train_vae_part(
    vae: AutoencoderKLWan, trainer: Trainer, recipe: Recipe, *, max_seconds: float, object_weight: float
) -> Iterator[Progress]:
    """Train what the trainer has of a VAE; its averaged weights are in the VAE at the end."""
    trainer.resume()
    vae.to(recipe.device)
    trainer.to(recipe.device)
    parameters = list(trainer.parameters.values())

    def add_gradients(generator: torch.Generator, step: int) -> float:
        return add_vae_gradients(vae, parameters, generator, object_weight=object_weight, device=recipe.device)

    with one_core_per_part():
        yield from trainer.run(add_gradients, max_seconds=max_seconds)
    trainer.use_average()
    vae.cpu()


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
    """The VAE that the stages so far left in a working folder, fp32.

    Raises:
        CheckpointError: if there is none yet.
    """
    if not (folder / "vae" / "config.json").exists():
        raise CheckpointError(f"{folder} has no trained VAE yet; run the stage 'vae' first")
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    vae = build_vae()
    vae.register_to_config(latents_mean=config["latents_mean"], latents_std=config["latents_std"])
    vae.load_state_dict(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    channels_last(vae)
    return vae


def encode_training_set(
    folder: Path, recipe: Recipe, *, report: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Stage three. Shards that exist are kept.

    Args:
        folder: the working folder.
        recipe: seeds and shards.
        report: called with the number of shards done and of all.
    """
    vae = load_vae(folder).to(recipe.device)
    for done, shard in enumerate(recipe.shards):
        path = folder / "latents" / shard.name
        if not path.exists():
            seed = 1_000_000 * recipe.seed + 1_000 * KINDS.index(shard.kind) + shard.index
            group = encode_group(vae, shard.kind, shard.num_clips, seed=seed, num_chunks=shard.num_chunks)
            save_group(group, path)
        report(done + 1, len(recipe.shards))


def load_training_set(folder: Path, recipe: Recipe) -> LatentClips:
    """What stage three left in a working folder.

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
    """Stage four. Checkpoints to FOLDER/transformer.pt."""
    clips = load_training_set(folder, recipe)
    model = TextAndTransformer(seed=recipe.seed)
    trainer = Trainer(model, recipe.transformer, seed=recipe.seed, checkpoint=folder / "transformer.pt")
    trainer.resume()
    trainer.to(recipe.device)
    if recipe.compiled:
        compile_blocks(model)

    def add_gradients(generator: torch.Generator, step: int) -> float:
        return add_transformer_gradients(model, clips, generator, batch_scale=recipe.batch_scale)

    yield from trainer.run(add_gradients, max_seconds=max_seconds)


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


def recipe_with(*, seed: int = 0, num_steps: int | None = None, device: str = "cpu") -> Recipe:
    """The recipe with another seed, another length of all schedules, or on another device."""
    recipe = Recipe(seed=seed, device=device)
    if num_steps is None:
        return recipe
    return replace(
        recipe,
        vae=replace(recipe.vae, num_steps=num_steps, stop_step=None),
        sharpen=replace(recipe.sharpen, num_steps=num_steps, stop_step=None),
        transformer=replace(recipe.transformer, num_steps=num_steps, stop_step=None),
        decoder=replace(recipe.decoder, num_steps=num_steps, stop_step=None),
    )
