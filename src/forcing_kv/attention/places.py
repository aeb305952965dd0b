"""The heads of a group, out of the model's tensors and back: the head order says at which places they lie."""

from collections.abc import Sequence

import torch
from torch import Tensor


def heads_at(x: Tensor, places: Sequence[int]) -> Tensor:
    """The heads of x [batch, tokens, heads, head_dim] at `places`: a view if they lie side by side."""
    if places[-1] - places[0] + 1 == len(places):
        return x[:, :, places[0] : places[-1] + 1]
    return torch.stack([x[:, :, place] for place in places], dim=2)


def join_heads(parts: Sequence[Tensor], places: Sequence[Sequence[int]]) -> Tensor:
    """Puts the heads of `parts` back at their places."""
    if len(parts) == 1:
        return parts[0]
    order = [place for part in places for place in part]
    joined = torch.cat(list(parts), dim=2)
    if order == sorted(order):
        return joined
    return torch.stack([joined[:, :, order.index(place)] for place in range(len(order))], dim=2)
