"""The sizes of a causal Wan transformer."""

import math
from dataclasses import dataclass

from forcing_kv.errors import ConfigurationError
from forcing_kv.wan.coordinates import NUM_COORDINATES


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that fixes the shapes and the arithmetic of a `CausalWanTransformer`.

    Attributes:
        dim: Width of the residual stream.
        ffn_dim: Hidden width of the feed-forward network.
        num_layers: Blocks.
        num_heads: Heads per block; `dim` must divide by it.
        in_dim: Latent channels read.
        out_dim: Latent channels predicted.
        text_dim: Width of the text states.
        text_len: Text positions; all of them are read, padding included (a mask would change the model).
        freq_dim: Width of the timestep sinusoid.
        patch_size: Latent values per token along (time, height, width).
        qk_norm: RMSNorm on queries and keys, over all heads together.
        cross_attn_norm: LayerNorm with weights before the cross-attention.
        eps: Epsilon of every norm.
        rope_theta: Base of the rotary frequencies; 10000 in every release, smaller for a very small frame grid.
        coordinates: Whether tokens are told their absolute place besides (`wan.coordinates`); in no release.

    Raises:
        ConfigurationError: Sizes that do not fit together.
    """

    dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_theta: float = 10000.0
    coordinates: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))  # a list, when it comes from JSON
        if self.patch_size[0] != 1:
            raise ConfigurationError(
                f"patch_size is {self.patch_size}; a token spans one latent frame, so use (1, h, w)"
            )
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ConfigurationError(
                f"dim={self.dim} over num_heads={self.num_heads} does not give an even head size; change one of them"
            )
        if self.freq_dim % 2:
            raise ConfigurationError(f"freq_dim={self.freq_dim} must be even (half sines, half cosines)")

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.dim // self.num_heads

    @property
    def patch_values(self) -> int:
        """Latent values per channel of one token."""
        return math.prod(self.patch_size)

    @property
    def num_parameters(self) -> int:
        """Weights of the whole transformer."""
        dim = self.dim
        attention = 4 * (dim * dim + dim) + 2 * dim * self.qk_norm
        feed_forward = 2 * dim * self.ffn_dim + self.ffn_dim + dim
        block = 6 * dim + 2 * attention + 2 * dim * self.cross_attn_norm + feed_forward
        patches = self.in_dim * self.patch_values * dim + dim
        coordinates = (NUM_COORDINATES * dim + dim) * self.coordinates
        text = self.text_dim * dim + dim + dim * dim + dim
        time = self.freq_dim * dim + dim + dim * dim + dim + 6 * (dim * dim + dim)
        head = 2 * dim + (dim + 1) * self.patch_values * self.out_dim
        return patches + coordinates + text + time + self.num_layers * block + head


WAN_1_3B = TransformerConfig(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12)
WAN_14B = TransformerConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40)
