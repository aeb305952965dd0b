"""A transformer small enough to compute with by the hundred, and the plainest memory for it."""

import torch

from forcing_kv import attend
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

CONFIG = TransformerConfig(
    dim=36, ffn_dim=40, num_layers=2, num_heads=3, in_dim=5, out_dim=4, text_dim=7, text_len=6, freq_dim=10
)


class Dense:
    """Attention among the frames of the pass only."""

    def attend(self, layer, q, k, v):
        return attend(q, k, v)


def build(config=CONFIG):
    torch.manual_seed(0)
    return CausalWanTransformer(config).double().eval()


@torch.no_grad()
def run(model, latents, timesteps, frames=range(4, 6), text_states=None):
    states = torch.ones(len(latents), 6, 7, dtype=torch.float64) if text_states is None else text_states
    rows, cols = latents.shape[-2] // 2, latents.shape[-1] // 2
    positions = model.token_positions(frames, rows, cols)
    return model(latents, timesteps, text=model.encode_text(states), positions=positions, memory=Dense())
