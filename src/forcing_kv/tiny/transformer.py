"""Training of the embedded model's transformer and text encoder, together, by teacher forcing.

Each noisy chunk is denoised from a clean history in one pass over the whole sequence. Most noise levels are the ones
that the few-step sampler visits. History frames get a little noise, against drift; moving parts of the picture weigh
more, because most of it is background. Weights are kept in fp32 and computed with in bf16.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forcing_kv.sampling import FewStepSampler
from forcing_kv.tiny.latents import LatentClips
from forcing_kv.tiny.teacher_forcing import CHUNK_FRAMES, Layout, LayoutMemory, mix_at, random_layout
from forcing_kv.tiny.text import TEXT_DIM, TEXT_LEN, build_text_encoder, build_tokenizer, text_states, token_ids
from forcing_kv.tiny.trainer import Schedule, Trainer
from forcing_kv.tiny.vae import LATENT_CHANNELS, LATENT_COLS, LATENT_ROWS
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
)
TRANSFORMER_SCHEDULE = Schedule(num_steps=2450, learning_rate=3e-3, warmup_steps=60, decay_share=0.6, muon=True)

_SAMPLER = FewStepSampler()
_SAMPLING_SHARE = 0.6
_FREE_SHIFT = 3.0
_HISTORY_NOISE = 0.15
_HISTORY_NOISE_SHARE = 0.6
_PARTS = 2


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


def transformer_trainer(folder: Path, *, seed: int, schedule: Schedule = TRANSFORMER_SCHEDULE) -> Trainer:
    """A trainer of a fresh transformer and text encoder that checkpoints to `folder`/transformer.pt."""
    return Trainer(TextAndTransformer(seed=seed), schedule, seed=seed, checkpoint=folder / "transformer.pt")


def add_transformer_gradients(
    model: TextAndTransformer,
    clips: LatentClips,
    generator: torch.Generator,
    *,
    step: int = 0,
    batch_scale: float = 1.0,
) -> float:
    """Gradients of one step: the mean over two random layouts, each computed by a thread of its own.

    On two CPU cores that is a third quicker than one layout on both. Weights are rounded to bf16 once for both; the
    gradients come back to the fp32 parameters.

    Returns:
        The loss.
    """
    names, values = zip(*model.named_parameters(), strict=True)
    weights = [value.detach().bfloat16().requires_grad_() for value in values]
    samples = [draw_sample(model, clips, generator, step=step, batch_scale=batch_scale / _PARTS) for _ in range(_PARTS)]

    def gradients_of(sample: Sample) -> tuple[float, tuple[Tensor, ...]]:
        loss = sample_loss(model, sample)
        return float(loss.detach()), torch.autograd.grad(loss, weights)

    with ThreadPoolExecutor(_PARTS) as threads:
        # The rounded weights stand in for the module's own while all threads run.
        runner = _WithModel(model, lambda: list(threads.map(gradients_of, samples)))
        results = functional_call(
            runner, {f"model.{name}": weight for name, weight in zip(names, weights, strict=True)}
        )
    for index, value in enumerate(values):
        value.grad = torch.stack([gradients[index].float() for _, gradients in results]).mean(0)
    return sum(float(loss) for loss, _ in results) / _PARTS


class _WithModel(nn.Module):
    """Calls a function where `functional_call` has put other weights into a model."""

    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Any:
        return self.function()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Everything random about one pass, ready to be computed.

    Attributes:
        layout: frames and reads.
        latents: noised sequence fp32 [B, frames, C, h, w]; `timesteps` [B, frames] go with it.
        target: velocity of the noisy frames, and `weights` of its error, [B, noisy frames, C, h, w].
        ids: token ids and `mask`, [B, TEXT_LEN].
    """

    layout: Layout
    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor
    ids: Tensor
    mask: Tensor


def draw_sample(
    model: TextAndTransformer,
    clips: LatentClips,
    generator: torch.Generator,
    *,
    step: int = 0,
    batch_scale: float = 1.0,
) -> Sample:
    """A random layout, clips that are long enough, captions, noise levels, noise; on the model's device."""
    frame_tokens = (LATENT_ROWS // 2) * (LATENT_COLS // 2)
    layout, num_samples = random_layout(
        generator, max_chunks=clips.max_frames // CHUNK_FRAMES, frame_tokens=frame_tokens, mix=mix_at(step)
    )
    clean, weights, captions = clips.sample(max(1, round(num_samples * batch_scale)), layout.frames, generator)
    ids, mask = token_ids(model.tokenizer, captions)
    latents, timesteps, target = noised(clean, layout, generator)
    first = len(layout.clean)
    device = next(model.parameters()).device
    return Sample(
        layout=layout,
        latents=latents.to(device),
        timesteps=timesteps.to(device),
        target=target[:, first:].to(device),
        weights=weights[:, first:].to(device),
        ids=ids.to(device),
        mask=mask.to(device),
    )


def sample_loss(model: Callable[..., Tensor], sample: Sample) -> Tensor:
    """Weighted mean squared error of the velocity on the noisy frames."""
    velocity = model(sample.latents, sample.timesteps, sample.ids, sample.mask, sample.layout)
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
    visited = torch.tensor(_SAMPLER.sigmas)[torch.randint(len(_SAMPLER.sigmas), tuple(shape), generator=generator)]
    uniform = torch.rand(tuple(shape), generator=generator)
    free = _FREE_SHIFT * uniform / (1 + (_FREE_SHIFT - 1) * uniform)
    return torch.where(torch.rand(tuple(shape), generator=generator) < _SAMPLING_SHARE, visited, free)
