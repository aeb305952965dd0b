"""`forcing-kv convert`: a released checkpoint, or a fine-tune of one, as a model folder."""

from pathlib import Path

import click

from forcing_kv.cli import options
from forcing_kv.cli.progress import progress_bar
from forcing_kv.devices import DTYPES
from forcing_kv.models import find_model
from forcing_kv.models.convert import convert


@click.command("convert")
@click.option("--model", required=True, help="Whose sizes and settings the weights have (see `forcing-kv models`).")
@options.weights
@options.components("Folder with vae, text_encoder and tokenizer to copy as well. [the saved folder names the hub's]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--dtype",
    type=click.Choice(["keep", *DTYPES]),
    default="keep",
    show_default=True,
    help="Of the saved weights; keep is bit-exact, bfloat16 halves a float32 release.",
)
@click.option("--overwrite", is_flag=True, help="Replace a folder that exists.")
def command(
    *,
    model: str,
    weights: Path | None,
    lora: str | None,
    components: Path | None,
    output: Path,
    dtype: str,
    overwrite: bool,
) -> None:
    """Write a checkpoint as a model folder: safetensors under the released names, checked, LoRA merged.

    The folder can be given as --model everywhere. It loads faster than a .pt and needs no --weights or --lora.

    \b
    Examples:
      forcing-kv convert --model self-forcing-1.3b -o models/self-forcing --dtype bfloat16
      forcing-kv convert --model self-forcing-1.3b --weights my_finetune.pt -o models/mine
      forcing-kv convert --model longlive-1.3b --weights longlive_base.pt --lora lora.pt -o models/longlive
    """
    source = find_model(model, weights=weights, lora=lora, components=components)
    source.warn_of_licence()
    with progress_bar("writing", "file") as show:
        convert(source, output, dtype=DTYPES.get(dtype), overwrite=overwrite, on_progress=show)
    num_bytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    click.echo(f"{output}: {source.preset.name}, {num_bytes / 1e9:.2f} GB; run it with --model {output}")
