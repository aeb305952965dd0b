"""Training of the embedded model's transformer and text encoder, together, by teacher forcing.

Each noisy chunk is denoised from a clean history in one pass over the whole sequence. Most noise levels are the ones
that the few-step sampler visits. Against drift, history frames get a little noise, and in some steps are what the model
itself makes of them. Moving parts of the picture weigh more, because most of it is background. Weights are kept in fp32
and computed with in bf16.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forcing_kv.sampling import FewStepSampler
from forcing_kv.tiny.training.latents import CHUNK_FRAMES, LatentClips, sample_clips
from forcing_kv.tiny.training.teacher_forcing import MIX, Layout, LayoutMemory, random_sample
from forcing_kv.tiny.training.text import (
    TEXT_DIM,
    TEXT_LEN,
    build_text_encoder,
    build_tokenizer,
    text_states,
    token_ids,
)
from forcing_kv.tiny.training.trainer import Schedule
from forcing_kv.tiny.training.vae import LATENT_CHANNELS, LATENT_COLS, LATENT_ROWS
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

TRANSFORMER_CONFIG = TransformerConfig(
    dim=192,
    ffn_dim=768,
    num_layers=6,
    num_heads=6,
    in_dim=LATENT_CHANNELS,
    out_dim=LATENT_CHANNELS,
    text_dim=TEXT_DIM,
    text_len=TEXT_LEN,
    freq_dim=64,
    rope_theta=50.0,
    coordinates=True,
)
TRANSFORMER_SCHEDULE = Schedule(
    num_steps=8300,
    learning_rate=3e-3,
    warmup_steps=60,
    decay_share=0.55,
    average_decay=0.998,
    muon=True,
)

_SAMPLER = FewStepSampler()
_SAMPLING_SHARE = 0.6
_FREE_SHIFT = 3.0
_HISTORY_NOISE = 0.15
_HISTORY_NOISE_SHARE = 0.6
_OWN_HISTORY_SHARE = 0.3
_OWN_HISTORY_KINDS = ("start", "switch", "far", "memory", "wrap")


class TextAndTransformer(nn.Module):
    """The two modules that are trained together; `forward` is one teacher-forced pass."""

    def __init__(self, config: TransformerConfig = TRANSFORMER_CONFIG, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(len(self.tokenizer), seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.transformer = CausalWanTransformer(config)
            nn.init.zeros_(self.transformer.head.head.weight)
            nn.init.zeros_(self.transformer.head.head.bias)

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        """Velocity [B, frames, C, h, w] of a whole sequence; latents likewise, timesteps [B, frames] in 0..1000."""
        text = self.transformer.encode_text(text_states(self.text_encoder, ids, mask))
        rows, cols = latents.shape[-2] // 2, latents.shape[-1] // 2
        positions = self.transformer.token_positions(layout.frames, rows, cols, latents.device)
        velocity: Tensor = self.transformer(
            latents, timesteps, text=text, positions=positions, memory=LayoutMemory(layout)
        )
        return velocity


def add_transformer_gradients(
    model: TextAndTransformer,
    clips: LatentClips,
    generator: torch.Generator,
    *,
    batch_scale: float = 1.0,
) -> float:
    """Gradients of one step, whose clips are all of one kind.

    Weights are rounded to bf16; the gradients come back to the fp32 parameters.

    Returns:
        The loss.
    """
    shares = torch.tensor(list(MIX.values()))
    kind = list(MIX)[int(torch.multinomial(shares, 1, generator=generator))]
    sample = draw_sample(model, clips, kind, generator, batch_scale=batch_scale)
    names, values = zip(*model.named_parameters(), strict=True)
    weights = [value.detach().bfloat16().requires_grad_() for value in values]

    def velocity_of(sample: Sample) -> Tensor:
        velocity: Tensor = functional_call(
            model,
            dict(zip(names, weights, strict=True)),
            (sample.latents, sample.timesteps, sample.ids, sample.mask, sample.layout),
        )
        return velocity

    if kind in _OWN_HISTORY_KINDS and float(torch.rand((), generator=generator)) < _OWN_HISTORY_SHARE:
        sample = with_own_history(sample, velocity_of, generator)
    loss = weighted_error(velocity_of(sample), sample)
    for value, gradient in zip(values, torch.autograd.grad(loss, weights), strict=True):
        value.grad = gradient.float()
    return float(loss.detach())


def compile_blocks(model: TextAndTransformer) -> bool:
    """Let torch fuse the element-wise work of the blocks, where there is a compiler for it: a third quicker on a CPU.

    Returns:
        Whether there is one.
    """
    able = model.transformer.device.type == "cuda" or shutil.which("g++") is not None
    if able:
        torch._dynamo.config.recompile_limit = 64  # a variant per layer and kind of clip
        for block in model.transformer.blocks:
            block.compile(dynamic=True)
    return able


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Everything random about one pass, ready to be computed.

    Attributes:
        layout: frames and reads.
        clean: the sequence without noise, fp32 [B, frames, C, h, w].
        latents: noised sequence, likewise; `timesteps` [B, frames] go with it.
        target: velocity of the noisy frames, and `weights` of its error, [B, noisy frames, C, h, w].
        ids: token ids and `mask`, [B, TEXT_LEN].
    """

    layout: Layout
    clean: Tensor
    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor
    ids: Tensor
    mask: Tensor


