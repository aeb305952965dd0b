"""`VideoPipeline`: text encoder, transformer and VAE of one model, and the way to a stream.

The pipeline holds what streams share and nothing else, so any number of streams may run on one pipeline, interleaved,
each with its own policy, seed and prompt.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcing_kv import memory
from forcing_kv.cache import StreamCache
from forcing_kv.continuation import given_latents, latents_resolution
from forcing_kv.devices import resolve_device, resolve_dtype
from forcing_kv.errors import ConfigurationError
from forcing_kv.execution import CompiledPieces, pass_runner
from forcing_kv.geometry import FrameGeometry
from forcing_kv.heads import HeadMap
from forcing_kv.memory import MemoryNeed, PlannedStream
from forcing_kv.models import ModelPreset, ModelSource, find_model
from forcing_kv.models.components import channels_last
from forcing_kv.policies import CachePolicy, parse_policy
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.rollout import VideoStream
from forcing_kv.sampling import SeededNoise
from forcing_kv.stream_check import check_stream
from forcing_kv.stream_options import StreamOptions
from forcing_kv.text import PromptEncoder, encode_within
from forcing_kv.video import DecoderOptions, load_tiny_decoder
from forcing_kv.video.decoders import LoadedDecoder, tiny_decoder, vae_decoder
from forcing_kv.wan import CausalWanTransformer, check_precision


class VideoPipeline:
    """A loaded model.

    Args:
        preset: How it is sampled.
        transformer: On its device and in its dtype.
        encode_prompt: Texts -> states [batch, text_len, text_dim].
        vae: diffusers' `AutoencoderKLWan`; without it, and without a `decoder`, the model gives latents only.
        head_map: Roles of the heads; None restricts the policies to those that need none.
        weights: What tells the transformer's weights from others of the same model.
        decoder: Decodes in place of `vae`.
        decoding: How latents become pixels; dtype and layout are those that `vae` and `decoder` have.

    Raises:
        HeadMapError: The map does not fit the transformer.
    """

    def __init__(
        self,
        *,
        preset: ModelPreset,
        transformer: CausalWanTransformer,
        encode_prompt: PromptEncoder,
        vae: Any = None,
        head_map: HeadMap | None = None,
        weights: str = "",
        decoder: LoadedDecoder | None = None,
        decoding: DecoderOptions = DecoderOptions(),
    ) -> None:
        self.preset = preset
        self.transformer = transformer
        self.encode_prompt = encode_prompt
        self.vae = vae
        self.head_map = head_map
        self.weights = weights
        if decoder is None and vae is not None:
            decoder = vae_decoder(vae, compiled=decoding.compiled)
        self.decoder = decoder
        self.decoding = decoding
        self._compiled: CompiledPieces | None = None
        if head_map is not None:
            config = transformer.config
            head_map.check_fits(num_layers=config.num_layers, num_heads=config.num_heads)
            transformer.set_head_order(head_map.side_by_side())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        weights: str | Path | None = None,
        lora: str | Path | None = None,
        components: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        precision: str | None = None,
        text_encoder_device: str | torch.device = "auto",
        head_map: HeadMap | str | Path | None = None,
        decoding: DecoderOptions = DecoderOptions(),
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "VideoPipeline":
        """Loads a model; what is not on this machine is downloaded from the hub.

        Args:
            model: A name (`forcing-kv models` lists them), or the path of a saved folder.
            weights: Weight file or folder in place of the model's own: a fine-tune, or a local copy.
            lora: LoRA file to merge into the weights; `none` where the model's own is merged into them already.
            components: Folder with `vae`, `text_encoder` and `tokenizer` in place of the model's own.
            device: `auto` takes a CUDA GPU if there is one, else the CPU.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 on a GPU and on a CPU that multiplies it, else
                float32.
            precision: `fp8` for the linear layers of all blocks but the first and the last, on a GPU that multiplies it
                (or, slowly, on a CPU); None for `dtype`.
            text_encoder_device: Where prompts are encoded; `auto` is `device` if it has room, else the CPU.
            head_map: A head map or its file, in place of the model's own.
            decoding: How latents become pixels: by the model's VAE, which suits the device, or by a tiny decoder, whose
                file it names; then no VAE is loaded.
            on_progress: Told the number of weights loaded, and of all.

        Raises:
            UnknownNameError: No such model, device, dtype or precision.
            ConfigurationError: A precision that the device or the model does not allow.
            CheckpointError: Files that cannot be had, are broken, or do not fit.
            HeadMapError: The head map cannot be read or does not fit.
        """
        return cls.from_source(
            find_model(model, weights=weights, lora=lora, components=components),
            device=device,
            dtype=dtype,
            precision=precision,
            text_encoder_device=text_encoder_device,
            head_map=head_map,
            decoding=decoding,
            on_progress=on_progress,
        )

    @classmethod
    def from_source(
        cls,
        source: ModelSource,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        precision: str | None = None,
        text_encoder_device: str | torch.device = "auto",
        head_map: HeadMap | str | Path | None = None,
        decoding: DecoderOptions = DecoderOptions(),
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "VideoPipeline":
        """Loads what `find_model` found; the arguments are those of `from_pretrained`."""
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        check_precision(precision, source.config, dtype=dtype, device=device)
        decoding.check_on(device)
        encoder_device = None if text_encoder_device == "auto" else resolve_device(text_encoder_device)
        if isinstance(head_map, str | Path):
            head_map = HeadMap.load(head_map)
        source.warn_of_licence()
        vae, decoder = None, None
        vae_dtype, is_channels_last = decoding.dtype_beside(dtype, device), decoding.is_channels_last(device)
        if decoding.file is not None:  # before anything large: it is the user's own file
            network = load_tiny_decoder(decoding.file, dtype=vae_dtype, device=device)
            if is_channels_last:
                channels_last(network)
            decoder = tiny_decoder(network)
        transformer = source.load_transformer(dtype=dtype, device=device, precision=precision, on_progress=on_progress)
        if decoding.file is None:
            vae = source.components.load_vae(dtype=vae_dtype, device=device, is_channels_last=is_channels_last)
        return cls(
            preset=source.preset,
            transformer=transformer,
            encode_prompt=source.components.prompt_encoder(
                source.config, dtype=dtype, device=device, encoder_device=encoder_device
            ),
            vae=vae,
            head_map=source.head_map if head_map is None else head_map,
            weights=source.weights_label(),
            decoder=decoder,
            decoding=decoding,
        )

    def with_transformer(self, transformer: CausalWanTransformer) -> "VideoPipeline":
        """The same with another transformer of the same sizes; VAE and text encoder are shared."""
        return VideoPipeline(
            preset=self.preset,
            transformer=transformer,
            encode_prompt=self.encode_prompt,
            vae=self.vae,
            head_map=self.head_map,
            weights=self.weights,
            decoder=self.decoder,
            decoding=self.decoding,
        )

    @property
    def device(self) -> torch.device:
        """Where the transformer runs."""
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return self.transformer.dtype

    @property
    def is_overlapped(self) -> bool:
        """Whether a video file's chunks are decoded and written beside the diffusion of the next one."""
        return self.decoding.is_overlapped(self.device)

    @property
    def precision(self) -> str | None:
        """Of the linear layers: `fp8`, or None for `dtype`."""
        return self.transformer.precision

    def geometry(self, resolution: tuple[int, int] | None = None) -> FrameGeometry:
        """Shape of a stream at a resolution (width, height in pixels; None for the model's own).

        Raises:
            ConfigurationError: The token grid does not allow the resolution.
        """
        return self.preset.geometry(self.transformer.config, resolution)

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
        options: StreamOptions = StreamOptions(),
        decode: bool = True,
        decode_apart: bool = False,
        continue_from: Tensor | None = None,
        check_memory: bool = True,
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
            options: How it is computed: positions, storage of the cache, step cache, attention back end, execution.
            decode: Whether chunks carry pixel frames, or latents only.
            decode_apart: Chunks carry latents only, and the caller decodes them by a `decoder.new_stream()`, beside the
                next chunk if it likes (`video.ChunkOutput`); the memory for that is counted.
            continue_from: Latents that the video begins with, standardised, [frames, channels, height, width] as
                `--save-latents` keeps them, or with a batch axis in front as the chunks of a stream have. Their whole
                chunks come first, marked `given`, and `num_frames` are made after them.
            check_memory: Whether a stream that the device cannot hold is refused now.

        Raises:
            MemoryLimitError: The device cannot hold it; the message has the figures, and what would make it fit.
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
        recache_frames = self.preset.recache_frames if recache_frames is None else recache_frames
        planned = self.plan(
            prompts,
            policy=policy,
            resolution=resolution,
            num_frames=num_frames,
            given_frames=given_frames,
            num_videos=batch_size,
            recache_frames=recache_frames,
            options=options,
            decode=decode,
        )
        geometry = planned.geometry
        check_stream(self.preset, planned, keep_sink=keep_sink, recache_frames=recache_frames)
        # The text encoder counts as memory to be had: it is given up where the run needs it.
        loaded_bytes = planned.need().model_bytes + self.encode_prompt.bytes_on(self.device)
        if check_memory:
            memory.check_memory(planned, loaded_bytes=loaded_bytes)
        encode_prompt = partial(
            encode_within,
            memory.spare_bytes(planned, loaded_bytes=loaded_bytes),
            self.encode_prompt,
            device=self.device,
            coming=[text for scheduled in prompts for text in scheduled.texts(batch_size)],
        )
        cache = StreamCache(
            geometry,
            planned.policy,
            batch_size=batch_size,
            dtype=self.dtype,
            kv_dtype=options.kv_dtype,
            device=self.device,
            head_order=self.transformer.head_order,
            rotation=self.transformer.temporal_shift() if options.positions == "relative" else None,
            attention=options.attention,
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
            encode_prompt=encode_prompt,
            prompts=prompts,
            decoder=self.decoder.new_stream() if self.decoder and decode and not decode_apart else None,
            num_chunks=planned.num_chunks,
            recache_frames=recache_frames,
            keep_sink=keep_sink,
            step_cache=options.step_cache,
            fps=self.preset.fps,
            run_pass=pass_runner(options.execution, self.transformer, compiled=self._compiled_pieces(options)),
            given=given,
            identity={
                "model": self.preset.name,
                "weights": self.weights,
                "precision": self.precision,
                "seed": seed,
            },
        )

    def memory_need(
        self,
        prompt: str | Sequence[str] | Sequence[ScheduledPrompt],
        *,
        seed: int = 0,
        keep_sink: bool = False,
        **settings: Any,
    ) -> MemoryNeed:
        """What a stream takes on the device, the loaded transformer and VAE included, the text encoder not.

        Args:
            prompt: As in `stream`.
            seed: As in `stream`; all seeds need the same.
            keep_sink: As in `stream`; it needs no more.
            **settings: As in `plan`.

        Raises:
            ForcingKVError: A setting that cannot work, with the figures and the fix.
        """
        return self.plan(prompt, **settings).need()

    def plan(
        self,
        prompt: str | Sequence[str] | Sequence[ScheduledPrompt],
        *,
        policy: CachePolicy | str | None = None,
        resolution: tuple[int, int] | None = None,
        num_frames: int | None = None,
        given_frames: int = 0,
        num_videos: int | None = None,
        recache_frames: int | None = None,
        options: StreamOptions = StreamOptions(),
        decode: bool = True,
    ) -> PlannedStream:
        """What decides the memory of the stream that `stream` would start with these arguments."""
        return memory.plan_run(
            self.transformer.config,
            self.preset,
            prompt,
            num_frames=num_frames,
            given_frames=given_frames,
            num_videos=num_videos,
            recache_frames=recache_frames,
            options=options,
            precision=self.precision,
            head_map=self.head_map,
            policy=policy,
            resolution=resolution,
            dtype=self.dtype,
            device=self.device,
            vae=self.decoder.size if self.decoder and decode else None,
            vae_dtype=self.decoder.dtype if self.decoder else None,
            overlapped=self.is_overlapped,
        )

    def num_chunks(self, num_frames: int, *, given_frames: int = 0) -> int:
        """Fewest whole chunks that give `num_frames` pixel frames after `given_frames` latent frames.

        Raises:
            ConfigurationError: Fewer than 1 frame.
        """
        return self.preset.num_chunks(num_frames, given_frames=given_frames)

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

    def _compiled_pieces(self, options: StreamOptions) -> CompiledPieces | None:
        """What all streams that compile share, made for the first of them."""
        if self._compiled is None and options.way.compiles:
            self._compiled = CompiledPieces()
        return self._compiled
