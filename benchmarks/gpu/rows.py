"""What is measured on a GPU: every stage is a list of runs of `forcing-kv bench`, written down as data.

A run is one call, with one or more policies in turn; a policy of a run is a row of the results. The stage `ladder` adds
one thing at a time to the plain pass; what it finds to be quickest is the way in which the other stages run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from forcing_kv.attention import AUTO, BACKENDS, Placement, choose_backend
from forcing_kv.attention.orders import ORDERS
from forcing_kv.bench import environment
from forcing_kv.errors import ForcingKVError
from forcing_kv.execution import check_execution
from forcing_kv.models import find_model
from forcing_kv.wan import WAN_1_3B, check_precision

SMALL = "self-forcing-1.3b"
LARGE = "krea-realtime-14b"
POLICIES = ("full", "window", "forcing-kv")
OURS = "forcing-kv"
ALONE = "alone"
OVERLAPPED = "overlapped"
VIDEO_SECONDS = 5.0
"""81 frames, 7 chunks: the last is the one at which `full` reads 21 latent frames."""

TOY_MODEL, TOY_RESOLUTION, TOY_SECONDS = "tiny", "96x64", 3.0
"""Of a dry run: the embedded model, whose weights and decoder are here, and 5 chunks, of which some are steady."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of `forcing-kv bench`.

    Attributes:
        name: Within its stage.
        model: Whose shapes; weights are random.
        resolution: Of the videos.
        policies: In turn, in their spelling.
        attention: Back end, or `auto`.
        execution: How passes are run.
        precision: Of the linear layers; None for bfloat16.
        overlap: Whether the VAE works beside the next chunk's passes.
        vae_layout: How the VAE's weights lie in memory, or `auto`.
        compile_vae: Whether the VAE is compiled.
        compared: The figure that the run is about, whose prediction the measurement is set against.
    """

    name: str
    model: str = SMALL
    resolution: str = "480p"
    policies: tuple[str, ...] = (OURS,)
    attention: str = AUTO
    execution: str = "eager"
    precision: str | None = None
    overlap: bool = False
    vae_layout: str = AUTO
    compile_vae: bool = False
    compared: str = "chunk_ms"

    @property
    def seconds(self) -> float:
        """Length of the videos."""
        return TOY_SECONDS if self.model == TOY_MODEL else VIDEO_SECONDS

    def options(self) -> dict[str, Any]:
        """For the JSON of a row: everything but the policies."""
        settings = {name: value for name, value in vars(self).items() if name not in ("name", "policies", "compared")}
        return {**settings, "dtype": "bfloat16"}

    def on_cpu(self) -> "Run":
        """The same for a dry run: a small model, and run as a CPU can."""
        return replace(self.toy(), execution="eager", attention=AUTO, compile_vae=False)

    def toy(self) -> "Run":
        """The same with a small model."""
        return replace(self, model=TOY_MODEL, resolution=TOY_RESOLUTION)

    def lacks(self, device: torch.device) -> str | None:
        """What is missing here to run it, in words; None where nothing is."""
        config = find_model(self.model).config
        try:
            check_execution(self.execution, device=device)
            check_precision(self.precision, config, dtype=torch.bfloat16, device=device)
            choose_backend(self.attention, Placement(device=device, dtype=torch.bfloat16, head_dim=config.head_dim))
        except ForcingKVError as error:
            return str(error)
        return None

    def arguments(self, *, repeats: int, device: str) -> list[str]:
        """Of `forcing-kv`, but for where the report goes."""
        made = ["bench", "--model", self.model, "--device", device, "--dtype", "bfloat16"]
        made += [] if self.model == TOY_MODEL else ["--random-weights"]
        made += ["--resolution", self.resolution, "--policies", ",".join(self.policies)]
        made += ["--seconds", f"{self.seconds:g}", "--repeats", str(repeats)]
        made += ["--attention", self.attention, "--execution", self.execution]
        made += ["--overlap" if self.overlap else "--no-overlap", "--vae-layout", self.vae_layout]
        if self.precision is not None:
            made += ["--precision", self.precision]
        if self.compile_vae:
            made += ["--compile-vae"]
        return made


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the stages after the ladder run passes.

    Attributes:
        execution: As of a `Run`.
        attention: As of a `Run`.
        known_from: Where that comes from.
    """

    execution: str = "compile+cuda-graphs"
    attention: str = AUTO
    known_from: str = "not known: the ladder has not been measured"


