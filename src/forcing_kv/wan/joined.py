"""Several linear layers of the same input as one product.

Their weights are laid side by side in memory, and those of each layer become views of the whole: names, state dict and
whatever is written into a weight in place (loading, a LoRA, another order of heads) are as before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forcing_kv.wan.fp8 import fp8_linear
from forcing_kv.wan.products import linear


class JoinedLinears:
    """Call it with the input that the layers share; it gives what each of them would.

    Args:
        linears: All `nn.Linear` or all `Fp8Linear`, of one shape.

    Attributes:
        count: How many layers.
        tensors: Their parameters by name, joined along the first axis.
    """

    @torch.no_grad()
    def __init__(self, linears: Sequence[nn.Module]) -> None:
        assert len({type(linear) for linear in linears}) == 1, "layers of one kind can be joined"
        self.count = len(linears)
        self.tensors: dict[str, Tensor] = {}
        for name, first in linears[0].named_parameters():
            whole = first.new_empty(self.count * first.shape[0], *first.shape[1:])
            for layer, part in zip(linears, whole.chunk(self.count), strict=True):
                parameter = layer.get_parameter(name)
                part.copy_(parameter)
                parameter.data = part
            self.tensors[name] = whole

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., in] -> for each layer [..., out], views of one tensor."""
        product = fp8_linear if "scale" in self.tensors else linear
        return product(x, **self.tensors).chunk(self.count, dim=-1)
