"""`VideoPipeline`: text encoder, transformer and VAE of one model, and the way to a stream.

The pipeline holds what streams share and nothing else, so any number of streams may run on one pipeline, interleaved,
each with its own policy, seed and prompt.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcing_kv.cache import StreamCache
from forcing_kv.continuation import given_latents, latents_resolution
from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.geometry import FrameGeometry, latent_frames, pixel_frames
from forcing_kv.heads import HeadMap
from forcing_kv.models import (
    ModelPreset,
    find_model,
    load_text_encoder,
    load_transformer,
    load_vae,
    read_head_map,
    read_preset,
)
from forcing_kv.policies import CachePolicy, parse_policy
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.resolution import PIXELS_PER_TOKEN, check_resolution
from forcing_kv.rollout import VideoStream
from forcing_kv.sampling import SeededNoise
from forcing_kv.video import StreamingVaeDecoder
from forcing_kv.wan import CausalWanTransformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VideoPipeline:
    """A loaded model.

    Args:
        preset: How it is sampled.
        transformer: On its device and in its dtype.
        encode_prompt: Texts -> states [batch, text_len, text_dim]; usually a `TextEncoder`.
        vae: diffusers' `AutoencoderKLWan`; None gives latents only.
        head_map: Roles of the heads; None restricts the policies to those that need none.

    Raises:
        HeadMapError: The map does not fit the transformer.
    """

    def __init__(
        self,
        *,
        preset: ModelPreset,
        transformer: CausalWanTransformer,
        encode_prompt: Callable[[Sequence[str]], Tensor],
        vae: Any = None,
        head_map: HeadMap | None = None,
    ) -> None:
        self.preset = preset
        self.transformer = transformer
        self.encode_prompt = encode_prompt
        self.vae = vae
        self.head_map = head_map
        if head_map is not None:
            config = transformer.config
            head_map.check_fits(num_layers=config.num_layers, num_heads=config.num_heads)
            transformer.set_head_order(head_map.side_by_side())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        head_map: HeadMap | str | Path | None = None,
    ) -> "VideoPipeline":
        """Loads a model.

        Args:
            model: A name (`forcing-kv models` lists them) or the path of a saved folder.
            device: `auto` takes a CUDA GPU if there is one, else the CPU.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 on a GPU, float32 on a CPU.
            head_map: A head map or its file, in place of the model's own.

        Raises:
            UnknownNameError: No such model, device or dtype.
            CheckpointError: The folder is broken or does not fit together.
            HeadMapError: The head map cannot be read or does not fit.
        """
        folder = find_model(model)
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        if isinstance(head_map, str | Path):
            head_map = HeadMap.load(head_map)
        transformer = load_transformer(folder, dtype=dtype, device=device)
        return cls(
            preset=read_preset(folder),
            transformer=transformer,
            encode_prompt=load_text_encoder(folder, text_len=transformer.config.text_len, dtype=dtype, device=device),
            vae=load_vae(folder, dtype=dtype, device=device),
            head_map=read_head_map(folder) if head_map is None else head_map,
        )

    @property
    def device(self) -> torch.device:
        """Where the transformer runs."""
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return self.transformer.dtype

    def geometry(self, resolution: tuple[int, int] | None = None) -> FrameGeometry:
        """Shape of a stream at a resolution (width, height in pixels; None for the model's own).

        Raises:
            ConfigurationError: The token grid does not allow the resolution.
        """
        width, height = self.preset.default_resolution if resolution is None else resolution
        check_resolution(width, height)
        config = self.transformer.config
        return FrameGeometry(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            frame_rows=height // PIXELS_PER_TOKEN,
            frame_cols=width // PIXELS_PER_TOKEN,
            chunk_frames=self.preset.chunk_frames,
        )

    def policy(self, policy: CachePolicy | str | None = None) -> CachePolicy:
        """Builds a policy from its spelling, with this model's head map; None gives the model's default."""
        if isinstance(policy, CachePolicy):
            return policy
        return parse_policy(self.preset.default_policy if policy is None else policy, head_map=self.head_map)

    def stream(
        self,
        prompt: str | Sequence[str] | Sequence[ScheduledPrompt],
        *,
        policy: CachePolicy | str | None = None,
        seed: int = 0,
        resolution: tuple[int, int] | None = None,
        num_frames: int | None = None,
        num_videos: int | None = None,
        keep_sink: bool = False,
        recache_frames: int | None = None,
        decode: bool = True,
        continue_from: Tensor | None = None,
    ) -> VideoStream:
        """Starts a video; iterate the result for its chunks.

        Args:
            prompt: A text, one text per video of a batch, or prompts scheduled over time.
            policy: What the cache keeps, as an object or in its spelling; None for the model's default.
            seed: Of the first video; the next of a batch has seed + 1.
            resolution: Width and height in pixels; None for that of `continue_from`, or the model's own.
            num_frames: Pixel frames to make, rounded up to whole chunks; None streams for ever.
            num_videos: Videos made together; None for as many as there are texts.
            keep_sink: Whether the sink frames outlive a change of prompt.
            recache_frames: Newest latent frames encoded again when the prompt changes; None for the model's default.
            decode: Whether chunks carry pixel frames, or latents only.
            continue_from: Latents that the video begins with, standardised, [frames, channels, height, width] as
                `--save-latents` keeps them, or with a batch axis in front as the chunks of a stream have. Their whole
                chunks come first, marked `given`, and `num_frames` are made after them.

        Raises:
            ForcingKVError: A setting that cannot work, with the figures and the fix.
        """
        prompts = prompt_schedule(prompt)
        batch_size = len(prompts[0].texts(1)) if num_videos is None else num_videos
        if batch_size < 1:
            raise ConfigurationError(f"num_videos={batch_size} must be at least 1")
        given, given_frames = None, 0
        if continue_from is not None:
            given = given_latents(
                continue_from,
                batch_size=batch_size,
                chunk_frames=self.preset.chunk_frames,
                num_channels=self.transformer.config.in_dim,
                resolution=resolution,
            )
            given_frames, resolution = given.shape[1], latents_resolution(given)
        geometry = self.geometry(resolution)
        rule = self.policy(policy)
        cache = StreamCache(
            geometry,
            rule,
            batch_size=batch_size,
            dtype=self.dtype,
            device=self.device,
            head_order=self.transformer.head_order,
        )
        _, patch_rows, patch_cols = self.transformer.config.patch_size
        latent_shape = (
            batch_size,
            geometry.chunk_frames,
            self.transformer.config.in_dim,
            geometry.frame_rows * patch_rows,
            geometry.frame_cols * patch_cols,
        )
        return VideoStream(
            transformer=self.transformer,
            cache=cache,
            sampler=self.preset.sampler,
            noise=SeededNoise(seed, latent_shape, device=self.device),
            encode_prompt=self.encode_prompt,
            prompts=prompts,
            decoder=StreamingVaeDecoder(self.vae) if decode and self.vae is not None else None,
            num_chunks=None if num_frames is None else self.num_chunks(num_frames, given_frames=given_frames),
            recache_frames=self.preset.recache_frames if recache_frames is None else recache_frames,
            keep_sink=keep_sink,
            fps=self.preset.fps,
            given=given,
            identity={"model": self.preset.name, "seed": seed},
        )

    def num_chunks(self, num_frames: int, *, given_frames: int = 0) -> int:
        """Fewest whole chunks that give `num_frames` pixel frames after `given_frames` latent frames.

        Raises:
            ConfigurationError: Fewer than 1 frame.
        """
        if num_frames < 1:
            raise ConfigurationError(f"num_frames={num_frames} must be at least 1")
        return -(-latent_frames(pixel_frames(given_frames) + num_frames) // self.preset.chunk_frames)

    def generate(self, prompt: str | Sequence[str], *, num_frames: int, **settings: Any) -> Tensor:
        """Makes a whole video in memory.

        Args:
            prompt: As in `stream`.
            num_frames: Pixel frames wanted; whole chunks are made, so there may be a few more.
            **settings: As in `stream`.

        Returns:
            uint8 [batch, frames, height, width, 3], on the CPU.
        """
        chunks = self.stream(prompt, num_frames=num_frames, **settings)
        return torch.cat([chunk.frames for chunk in chunks if chunk.frames is not None], dim=1)


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` takes a CUDA GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UnknownNameError("device", str(device), ["auto", "cpu", "cuda", "cuda:N"]) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device 'cuda' was asked for, and torch sees no CUDA GPU here; use --device cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, ["auto", *DTYPES])
    return DTYPES[dtype]
