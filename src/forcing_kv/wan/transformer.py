"""The causal Wan transformer as plain mathematics.

A pass takes a few latent frames with a noise level each and predicts their flow velocity. Nothing is remembered here:
the keys and values of earlier frames live in the `SelfAttentionMemory` that is handed in, those of the prompt in a
`TextMemory` that is computed once per prompt. So one model serves any number of streams at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from forcing_kv.attention import attend
from forcing_kv.wan.config import TransformerConfig
from forcing_kv.wan.coordinates import NUM_COORDINATES, coordinates
from forcing_kv.wan.rope import RotaryTable, TemporalShift


class SelfAttentionMemory(Protocol):
    """What self-attention reads besides the frames of the pass: `StreamCache`, or a training mask."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of layer `layer`; all tensors [batch, tokens, heads, head_dim], rotary embedding applied."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextMemory:
    """Cross-attention keys and values of a prompt, one pair per layer, each [batch, text_len, heads, head_dim]."""

    layers: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, kw_only=True)
class TokenPositions:
    """Where the tokens of a pass stand; the same for all passes over the same frames.

    Attributes:
        rope: Rotary angles.
        embedding: Added to the tokens, [1, tokens, dim]; None where the model reads no absolute coordinates.
    """

    rope: RotaryTable
    embedding: Tensor | None


@dataclass(frozen=True, kw_only=True)
class BegunPass:
    """A pass before its blocks.

    Attributes:
        x: Tokens, [batch, frames * rows * cols, dim].
        time: Embedded noise levels, [batch, frames, dim].
        time_modulation: What they do to the blocks, [batch, frames, 6, dim].
        grid: Frames, rows and columns of tokens.
    """

    x: Tensor
    time: Tensor
    time_modulation: Tensor
    grid: tuple[int, ...]