def quickest_way(out: Path, settings: Mapping[str, str] = os.environ) -> Way:
    """EXECUTION and ATTENTION, where they are set; else what the ladder in `out` found; else what is expected.

    Only rows in bfloat16 count: fp8 is a stage of its own.
    """
    way = Way()
    path = out / "ladder.json"
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
        measured = [row for row in document["rows"] if row["measured"] and row["options"]["precision"] is None]
        if measured and not document["dry_run"]:
            best = min(measured, key=lambda row: float(row["measured"]["chunk_ms"]))
            options = best["options"]
            way = Way(execution=options["execution"], attention=options["attention"], known_from="the ladder")
    asked = {name: settings[name.upper()] for name in ("execution", "attention") if settings.get(name.upper())}
    return replace(way, **asked, known_from="the environment") if asked else way


def made_with() -> dict[str, Any]:
    """As `environment`; the commit is COMMIT's where the source tree is no git checkout."""
    known = environment()
    return {**known, "commit": known["commit"] or os.environ.get("COMMIT")}


def attention_there(name: str) -> str:
    """The back end that a name means here; without a GPU, what `auto` would mean on an H200 that lacks nothing."""
    if name != AUTO:
        return name
    if torch.cuda.is_available():
        placement = Placement(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=WAN_1_3B.head_dim)
        return choose_backend(AUTO, placement).name
    return next(order.names[0] for order in ORDERS if order.capability and order.capability[0] == (9, 0))


def ladder() -> tuple[Run, ...]:
    """One thing more on every rung. Back ends stand side by side; rungs that leave theirs open take the quickest."""
    graphs, compiled = "cuda-graphs", "compile+cuda-graphs"
    return (
        Run(name="eager, torch's own attention", attention="sdpa"),
        Run(name="CUDA graphs", attention="sdpa", execution=graphs),
        *(Run(name=f"{name} attention, {launches_of(name)}", attention=name, execution=graphs) for name in RIVALS),
        Run(name="compiled pieces", execution=compiled),
        Run(name="fp8 linear layers", precision="fp8", execution=compiled),
    )


RIVALS = ("cudnn", "fa3", "triton")
"""Back ends of the ladder."""


def launches_of(name: str) -> str:
    """Of a layer with two head groups, in words."""
    return "one launch" if BACKENDS[name].one_launch else "two launches side by side"


def resolution_runs(resolution: str, precision: str | None, way: Way) -> tuple[Run, ...]:
    """Passes alone, with the VAE after them; and the two beside each other.

    At 1080p overlap is timed for our policy alone: a video of `full` takes half a minute there.
    """
    alone = Run(
        name=ALONE,
        resolution=resolution,
        policies=POLICIES,
        attention=way.attention,
        execution=way.execution,
        precision=precision,
        compile_vae=True,
    )
    beside = (OURS,) if resolution == "1080p" else POLICIES
    # Beside the VAE passes take longer, and what counts is the two together.
    return alone, replace(alone, name=OVERLAPPED, policies=beside, overlap=True, compared="fps_end_to_end")


def vae_runs(way: Way) -> tuple[Run, ...]:
    """The VAE after the passes, not compiled in either layout, and compiled."""
    run = Run(name="", attention=way.attention, execution=way.execution, compared="vae_ms")
    return (
        replace(run, name="contiguous", vae_layout="contiguous"),
        replace(run, name="channels-last", vae_layout="channels-last"),
        replace(run, name="channels-last, compiled", vae_layout="channels-last", compile_vae=True),
    )


def large_runs(way: Way) -> tuple[Run, ...]:
    """The 14B model at 480p, with its own setting of our policy."""
    ours = find_model(LARGE).preset.default_policy
    bf16 = Run(name="bf16", model=LARGE, policies=("window", ours), attention=way.attention, execution=way.execution)
    return bf16, replace(bf16, name="fp8", precision="fp8")


def stages(way: Way) -> dict[str, tuple[Run, ...]]:
    """The runs of every stage that is made of them, by its name."""
    by_resolution = {
        f"{resolution}-{precision or 'bf16'}": resolution_runs(resolution, precision, way)
        for resolution in ("480p", "720p", "1080p")
        for precision in (None, "fp8")
    }
    return {"ladder": ladder(), "vae": vae_runs(way), **by_resolution, "14b": large_runs(way)}
