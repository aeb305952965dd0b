"""How latents become pixels: which decoder, in what dtype and memory layout, compiled or not, overlapped or not.

What suits a kind of device is data here, with where it is known from; everything can be asked for otherwise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from forcing_kv.devices import DTYPES, lacks_compiler, resolve_dtype
from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.video.size import DecoderSize
from forcing_kv.video.tiny_decoder import TINY_DECODER

Layout = Literal["auto", "channels-last", "contiguous"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, kw_only=True)
class DeviceHabits:
    """What suits decoders on a kind of device.

    Attributes:
        channels_last: Whether weights and activations lie channels-last in memory.
        overlapped: Whether decoding and writing a chunk run beside the diffusion of the next one.
        provenance: Where that is known from.
    """

    channels_last: bool
    overlapped: bool
    provenance: str


HABITS = {
    "cpu": DeviceHabits(
        channels_last=True,
        overlapped=False,
        provenance="channels-last: measured on AMX cores, several times quicker in bfloat16; overlap: "
        "measured on two cores to be slower, 0.77 times the speed (benchmarks/results/overlap_cpu_2026-11-23.json)",
    ),
    "cuda": DeviceHabits(
        channels_last=True,
        overlapped=True,
        provenance="not measured here; reported of Wan's VAE elsewhere: 1.2 to 2.7 times quicker channels-last in "
        "bfloat16; overlap fills what diffusion leaves idle",
    ),
}
OTHER_HABITS = DeviceHabits(channels_last=False, overlapped=False, provenance="never tried")


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """What is asked for; `auto` and None leave it to the device.

    Attributes:
        file: A tiny decoder's weights (`tiny_decoder`), in place of the model's VAE; None for the VAE.
        dtype: `auto` (the model's), `float32`, `bfloat16`, `float16`, or torch's.
        layout: `auto`, `channels-last` or `contiguous`.
        compiled: Whether the VAE's decoder goes through `torch.compile`; a tiny decoder never does.
        overlap: Whether to decode and write beside the diffusion of the next chunk.

    Raises:
        UnknownNameError: A dtype or layout that is none.
        ConfigurationError: A tiny decoder, and compiled; or its file is not there.
    """

    file: Path | None = None
    dtype: str | torch.dtype = "auto"
    layout: Layout = "auto"
    compiled: bool = False
    overlap: bool | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UnknownNameError("layout", self.layout, LAYOUTS)
        if isinstance(self.dtype, str) and self.dtype not in ("auto", *DTYPES):
            raise UnknownNameError("dtype", self.dtype, ["auto", *DTYPES])
        if self.compiled and self.file is not None:
            raise ConfigurationError(
                f"only the VAE is compiled, and {self.file} takes its place: choose one of the two"
            )
        if self.file is not None and not self.file.exists():
            raise ConfigurationError(f"tiny decoder {self.file} does not exist")

    def check_on(self, device: torch.device) -> None:
        """Refuses what cannot be had there.

        Raises:
            ConfigurationError: Something is to be compiled, and what compiles it is missing.
        """
        missing = lacks_compiler(device) if self.compiled else None
        if missing is not None:
            raise ConfigurationError(f"compiling the VAE needs {missing}; or leave out --compile-vae")

    def dtype_beside(self, model_dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """What the decoder computes in, beside a transformer of that dtype."""
        return model_dtype if self.dtype == "auto" else resolve_dtype(self.dtype, device)

    def planned(self, vae: DecoderSize | None, model_dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """What `memory.plan_run` has to know of it before anything is loaded.

        Args:
            vae: Of the model; None where it is not known, or the model has none.
            model_dtype: Of the transformer.
            device: Where both run.
        """
        return {
            "vae": vae if self.file is None else TINY_DECODER,
            "vae_dtype": self.dtype_beside(model_dtype, device),
            "overlapped": self.is_overlapped(device),
        }

    def is_channels_last(self, device: torch.device) -> bool:
        """How weights lie in memory."""
        return habits(device).channels_last if self.layout == "auto" else self.layout == "channels-last"

    def is_overlapped(self, device: torch.device) -> bool:
        """Whether decoding and writing run beside the diffusion."""
        return habits(device).overlapped if self.overlap is None else self.overlap


def habits(device: torch.device) -> DeviceHabits:
    """What suits decoders there."""
    return HABITS.get(device.type, OTHER_HABITS)
