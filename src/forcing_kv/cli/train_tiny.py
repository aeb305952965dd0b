"""`forcing-kv train-tiny`: train the embedded model again, from nothing."""

from pathlib import Path

import click


@click.command("train-tiny")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Working folder of the training.")
@click.option("--seed", default=0, show_default=True, help="Fixes weights, clips, noise, everything.")
@click.option("--minutes", type=float, help="Stop each training stage after so long (resume later with --resume).")
@click.option("--steps", type=int, help="Length of each training stage's schedule, in steps.  [default: the recipe's]")
@click.option("--resume", is_flag=True, help="Go on with the checkpoints in the working folder.")
@click.option(
    "--stage",
    type=click.Choice(["all", "vae", "sharpen", "latents", "transformer", "decoder", "export"]),
    default="all",
    show_default=True,
    help="One stage, or all in this order.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu or cuda.")
def command(  # noqa: PLR0917  # click passes by name
    output: Path, seed: int, minutes: float | None, steps: int | None, resume: bool, stage: str, device: str
) -> None:
    """Train the embedded model 'tiny' from nothing: hours on two CPU cores.

    Everything is drawn by the program itself. The stages:

    \b
      vae          the VAE, on drawn clips
      sharpen      the VAE again, objects first
      latents      the training set: clips drawn and encoded
      transformer  transformer and text encoder together; takes the longest
      decoder      the VAE's decoder still further, the latents unchanged
      export       the model folder, its head map measured

    Checkpoints are written every minute, and --resume goes on with them; the finished model folder is OUTPUT/model,
    which `--model OUTPUT/model` runs.
    """
    from forcing_kv.tiny.training import recipe as stages
    from forcing_kv.tiny.training.export import export_model

    if not resume and any(output.glob("*.pt")):
        raise click.UsageError(f"{output} holds checkpoints; add --resume to go on with them, or choose a new folder")
    recipe = stages.recipe_with(seed=seed, num_steps=steps, device=device)
    max_seconds = float("inf") if minutes is None else 60 * minutes
    if stage in ("all", "vae"):
        _show("vae", stages.train_vae(output, recipe, max_seconds=max_seconds))
    if stage in ("all", "sharpen"):
        _show("sharpen", stages.sharpen_vae(output, recipe, max_seconds=max_seconds))
    if stage in ("all", "latents"):
        stages.encode_training_set(output, recipe, report=lambda done, total: click.echo(f"latents {done}/{total}"))
    if stage in ("all", "transformer"):
        _show("transformer", stages.train_transformer(output, recipe, max_seconds=max_seconds))
    if stage in ("all", "decoder"):
        _show("decoder", stages.train_decoder(output, recipe, max_seconds=max_seconds))
    if stage in ("all", "export"):
        model = export_model(output, output / "model", recipe=recipe)
        click.echo(f"the model lies in {model}")


def _show(name: str, progress: "object") -> None:
    """Print a line every 25 steps."""
    from collections.abc import Iterable
    from typing import cast

    from forcing_kv.tiny.training.trainer import Progress

    losses: list[float] = []
    for state in cast("Iterable[Progress]", progress):
        losses.append(state.loss)
        if state.step % 25 == 0 or state.step == state.num_steps:
            mean = sum(losses) / len(losses)
            losses.clear()
            click.echo(f"{name} step {state.step}/{state.num_steps}  loss {mean:.4f}  {state.seconds / 60:.1f} min")
