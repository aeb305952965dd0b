"""What a device has room for."""

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Memory that a program can still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
