"""`forcing-kv models`: what can be run."""

from collections.abc import Sequence

import click

from forcing_kv.memory import UMT5_XXL_PARAMETERS, memory_table, plan_stream
from forcing_kv.models import RELEASED_MODELS, ModelSource, find_model, list_models
from forcing_kv.models.released import WAN_COMPONENTS_BYTES
from forcing_kv.models.zoo import EMBEDDED_MODELS
from forcing_kv.policies import ForcingKV, Full, Window

Row = Sequence[str]


@click.command("models")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def command(names: tuple[str, ...]) -> None:
    """What can be run: licence, download, whether the weights are on this machine, and the memory a run needs.

    With NAMEs only these, and where their weights come from and how they are sampled. The path of a saved model folder
    is a name, too. Memory is in GB (10^9 bytes) for one video in bfloat16, computed from the sizes alone.
    """
    sources = [find_model(name) for name in names] or list_models()
    click.echo(_table([("model", "licence", "download", "here", ""), *map(_summary, sources)]))
    click.echo(
        "\nDownloads are computed from the models' sizes. Text encoder and VAE, shared by all but tiny, are another "
        f"{_gigabytes(WAN_COMPONENTS_BYTES)} GB, once."
        if not names
        else "\n" + "\n\n".join(map(_details, sources))
    )
    large = [source for source in sources if source.preset.name not in EMBEDDED_MODELS]
    if large:
        click.echo("\nMemory of a run in GB; `full` at 21 latent frames (5 s), the others at any length:\n")
        click.echo(_memory(large))
        click.echo(
            f"\nEncoding a prompt takes {_gigabytes(2 * UMT5_XXL_PARAMETERS)} GB more until the encoder is freed; with "
            "--text-encoder-device cpu the host gives them."
        )


def _summary(source: ModelSource) -> Row:
    name = source.preset.name
    licence = source.preset.licence + (" (not for commercial use)" if source.preset.is_non_commercial else "")
    download = f"{_gigabytes(RELEASED_MODELS[name].download_bytes)} GB" if name in RELEASED_MODELS else "-"
    return name, licence, download, "yes" if source.is_here() else "no", source.preset.description


def _details(source: ModelSource) -> str:
    preset = source.preset
    width, height = preset.default_resolution
    steps = ", ".join(f"{timestep:g}" for timestep in preset.sampler.timesteps)
    head_map = source.head_map
    rows = [
        ("weights", str(source.weights)),
        ("LoRA", f"{source.lora.location}, merged at load" if source.lora else "none"),
        ("VAE", str(source.components.vae)),
        ("text encoder", str(source.components.text_encoder)),
        ("video", f"{width}x{height}, {preset.fps} frames per second, chunks of {preset.chunk_frames} latent frames"),
        ("timesteps", steps),
        ("policy", preset.default_policy),
        (
            "head map",
            f"{head_map.num_static} of {head_map.num_layers * head_map.num_heads} heads static"
            if head_map
            else "none: measure one with forcing-kv calibrate",
        ),
    ]
    return f"{preset.name}: {preset.description}\n" + _table([(f"  {label}", text) for label, text in rows])


def _memory(sources: Sequence[ModelSource]) -> str:
    policies = (Full.name, Window.name, ForcingKV.name)
    rows: list[Row] = [
        ("", "", "", "", "cache", "", "", "total", "", ""),
        ("", "size", "weights", "VAE", *policies, *policies),
    ]
    for source in sources:
        for size, needs in memory_table(plan_stream(source.config, source.preset, head_map=source.head_map)).items():
            by_name = {spec.partition(":")[0]: need for spec, need in needs.items()}
            some = next(iter(needs.values()))
            caches = [_gigabytes(by_name[name].cache_bytes) if name in by_name else "-" for name in policies]
            totals = [_gigabytes(by_name[name].total_bytes) if name in by_name else "-" for name in policies]
            parts = (_gigabytes(some.weights_bytes), _gigabytes(some.vae_bytes))
            rows.append((source.preset.name, size, *parts, *caches, *totals))
    return _table(rows)


def _table(rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f}"