class CausalWanTransformer(nn.Module):
    """Wan2.1's diffusion transformer with per-frame noise levels and an external self-attention memory.

    Equations and parameter names follow the released causal checkpoints (DESIGN: Self Forcing, LongLive, Krea).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, stride=config.patch_size)
        self.coordinate_embedding = nn.Linear(NUM_COORDINATES, dim) if config.coordinates else None
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.head = Head(config)
        self.head_order = tuple(tuple(range(config.num_heads)) for _ in range(config.num_layers))

    @property
    def _blocks(self) -> list["Block"]:
        return cast(list["Block"], list(self.blocks))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.patch_embedding.weight.device

    def encode_text(self, text_states: Tensor) -> TextMemory:
        """Projects a prompt to the keys and values that every pass under this prompt reads.

        Args:
            text_states: [batch, text_len, text_dim], zeros at padding. All positions are read, unmasked.
        """
        context = self.text_embedding(text_states.to(self.dtype))
        return TextMemory(layers=tuple(block.cross_attn.keys_and_values(context) for block in self._blocks))

    def token_positions(
        self, positions: Sequence[int], rows: int, cols: int, device: torch.device | str | None = None
    ) -> TokenPositions:
        """Of the tokens of frames at these temporal positions, on a grid of rows x cols tokens."""
        device = self.device if device is None else device
        rope = RotaryTable.build(
            positions,
            rows=rows,
            cols=cols,
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            device=device,
        )
        if self.coordinate_embedding is None:
            return TokenPositions(rope=rope, embedding=None)
        places = coordinates(positions, rows=rows, cols=cols).to(device, self.dtype)
        return TokenPositions(rope=rope, embedding=self.coordinate_embedding(places))

    def temporal_shift(self) -> TemporalShift:
        """What moves this model's keys along the temporal axis, for a `StreamCache` with relative positions."""
        return TemporalShift(self.config.head_dim, theta=self.config.rope_theta, device=self.device)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        text: TextMemory,
        positions: TokenPositions,
        memory: SelfAttentionMemory,
    ) -> Tensor:
        """Predicts the flow velocity.

        Args:
            latents: [batch, frames, in_dim, latent_height, latent_width].
            timesteps: Noise level of each frame, [batch, frames], in 0 .. 1000.
            text: Of the prompt, by `encode_text`.
            positions: Of these frames, by `token_positions`.
            memory: Answers self-attention.

        Returns:
            [batch, frames, out_dim, latent_height, latent_width], in the dtype of the weights.
        """
        begun = self.begin(latents, timesteps, positions)
        return self.finish(begun, self.run_blocks(begun, text=text, positions=positions, memory=memory))

    def at_level(
        self,
        latents: Tensor,
        timestep: float,
        *,
        text: TextMemory,
        positions: TokenPositions,
        memory: SelfAttentionMemory,
    ) -> Tensor:
        """As `forward`, with one noise level for all frames."""
        velocity: Tensor = self(latents, noise_levels(latents, timestep), text=text, positions=positions, memory=memory)
        return velocity

    def begin(self, latents: Tensor, timesteps: Tensor, positions: TokenPositions) -> BegunPass:
        """Everything before the blocks; arguments as of `forward`."""
        patches = self.patch_embedding(latents.to(self.dtype).transpose(1, 2))
        # Elementwise work keeps the layout it is given: left channel-major, every block would run on strided rows.
        x = patches.flatten(2).transpose(1, 2).contiguous()
        if positions.embedding is not None:
            x = x + positions.embedding
        time, modulation = self.embed_time(timesteps)
        return BegunPass(x=x, time=time, time_modulation=modulation, grid=tuple(patches.shape[2:]))

    def embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels [batch, frames] -> embedding [batch, frames, dim], modulation [batch, frames, 6, dim]."""
        time = self.time_embedding(timestep_sinusoid(timesteps, self.config.freq_dim).to(self.dtype))
        return time, self.time_projection(time).view(*time.shape[:2], 6, -1)

    def run_blocks(
        self, begun: BegunPass, *, text: TextMemory, positions: TokenPositions, memory: SelfAttentionMemory
    ) -> Tensor:
        """All blocks, [batch, tokens, dim]; arguments as of `forward`."""
        x = begun.x
        for block, text_kv in zip(self._blocks, text.layers, strict=True):
            x = block(x, begun.time_modulation, text_kv, positions.rope, memory)
        return x

    def finish(self, begun: BegunPass, x: Tensor) -> Tensor:
        """Everything after the blocks, whose output is `x`; as `forward` returns it."""
        num_frames, rows, cols = begun.grid
        out = self.head(x.view(len(x), num_frames, rows * cols, -1), begun.time)
        return self._unpatchify(out, rows, cols)

    def set_head_order(self, head_order: Sequence[Sequence[int]]) -> None:
        """Reorders the self-attention heads of every layer so that the heads of a cache group lie side by side.

        The model computes the same function; only where a head lies changes. `head_order[layer][i]` is the released
        number of the head that shall lie at place i. `StreamCache` is told the order and needs no gather then.
        """
        for block, current, wanted in zip(self._blocks, self.head_order, head_order, strict=True):
            if sorted(wanted) != list(range(self.config.num_heads)):
                raise ValueError(f"a head order must name each of {self.config.num_heads} heads once, not {wanted}")
            block.self_attn.permute_heads([current.index(head) for head in wanted])
        self.head_order = tuple(tuple(order) for order in head_order)

    def released_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by name, heads as they are numbered, whatever order they lie in now; one at a time."""
        order_of = {f"blocks.{layer}.self_attn": order for layer, order in enumerate(self.head_order)}
        for name, weight in self.state_dict().items():
            module = ".".join(name.split(".")[:3])
            if module in order_of:
                natural = [order_of[module].index(head) for head in range(self.config.num_heads)]
                yield name, with_heads_in(natural, name.removeprefix(f"{module}."), weight)
            else:
                yield name, weight

    def _unpatchify(self, out: Tensor, rows: int, cols: int) -> Tensor:
        batch, num_frames = out.shape[:2]
        _, patch_h, patch_w = self.config.patch_size
        out = out.view(batch, num_frames, rows, cols, patch_h, patch_w, self.config.out_dim)
        out = out.permute(0, 1, 6, 2, 4, 3, 5)
        return out.reshape(batch, num_frames, self.config.out_dim, rows * patch_h, cols * patch_w)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, the first and last modulated by the noise level."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        dim = config.dim
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.norm1 = nn.LayerNorm(dim, eps=config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config, layer)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def forward(
        self,
        x: Tensor,
        time_modulation: Tensor,
        text_kv: tuple[Tensor, Tensor],
        rope: RotaryTable,
        memory: SelfAttentionMemory,
    ) -> Tensor:
        """`x` is [batch, frames * frame_tokens, dim]; time_modulation [batch, frames, 6, dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (self.modulation[:, None] + time_modulation).unsqueeze(3).unbind(2)
        )
        x = x + _gate(self.self_attn(_modulate(self.norm1(x), shift1, scale1), rope, memory), gate1)
        x = x + self.cross_attn(self.norm3(x), text_kv)
        return x + _gate(self.ffn(_modulate(self.norm2(x), shift2, scale2)), gate2)


class Attention(nn.Module):
    """The weights that both kinds of attention have."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps) if config.qk_norm else nn.Identity()


