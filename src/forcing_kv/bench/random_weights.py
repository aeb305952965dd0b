"""Models at their true shapes without their weights: what they cost does not depend on the values."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from forcing_kv.wan import CausalWanTransformer, TransformerConfig


@contextmanager
def built_on(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Modules made in the block have their weights there, in this dtype, from the first on."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(previous)


def random_transformer(
    config: TransformerConfig, *, device: torch.device | str, dtype: torch.dtype
) -> CausalWanTransformer:
    """A transformer of this size, always with the same weights on one kind of device."""
    torch.manual_seed(0)
    with built_on(device, dtype):
        return CausalWanTransformer(config).requires_grad_(False).eval()
