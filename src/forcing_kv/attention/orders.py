"""Which back end is taken on which device if none is asked for, and how that is known.

A device is known by its kind and compute capability, never by its name. The first back end of its order that can be
had is taken; every order ends with one that always can.
"""

from dataclasses import dataclass

from forcing_kv.attention.backend import Placement

_CPU_RESULTS = "benchmarks/results/attention_cpu_2026-11-23.json"


@dataclass(frozen=True, kw_only=True)
class DeviceOrder:
    """An order of back ends, the best first.

    Attributes:
        devices: What it is for, in words.
        device_type: As torch names it; None for any.
        capability: Lowest and highest compute capability, the highest left out; None for devices without one.
        names: Of the back ends.
        provenance: Where the order comes from, and whether we have measured it.
    """

    devices: str
    device_type: str | None
    capability: tuple[tuple[int, int], tuple[int, int]] | None = None
    names: tuple[str, ...]
    provenance: str

    def is_for(self, placement: Placement) -> bool:
        """Whether it is about such a device."""
        if self.device_type not in (None, placement.device.type):
            return False
        if self.capability is None:
            return True
        low, high = self.capability
        return placement.capability is not None and low <= placement.capability < high


ORDERS = (
    DeviceOrder(
        devices="CPU",
        device_type="cpu",
        names=("sdpa",),
        provenance=f"measured: {_CPU_RESULTS}",
    ),
    DeviceOrder(
        devices="Hopper (H100, H200, GH200)",
        device_type="cuda",
        capability=((9, 0), (10, 0)),
        names=("fa3", "cudnn", "sdpa"),
        provenance="published, not measured by us: at head_dim 128 on an H100 FlashAttention-3 650 TFLOP/s, cuDNN 600, "
        "FlashAttention-2 (which sdpa picks) 370 (FlashAttention-3 paper); at (1, 24, 4608, 128) cuDNN 631, "
        "FlashAttention-3 632, torch's pick 329 (pytorch issue 142132). Triton kernels reach 390 there; ours has not "
        "been timed on a GPU",
    ),
    DeviceOrder(
        devices="Blackwell",
        device_type="cuda",
        capability=((10, 0), (13, 0)),
        names=("cudnn", "sdpa"),
        provenance="assumed after Hopper; neither published figures at our shapes nor a measurement of ours",
    ),
    DeviceOrder(
        devices="other GPUs, and what else torch runs on",
        device_type=None,
        names=("sdpa",),
        provenance="torch's own pick; neither published figures at our shapes nor a measurement of ours",
    ),
)


def order_for(placement: Placement) -> DeviceOrder:
    """The first order that is for such a device."""
    return next(order for order in ORDERS if order.is_for(placement))
