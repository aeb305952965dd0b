"""A file of TAEHV's kind: the released names, shapes and dtype, random values."""

import torch


def released_weights() -> dict[str, torch.Tensor]:
    """As in `taew2_1.pth`: encoder and decoder, bare names, float16."""
    shapes = {}

    def conv(name, num_out, num_in, *, size=3, bias=True):
        shapes[f"{name}.weight"] = (num_out, num_in, size, size)
        if bias:
            shapes[f"{name}.bias"] = (num_out,)

    def block(name, channels):
        conv(f"{name}.conv.0", channels, 2 * channels)
        conv(f"{name}.conv.2", channels, channels)
        conv(f"{name}.conv.4", channels, channels)

    conv("encoder.0", 64, 3)
    for first, pooled in ((2, 2), (7, 2), (12, 1)):
        conv(f"encoder.{first}.conv", 64, 64 * pooled, size=1, bias=False)
        conv(f"encoder.{first + 1}", 64, 64, bias=False)
        for index in range(first + 2, first + 5):
            block(f"encoder.{index}", 64)
    conv("encoder.17", 16, 64)
    conv("decoder.1", 256, 16)
    for first, channels, grown, following in ((3, 256, 256, 128), (9, 128, 256, 64), (15, 64, 128, 64)):
        for index in range(first, first + 3):
            block(f"decoder.{index}", channels)
        conv(f"decoder.{first + 4}.conv", grown, channels, size=1, bias=False)
        conv(f"decoder.{first + 5}", following, channels, bias=False)
    conv("decoder.22", 3, 64)

    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights[name] = torch.full(shape, 0.3 if name == "decoder.22.bias" else 0.0)
        else:
            weights[name] = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            if ".conv.4." in name:  # keeps a long chain of residual blocks within bounds
                weights[name] *= 0.3
    return {name: tensor.half() for name, tensor in weights.items()}
