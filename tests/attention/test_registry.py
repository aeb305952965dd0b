"""Which back end is taken, and what is said of those that cannot be."""

import pytest
import torch

from forcing_kv import ConfigurationError, ForcingKVError, FrameGeometry, Full, StreamCache, UnknownNameError
from forcing_kv.attention import AUTO, BACKENDS, ORDERS, Placement, choose_backend, order_for

CPU = Placement(device=torch.device("cpu"), dtype=torch.float32, head_dim=32)


def gpu(monkeypatch, capability, dtype=torch.bfloat16, head_dim=128):
    """A GPU as torch would describe it; there need not be one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return Placement(device=torch.device("cuda"), dtype=dtype, head_dim=head_dim)


def test_every_order_names_back_ends_and_ends_with_one_that_can_always_be_had():
    for order in ORDERS:
        assert set(order.names) <= BACKENDS.keys()
        assert order.names[-1] == "sdpa" or order.devices == "CPU"
        assert "measured" in order.provenance or "measurement" in order.provenance
    assert choose_backend(AUTO, CPU).name == order_for(CPU).names[0]


@pytest.mark.parametrize(
    ("capability", "devices"), [((9, 0), "Hopper"), ((8, 6), "other"), ((10, 0), "Blackwell"), ((12, 1), "Blackwell")]
)
def test_a_gpu_is_known_by_its_compute_capability(capability, devices, monkeypatch):
    assert order_for(gpu(monkeypatch, capability)).devices.startswith(devices)


def test_hopper_gets_cudnn_where_flash_attention_3_is_not_installed(monkeypatch):
    placement = gpu(monkeypatch, (9, 0))
    if BACKENDS["fa3"].lacks(placement) is None:
        pytest.skip("fa3-fwd is installed here")
    assert choose_backend(AUTO, placement).name == "cudnn"
    assert choose_backend(AUTO, gpu(monkeypatch, (9, 0), dtype=torch.float32)).name == "sdpa"
    assert choose_backend(AUTO, gpu(monkeypatch, (8, 0))).name == "sdpa"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("cudnn", {"capability": (7, 5)}, "needs compute capability 8.0 or newer; this GPU has 7.5"),
        ("cudnn", {"dtype": torch.float32}, "needs bfloat16 or float16"),
        ("cudnn", {"head_dim": 192}, "needs a multiple of 8 values per head, at most 128"),
        ("fa3", {"capability": (12, 0)}, "needs compute capability 8.0 or newer and before 10.0; this GPU has 12.0"),
        ("fa3", {"dtype": torch.float16}, "needs bfloat16"),
        ("fa3", {"head_dim": 260}, "needs a multiple of 8 values per head, at most 256"),
        ("flex", {"head_dim": 48}, "needs a power of 2 of values per head"),
        ("triton", {"head_dim": 40}, "needs a multiple of 16 values per head, at most 256"),
        ("triton", {"dtype": torch.float64}, "needs bfloat16 or float16 or float32"),
    ],
)
def test_what_a_back_end_lacks_on_a_gpu(name, changes, reason, monkeypatch):
    if name == "triton":
        pytest.importorskip("triton")
    placement = gpu(monkeypatch, **{"capability": (9, 0), **changes})
    assert BACKENDS[name].lacks(placement).startswith(reason)


@pytest.mark.parametrize("name", ["cudnn", "fa3"])
def test_without_a_gpu_there_is_no_back_end_for_gpus(name):
    with pytest.raises(ConfigurationError, match=f"{name!r} cannot be had on cpu in float32 with 32 values per head: "):
        choose_backend(name, CPU)


def test_triton_runs_on_a_cpu_in_its_interpreter_only(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        choose_backend("triton", CPU)


def test_an_unknown_name_is_answered_with_what_is_there_and_why_not_the_others():
    with pytest.raises(UnknownNameError) as error:
        choose_backend("sage", CPU)
    message = str(error.value)
    assert message.startswith("unknown attention back end 'sage'; choose one of: auto, sdpa, ")
    assert "plain" in message.partition("cudnn")[0]
    assert "cudnn (not here: needs an NVIDIA GPU), fa3 (not here: needs an NVIDIA GPU)" in message


def test_a_cache_names_what_it_computes_with_and_refuses_what_it_cannot():
    geometry = FrameGeometry(num_layers=1, num_heads=2, head_dim=16, frame_rows=2, frame_cols=2, chunk_frames=1)
    assert StreamCache(geometry, Full()).attention is BACKENDS[order_for(CPU).names[0]]
    assert StreamCache(geometry, Full(), attention="plain").attention.name == "plain"
    for name in ("sage", "cudnn"):
        with pytest.raises(ForcingKVError, match=f"attention back end {name!r}"):
            StreamCache(geometry, Full(), attention=name)
