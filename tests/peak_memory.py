"""Dry runs: the bytes a computation has alive at once, found on the meta device, where nothing is computed or held."""

import weakref
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Follows every storage made while it is on, by weak reference; `peak_bytes` is the most that lived together."""

    def __init__(self):
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if tensor.is_meta and key not in self._storages and key not in there:
                self._storages[key] = storage.nbytes()
                self.live_bytes += storage.nbytes()
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
                weakref.finalize(storage, self._forget, key)
        return result

    def _forget(self, key):
        self.live_bytes -= self._storages.pop(key)


@contextmanager
def dry_run():
    """A `PeakMemory` in an environment where attention has no score matrix and copies to the host stay on meta."""
    attention, to_host, convert = F.scaled_dot_product_attention, torch.Tensor.cpu, torch.Tensor.to

    def fused_attention(q, k, v):
        return torch.empty_like(q.transpose(1, 2)).transpose(1, 2)  # the layout in which the fused kernels write

    def convert_on_meta(tensor, *args, **kwargs):
        return tensor if tensor.is_meta and args[:1] == ("cpu",) else convert(tensor, *args, **kwargs)

    F.scaled_dot_product_attention = fused_attention
    torch.Tensor.cpu = lambda tensor: tensor if tensor.is_meta else to_host(tensor)
    torch.Tensor.to = convert_on_meta
    try:
        with torch.no_grad(), PeakMemory() as memory:
            yield memory
    finally:
        F.scaled_dot_product_attention, torch.Tensor.cpu, torch.Tensor.to = attention, to_host, convert


def _tensors(tree):
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