def draw_sample(
    model: TextAndTransformer, clips: LatentClips, kind: str, generator: torch.Generator, *, batch_scale: float = 1.0
) -> Sample:
    """Random clips of a kind, a layout for them, captions, noise levels, noise; on the model's device."""
    group = clips.random_group(kind, generator)
    frame_tokens = (LATENT_ROWS // 2) * (LATENT_COLS // 2)
    layout, picks = random_sample(group, generator, frame_tokens=frame_tokens, batch_scale=batch_scale)
    clean, weights, captions = sample_clips(group, picks, layout.frames, generator)
    ids, mask = token_ids(model.tokenizer, captions)
    latents, timesteps, target = noised(clean, layout, generator)
    first = len(layout.clean)
    device = next(model.parameters()).device
    return Sample(
        layout=layout,
        clean=clean.to(device),
        latents=latents.to(device),
        timesteps=timesteps.to(device),
        target=target[:, first:].to(device),
        weights=weights[:, first:].to(device),
        ids=ids.to(device),
        mask=mask.to(device),
    )


@torch.no_grad()
def with_own_history(sample: Sample, velocity_of: Callable[[Sample], Tensor], generator: torch.Generator) -> Sample:
    """The sample, its history as the model itself would leave it: with the errors that a stream is built on.

    Every chunk that the sample has noisy is denoised once from one of the sampler's last two levels.

    Args:
        sample: a sample; its noisy frames stay as they are.
        velocity_of: the model.
        generator: of the level and the noise.
    """
    layout = sample.layout
    first = len(layout.clean)
    level = _SAMPLER.sigmas[-1 - int(torch.randint(2, (), generator=generator))]
    noise = torch.randn(sample.target.shape, generator=generator).to(sample.latents.device)
    noisy = (1 - level) * sample.clean[:, first:] + level * noise
    timesteps = torch.cat(
        [sample.timesteps[:, :first], torch.full_like(sample.timesteps[:, first:], level * 1000)], dim=1
    )
    levelled = replace(sample, latents=torch.cat([sample.latents[:, :first], noisy], dim=1), timesteps=timesteps)
    made = noisy - level * velocity_of(levelled)[:, first:].float()
    latents = sample.latents.clone()
    for place, frame in enumerate(layout.clean):
        if frame in layout.noisy:
            latents[:, place] = made[:, layout.noisy.index(frame)]
    return replace(sample, latents=latents)


def weighted_error(velocity: Tensor, sample: Sample) -> Tensor:
    """Weighted mean squared error of the velocity [B, frames, C, h, w] on the noisy frames."""
    error = velocity[:, len(sample.layout.clean) :].float() - sample.target
    return (error.square() * sample.weights).mean()


def noised(latents: Tensor, layout: Layout, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Put noise on a sequence.

    Args:
        latents: [B, frames, C, h, w], clean, the frames of the layout.
        layout: which of them are history.
        generator: of all noise, on the CPU.

    Returns:
        The noised sequence, timesteps [B, frames] (0 for history), and the velocity (noise minus clean).
    """
    batch, num_frames = latents.shape[:2]
    num_clean = len(layout.clean)
    num_chunks = len(layout.noisy) // CHUNK_FRAMES
    levels = noise_levels((batch, num_chunks), generator).repeat_interleave(CHUNK_FRAMES, dim=1)
    slight = _HISTORY_NOISE * torch.rand(batch, num_clean, generator=generator)
    slight = slight * (torch.rand(batch, num_clean, generator=generator) < _HISTORY_NOISE_SHARE)
    sigma = torch.cat([slight, levels], dim=1)[..., None, None, None]
    timesteps = torch.cat([torch.zeros(batch, num_clean), levels * 1000], dim=1)
    noise = torch.randn(latents.shape, generator=generator)
    assert timesteps.shape == (batch, num_frames)
    return (1 - sigma) * latents + sigma * noise, timesteps, noise - latents


def noise_levels(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random noise levels in 0..1: three in five are those of the sampler's steps, the others shifted uniform."""
    step = torch.randint(-1, len(_SAMPLER.sigmas), tuple(shape), generator=generator)
    visited = torch.tensor(_SAMPLER.sigmas)[step.clamp(min=0)]  # the first twice as often: there the motion is decided
    uniform = torch.rand(tuple(shape), generator=generator)
    free = _FREE_SHIFT * uniform / (1 + (_FREE_SHIFT - 1) * uniform)
    return torch.where(torch.rand(tuple(shape), generator=generator) < _SAMPLING_SHARE, visited, free)
