"""The causal Wan transformer as plain mathematics.

A pass takes a few latent frames with a noise level each and predicts their flow velocity. Nothing is remembered here:
the keys and values of earlier frames live in the `SelfAttentionMemory` that is handed in, those of the prompt in a
`TextMemory` that is computed once per prompt. So one model serves any number of streams at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcing_kv.wan.blocks import Block, Head, with_heads_in
from forcing_kv.wan.config import TransformerConfig
from forcing_kv.wan.coordinates import NUM_COORDINATES, coordinates
from forcing_kv.wan.fp8 import QUANTISED, Fp8Linear, quantised_layers
from forcing_kv.wan.levels import BLOCK_VECTORS, Modulation, NoiseLevel, timestep_sinusoid
from forcing_kv.wan.pass_inputs import SelfAttentionMemory, TextMemory
from forcing_kv.wan.rope import RotaryTable, TemporalShift


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
        modulation: What the noise levels do.
        grid: Frames, rows and columns of tokens.
    """

    x: Tensor
    modulation: Modulation
    grid: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The two pieces of a block, as functions of the block: those of `Block`, or what was made of them.

    Attributes:
        before_attention: See `Block.before_attention`.
        after_attention: See `Block.after_attention`.
    """

    before_attention: Callable[..., tuple[Tensor, Tensor, Tensor]] = Block.before_attention
    after_attention: Callable[..., Tensor] = Block.after_attention


class CausalWanTransformer(nn.Module):
    """Wan2.1's diffusion transformer with per-frame noise levels and an external self-attention memory.

    Equations and parameter names follow the released causal checkpoints (Self Forcing, LongLive, Krea).
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
        self.precision: str | None = None
        """Of the linear layers: `fp8`, or None for the dtype of the other weights."""

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

    @torch.no_grad()
    def noise_level(self, timestep: float) -> NoiseLevel:
        """Of all frames of a pass, with all that depends on nothing else worked out."""
        timesteps = torch.full((1, 1), timestep, dtype=torch.float32, device=self.device)
        vectors = self.modulation(timesteps).vectors.flatten(1).contiguous()
        return NoiseLevel(timestep=timestep, timesteps=timesteps, modulation=Modulation(vectors=vectors))

    def modulation(self, timesteps: Tensor) -> Modulation:
        """What noise levels [batch, frames] do."""
        time, by_block = self.embed_time(timesteps)
        blocks = torch.stack([block.modulation[0] for block in self._blocks])  # [layers, 6, dim]
        blocks = blocks[:, :, None, None] + by_block.movedim(2, 0)
        head = self.head.modulation[0][:, None, None] + time
        is_scale = torch.arange(BLOCK_VECTORS, device=time.device) % 3 == 1  # shift, scale, gate; twice
        plus = is_scale.to(time.dtype)[:, None, None, None]
        vectors = torch.cat(((blocks + plus).flatten(0, 1), head + plus[:2]))
        return Modulation(vectors=vectors[:, :, :, None])

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        text: TextMemory,
        positions: TokenPositions,
        memory: SelfAttentionMemory,
        modulation: Modulation | None = None,
        pieces: Pieces | None = None,
    ) -> Tensor:
        """Predicts the flow velocity.

        Args:
            latents: [batch, frames, in_dim, latent_height, latent_width].
            timesteps: Noise level of each frame, [batch, frames], in 0 .. 1000.
            text: Of the prompt, by `encode_text`.
            positions: Of these frames, by `token_positions`.
            memory: Answers self-attention.
            modulation: Of these timesteps, where it is worked out already.
            pieces: Of the blocks, where they are not to run as they are.

        Returns:
            [batch, frames, out_dim, latent_height, latent_width], in the dtype of the weights.
        """
        begun = self.begin(latents, timesteps, positions, modulation)
        return self.finish(begun, self.run_blocks(begun, text=text, positions=positions, memory=memory, pieces=pieces))

    def at_level(
        self,
        latents: Tensor,
        level: NoiseLevel | float,
        *,
        text: TextMemory,
        positions: TokenPositions,
        memory: SelfAttentionMemory,
        pieces: Pieces | None = None,
    ) -> Tensor:
        """As `forward`, with one noise level for all frames."""
        level = level if isinstance(level, NoiseLevel) else self.noise_level(level)
        velocity: Tensor = self(
            latents,
            level.timesteps,
            text=text,
            positions=positions,
            memory=memory,
            modulation=level.modulation,
            pieces=pieces,
        )
        return velocity

    def begin(
        self, latents: Tensor, timesteps: Tensor, positions: TokenPositions, modulation: Modulation | None = None
    ) -> BegunPass:
        """Everything before the blocks; arguments as of `forward`."""
        patches, grid = self._patchify(latents.to(self.dtype))
        # The convolution's windows do not overlap: it is a product, and its result lies as the blocks want it.
        x = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        if positions.embedding is not None:
            x = x + positions.embedding
        return BegunPass(x=x, modulation=self.modulation(timesteps) if modulation is None else modulation, grid=grid)

    def embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels [batch, frames] -> embedding [batch, frames, dim], modulation [batch, frames, 6, dim]."""
        time = self.time_embedding(timestep_sinusoid(timesteps, self.config.freq_dim).to(self.dtype))
        return time, self.time_projection(time).unflatten(-1, (BLOCK_VECTORS, -1))

    def run_blocks(
        self,
        begun: BegunPass,
        *,
        text: TextMemory,
        positions: TokenPositions,
        memory: SelfAttentionMemory,
        pieces: Pieces | None = None,
    ) -> Tensor:
        """All blocks, [batch, tokens, dim]; arguments as of `forward`."""
        x = begun.x
        for layer, (block, text_kv) in enumerate(zip(self._blocks, text.layers, strict=True)):
            modulation = begun.modulation.of_block(layer)
            if pieces is None:
                x = block(x, modulation, text_kv, positions.rope, memory)
            else:
                attended = memory.attend(layer, *pieces.before_attention(block, x, modulation, positions.rope))
                x = pieces.after_attention(block, x, attended, modulation, text_kv)
        return x

    def finish(self, begun: BegunPass, x: Tensor) -> Tensor:
        """Everything after the blocks, whose output is `x`; as `forward` returns it."""
        return self._unpatchify(self.head(x, begun.modulation.of_head()), begun.grid)

    def join_projections(self) -> None:
        """Lets every self-attention multiply with q, k and v at once; weights and their names stay as they are."""
        for block in self._blocks:
            block.self_attn.join_projections()

    def quantise_linears(self) -> None:
        """Puts the linear layers of all blocks but the first and the last into fp8 (`wan.fp8`)."""
        for layer in quantised_layers(self.config):
            for name in QUANTISED:
                linear = self._blocks[layer].get_submodule(name)
                assert isinstance(linear, nn.Linear), "weights are quantised once"
                self._blocks[layer].set_submodule(name, Fp8Linear.of(linear))
            self._blocks[layer].self_attn.join_again()
        self.precision = "fp8"

    @torch.no_grad()
    def load_weight(self, name: str, weight: Tensor) -> None:
        """Writes a weight by its released name, rounded to how this model holds it; heads as they are numbered."""
        module_name, _, leaf = name.rpartition(".")
        module = self.get_submodule(module_name)
        if isinstance(module, Fp8Linear) and leaf == "weight":
            module.load_weight(weight)
        else:
            module.get_parameter(leaf).copy_(weight)

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

    def _patchify(self, latents: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """[batch, tokens, values of a patch], and frames, rows and columns of tokens."""
        _, patch_h, patch_w = self.config.patch_size
        batch, num_frames, channels, height, width = latents.shape
        rows, cols = height // patch_h, width // patch_w
        patches = latents.view(batch, num_frames, channels, rows, patch_h, cols, patch_w).permute(0, 1, 3, 5, 2, 4, 6)
        return patches.reshape(batch, num_frames * rows * cols, -1), (num_frames, rows, cols)

    def _unpatchify(self, out: Tensor, grid: tuple[int, int, int]) -> Tensor:
        num_frames, rows, cols = grid
        _, patch_h, patch_w = self.config.patch_size
        out = out.view(len(out), num_frames, rows, cols, patch_h, patch_w, self.config.out_dim)
        out = out.permute(0, 1, 6, 2, 4, 3, 5)
        return out.reshape(len(out), num_frames, self.config.out_dim, rows * patch_h, cols * patch_w)