class SelfAttention(Attention):
    """Queries, keys and values of the pass; what they attend to is the memory's business."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config)
        self.layer = layer

    def forward(self, x: Tensor, rope: RotaryTable, memory: SelfAttentionMemory) -> Tensor:
        """`x` is [batch, tokens, dim]."""
        q = rope.rotate(split_heads(self.norm_q(self.q(x)), self.num_heads))
        k = rope.rotate(split_heads(self.norm_k(self.k(x)), self.num_heads))
        v = split_heads(self.v(x), self.num_heads)
        out: Tensor = self.o(memory.attend(self.layer, q, k, v).flatten(2))
        return out

    @torch.no_grad()
    def permute_heads(self, order: Sequence[int]) -> None:
        """Moves the head now at place order[i] to place i, in every weight that has a head axis."""
        for name, weight in self.named_parameters():
            weight.copy_(with_heads_in(order, name, weight))


class CrossAttention(Attention):
    """Attention to the prompt, whose keys and values are computed once."""

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of the embedded prompt [batch, text_len, dim]; each [batch, text_len, heads, head_dim]."""
        k = split_heads(self.norm_k(self.k(context)), self.num_heads)
        return k, split_heads(self.v(context), self.num_heads)

    def forward(self, x: Tensor, text_kv: tuple[Tensor, Tensor]) -> Tensor:
        """`x` is [batch, tokens, dim]."""
        q = split_heads(self.norm_q(self.q(x)), self.num_heads)
        out: Tensor = self.o(attend(q, *text_kv).flatten(2))
        return out


class Head(nn.Module):
    """From the residual stream to the velocity of each patch."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        patch_values = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.norm = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, patch_values * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` is [batch, frames, frame_tokens, dim], time [batch, frames, dim]."""
        shift, scale = (self.modulation[:, None] + time[:, :, None]).unsqueeze(3).unbind(2)
        out: Tensor = self.head(self.norm(x) * (1 + scale) + shift)
        return out


def noise_levels(latents: Tensor, timestep: float) -> Tensor:
    """One noise level for all frames of [batch, frames, ...]: [batch, frames], float32."""
    return torch.full(latents.shape[:2], timestep, dtype=torch.float32, device=latents.device)


def timestep_sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first: [...] -> [..., dim], float32, computed in float64."""
    half = dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def with_heads_in(order: Sequence[int], name: str, weight: Tensor) -> Tensor:
    """A weight of `SelfAttention`, by its name there, with the head at place order[i] at place i."""
    if name == "o.bias":
        return weight  # it is added after the heads are mixed
    axis = 1 if name == "o.weight" else 0
    head_dim = weight.shape[axis] // len(order)
    rows = torch.tensor([head * head_dim + value for head in order for value in range(head_dim)], device=weight.device)
    return weight.index_select(axis, rows)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[batch, tokens, dim] -> [batch, tokens, heads, head_dim]."""
    return x.view(*x.shape[:-1], num_heads, -1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (_by_frame(x, shift) * (1 + scale) + shift).view(x.shape)


def _gate(x: Tensor, gate: Tensor) -> Tensor:
    return (_by_frame(x, gate) * gate).view(x.shape)


def _by_frame(x: Tensor, modulation: Tensor) -> Tensor:
    """[batch, tokens, dim] -> [batch, frames, frame_tokens, dim], for a modulation of [batch, frames, 1, dim]."""
    return x.view(len(x), modulation.shape[1], -1, x.shape[-1])
