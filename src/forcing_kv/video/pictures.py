"""Decoded pictures on their way to the host, as all decoders send them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """[B, 3, T, H, W] in [-1, 1] (clamped here) to [B, T, H, W, 3] uint8."""
    levels = pixels.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def to_host(pictures: Tensor) -> Tensor:
    """Copies to the CPU: from a GPU into pinned memory and without waiting (`joined_on_host` does).

    Torch keeps pinned memory that was given back and gives it out again once the copy into it has ended, so as many
    buffers exist as pictures are on their way.
    """
    return pictures.to("cpu", non_blocking=True)


def joined_on_host(pictures: Sequence[Tensor], device: torch.device) -> Tensor:
    """Parts of a chunk, copied by `to_host` from this device, as one tensor in pageable memory: [B, T, H, W, 3].

    The copies were queued behind the work; waited for is the current CUDA stream, and nothing else of the GPU.
    """
    if device.type == "cuda":
        done = torch.cuda.Event(blocking=True)
        done.record(torch.cuda.current_stream(device))
        done.synchronize()
    return torch.cat(list(pictures), dim=1)


def stream_shape(latents: Tensor) -> tuple[int, int, int]:
    """Batch, rows and columns of latents [B, F, C, rows, columns]: what stays the same over a stream."""
    batch, _, _, rows, columns = latents.shape
    return batch, rows, columns
