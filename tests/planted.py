"""Models whose heads have roles by construction: in each head a query peaks at keys of a known distance in time."""

import math

import torch

from forcing_kv import HeadMap, VideoPipeline
from forcing_kv.models import ModelPreset
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

LAG = {"s": 0, "d": 7}
"""Frames between a query and the keys it looks for: within the chunk and its neighbour, or far back."""

ROPE_THETA, HEAD_DIM, SHARPNESS = 50.0, 12, 22.0


class ConstantText:
    """A text encoder that hears nothing."""

    def __call__(self, texts):
        return torch.zeros(len(texts), 4, 8)

    def bytes_on(self, device):
        return 0

    def release(self):
        pass


@torch.no_grad()
def planted_transformer(roles, **changes):
    """A causal Wan transformer whose heads have these roles.

    Queries and keys are constants, so that only the rotary embedding tells tokens apart. Its second temporal pair turns
    by 50^-1/2 per frame: cos(phase + angle * distance) is largest where the phase of the query makes up for it.
    """
    config = TransformerConfig(
        dim=HEAD_DIM * len(roles[0]),
        ffn_dim=16,
        num_layers=len(roles),
        num_heads=len(roles[0]),
        in_dim=4,
        out_dim=4,
        text_dim=8,
        text_len=4,
        freq_dim=8,
        rope_theta=ROPE_THETA,
        **changes,
    )
    torch.manual_seed(0)
    transformer = CausalWanTransformer(config).eval().requires_grad_(False)
    angle = ROPE_THETA**-0.5
    for block, layer_roles in zip(transformer.blocks, roles, strict=True):
        attention = block.self_attn
        q, k = torch.zeros(2, len(layer_roles), HEAD_DIM)
        k[:, 2] = 1
        for head, role in enumerate(layer_roles):
            phase = -angle * LAG[role]
            q[head, 2:4] = torch.tensor([math.cos(phase), math.sin(phase)])
        for linear, value in ((attention.q, q), (attention.k, k)):
            linear.weight.zero_()
            linear.bias.copy_(value.flatten())
        attention.norm_q.weight.fill_(SHARPNESS)
    return transformer


def planted_pipeline(roles, *, head_map=None, chunk_frames=3):
    preset = ModelPreset(name="planted", default_resolution=(48, 32), chunk_frames=chunk_frames, steps=(1000, 500))
    return VideoPipeline(
        preset=preset,
        transformer=planted_transformer(roles),
        encode_prompt=ConstantText(),
        head_map=None if head_map is None else HeadMap(model="planted", roles=head_map),
    )
