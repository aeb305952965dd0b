"""The dtype that `auto` takes is the one that a device computes quickly in."""

import pytest
import torch

from forcing_kv.devices import resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64"}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_dtype("auto", CPU) == expected
    assert resolve_dtype("auto", CUDA) == torch.bfloat16
    assert resolve_dtype("float16", CPU) == torch.float16


def test_auto_is_float32_on_a_cpu_of_which_torch_knows_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # torch before 2.9
    assert resolve_dtype("auto", CPU) == torch.float32
