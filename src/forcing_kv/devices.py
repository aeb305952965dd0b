"""Devices and dtypes by the names they have on a command line."""

import importlib.util
import os
import shutil
import sys

import torch

from forcing_kv.errors import ConfigurationError, UnknownNameError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights, cache and passes may be."""


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` takes a CUDA GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UnknownNameError("device", str(device), ["auto", "cpu", "cuda", "cuda:N"]) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device 'cuda' was asked for, and torch sees no CUDA GPU here; use --device cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU, and on a CPU that multiplies it (AMX, AVX-512 BF16); float32 on other CPUs."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_multiplies_bfloat16() else torch.float32
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, ["auto", *DTYPES])
    return DTYPES[dtype]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def finish_stream(device: torch.device) -> None:
    """Waits until what this thread has given the device is done; what other streams do there goes on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    else:
        synchronize(device)


def lacks_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks to make code for a device, and the fix, in words; None where nothing is missing."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton, which is not installed: pip install triton"
    if device.type == "cpu" and shutil.which(cpp_compiler()) is None:
        return f"a C++ compiler, and there is no {cpp_compiler()}: install it, or name another one in CXX"
    return None


def cpp_compiler() -> str:
    """The one that torch takes."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def _cpu_multiplies_bfloat16() -> bool:
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 and newer say
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
