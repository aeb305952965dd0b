"""The chunk loop: a stream of video, one chunk per turn, that can be steered, saved and gone on with.

`VideoStream` is what the command line, the tests and the benchmarks all iterate. It owns everything that belongs to one
video (cache, noise, position, prompt, decoder); the models it uses are shared and hold nothing of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from forcing_kv.cache import StreamCache
from forcing_kv.devices import finish_stream
from forcing_kv.errors import ConfigurationError, PromptError, SnapshotError
from forcing_kv.execution import PassRunner, PlainPasses
from forcing_kv.geometry import start_seconds
from forcing_kv.policies.base import head_map_of
from forcing_kv.prompt_schedule import PromptSchedule, ScheduledPrompt
from forcing_kv.sampling import FewStepSampler, NoiseSource
from forcing_kv.snapshot import StreamSnapshot
from forcing_kv.step_cache import StepCache
from forcing_kv.wan import CausalWanTransformer, SelfAttentionMemory, TextMemory, TokenPositions

Model = Callable[..., Tensor]
"""(latents, level, text=, positions=, memory=) -> velocity, as `CausalWanTransformer.at_level`."""

DEFAULT_FPS = 16
DEFAULT_RECACHE_FRAMES = 12


class ChunkDecoder(Protocol):
    """Turns latents into pixel frames, keeping what the next chunk needs."""

    def decode(self, latents: Tensor) -> Tensor:
        """[batch, frames, channels, height, width] -> uint8 [batch, pixel_frames, height, width, 3], on the CPU."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and what JSON can hold."""
        ...

    def load_state(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChunkTimings:
    """Where the time of a chunk went, in milliseconds of wall clock.

    Attributes:
        text_ms: Encoding the prompt; 0 unless it changed.
        compile_ms: Compiling, and capturing graphs; 0 once everything is there.
        diffusion_ms: Transformer passes: denoising, commit and, after a switch, the re-cache.
        decode_ms: VAE.
    """

    text_ms: float = 0.0
    compile_ms: float = 0.0
    diffusion_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One finished chunk.

    Attributes:
        index: Its number in the stream, from 0.
        first_frame: Absolute index of its first latent frame.
        latents: [batch, chunk_frames, channels, height, width], float32, standardised, on the model's device.
        frames: uint8 [batch, pixel_frames, height, width, 3] on the CPU, or None for a stream without a decoder.
        prompts: The prompt of each batch item.
        timings: Where the time went.
        given: Whether its latents were given to the stream, not made by it.
    """

    index: int
    first_frame: int
    latents: Tensor
    frames: Tensor | None
    prompts: tuple[str, ...]
    timings: ChunkTimings
    given: bool = False


class VideoStream(Iterator[Chunk]):
    """An endless video, chunk by chunk; iterate it.

    Args:
        transformer: Shared; nothing of the stream is kept on it.
        cache: Fresh, of the transformer's shape; this stream's own.
        sampler: Step list and schedule.
        noise: This stream's own.
        encode_prompt: Texts, one per batch item -> states [batch, text_len, text_dim], zeros at padding.
        prompts: What is shown, from when on.
        decoder: This stream's own; None yields latents only.
        num_chunks: Where the stream ends; None for never.
        recache_frames: Newest frames that are encoded again when the prompt changes.
        keep_sink: Whether the sink outlives a change of prompt.
        step_cache: Threshold under which a denoising step leaves its blocks out (`step_cache`); None never does.
        fps: Pixel frames per second of video.
        run_pass: Runs the passes over a chunk, for this stream alone; None runs them as they are.
        given: Latents of the video's beginning, [batch, frames, channels, height, width], float32, whole chunks: they
            are committed in place of chunks that would be made. The noise of those is drawn all the same, so that what
            follows is what would follow if the stream had made them itself.
        identity: Names (model, seed, ...) that a snapshot must share with the stream it is restored into.
    """

    def __init__(
        self,
        *,
        transformer: CausalWanTransformer,
        cache: StreamCache,
        sampler: FewStepSampler,
        noise: NoiseSource,
        encode_prompt: Callable[[Sequence[str]], Tensor],
        prompts: PromptSchedule,
        decoder: ChunkDecoder | None = None,
        num_chunks: int | None = None,
        recache_frames: int = DEFAULT_RECACHE_FRAMES,
        keep_sink: bool = False,
        step_cache: float | None = None,
        fps: float = DEFAULT_FPS,
        run_pass: PassRunner | None = None,
        given: Tensor | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        if recache_frames < 1:
            raise ConfigurationError(
                f"recache_frames={recache_frames} keeps nothing at a change of prompt; use at least 1"
            )
        self.cache = cache
        self.num_chunks = num_chunks
        self.fps = fps
        self._transformer = transformer
        self._sampler = sampler
        self._levels = {
            timestep: transformer.noise_level(timestep) for timestep in {*sampler.timesteps, sampler.context_noise}
        }
        self._step_cache = step_cache
        self._run_pass: PassRunner = PlainPasses(transformer) if run_pass is None else run_pass
        self._denoise: Model = self._run_pass
        self.steps_skipped = 0
        """Denoising steps of each chunk that leave the blocks out."""
        if step_cache is not None:
            self._denoise = cached = StepCache(
                transformer, sampler.timesteps, threshold=step_cache, pieces=self._run_pass.pieces
            )
            self.steps_skipped = sum(cached.skipped)
        self._noise = noise
        self._encode_prompt = encode_prompt
        self._decoder = decoder
        self._recache_frames = recache_frames
        self._keep_sink = keep_sink
        self._given = given
        self._identity = dict(identity or {})
        self._pending = list(prompts)
        self._check_texts(self._pending)
        self._prompts: tuple[str, ...] = ()
        self._text_states: Tensor | None = None
        self._text: TextMemory | None = None
        self._newest_latents: Tensor | None = None

    @property
    def chunk_index(self) -> int:
        """Number of the next chunk."""
        return self.cache.num_chunks

    @property
    def given_frames(self) -> int:
        """Latent frames that the stream was given to begin with."""
        return 0 if self._given is None else self._given.shape[1]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each batch item that holds now; empty before the first chunk."""
        return self._prompts

    def switch_prompt(self, text: str | Sequence[str]) -> None:
        """Changes the prompt from the next chunk on.

        Args:
            text: One text for all batch items, or one per item.

        Raises:
            PromptError: An empty text, or a number of texts that is not the batch size.
        """
        at_seconds = start_seconds(self.cache.num_frames, self.fps)
        prompt = ScheduledPrompt(at_seconds=at_seconds, text=text if isinstance(text, str) else tuple(text))
        self._check_texts([prompt])
        self._pending = [item for item in self._pending if item.at_seconds > at_seconds]
        self._pending.insert(0, prompt)

    def __iter__(self) -> "VideoStream":
        return self

    @torch.no_grad()
    def __next__(self) -> Chunk:
        if self.num_chunks is not None and self.chunk_index >= self.num_chunks:
            raise StopIteration
        index, first_frame = self.chunk_index, self.cache.num_frames

        started = self._clock()
        is_first_prompt = self._text is None
        changed = self._take_due_prompt()
        text_done, prepared_before_ms = self._clock(), self._run_pass.prepared_ms
        if changed and first_frame and not is_first_prompt:
            self._recache()
        latents = self._make_chunk()
        diffusion_done = self._clock()
        frames = None if self._decoder is None else self._decoder.decode(latents)
        decode_done = self._clock()

        compile_ms = self._run_pass.prepared_ms - prepared_before_ms
        timings = ChunkTimings(
            text_ms=1e3 * (text_done - started),
            compile_ms=compile_ms,
            diffusion_ms=1e3 * (diffusion_done - text_done) - compile_ms,
            decode_ms=1e3 * (decode_done - diffusion_done),
        )
        return Chunk(
            index=index,
            first_frame=first_frame,
            latents=latents,
            frames=frames,
            prompts=self._prompts,
            timings=timings,
            given=first_frame < self.given_frames,
        )

    def snapshot(self) -> StreamSnapshot:
        """Copies the whole state to the host: a stream of the same making goes on from it bit for bit."""
        cache_tensors, cache_meta = self.cache.state()
        tensors = {f"cache/{name}": tensor for name, tensor in cache_tensors.items()}
        tensors["noise"] = self._noise.state()
        if self._text_states is not None and self._newest_latents is not None:
            tensors["text_states"] = self._text_states.to("cpu", copy=True)
            tensors["newest_latents"] = self._newest_latents.to("cpu", copy=True)
        progress: dict[str, Any] = {
            "cache": cache_meta,
            "prompts": list(self._prompts),
            "pending": [asdict(prompt) for prompt in self._pending],
        }
        if self._decoder is not None:
            decoder_tensors, progress["decoder"] = self._decoder.state()
            tensors |= {f"decoder/{name}": tensor.to("cpu", copy=True) for name, tensor in decoder_tensors.items()}
        return StreamSnapshot(identity=self._full_identity(), tensors=tensors, progress=progress)

    @torch.no_grad()
    def restore(self, snapshot: StreamSnapshot) -> None:
        """Goes on from a snapshot, of this stream or of another one made with the same arguments.

        Raises:
            SnapshotError: The snapshot belongs to a stream that was made otherwise; the message says in what.
        """
        wanted = self._full_identity()
        for key in {**wanted, **snapshot.identity}:
            if wanted.get(key) != snapshot.identity.get(key):
                raise SnapshotError(
                    f"the snapshot was made with {key}={snapshot.identity.get(key)!r}, this stream has "
                    f"{wanted.get(key)!r}; use the same settings or start over"
                )
        device = self._transformer.device
        progress = snapshot.progress
        self.cache.load_state(snapshot.part("cache"), progress["cache"])
        self._noise.load_state(snapshot.tensors["noise"])
        self._prompts = tuple(progress["prompts"])
        self._pending = [ScheduledPrompt(**prompt) for prompt in progress["pending"]]
        if "text_states" in snapshot.tensors:
            self._set_text_states(snapshot.tensors["text_states"].to(device))
            self._newest_latents = snapshot.tensors["newest_latents"].to(device, copy=True)
        else:
            self._text_states = self._text = self._newest_latents = None
        if self._decoder is not None:
            self._decoder.load_state(snapshot.part("decoder"), progress["decoder"])

    def _take_due_prompt(self) -> bool:
        now = start_seconds(self.cache.num_frames, self.fps)
        due = [prompt for prompt in self._pending if prompt.at_seconds <= now]
        if not due:
            return False
        texts = due[-1].texts(self.cache.batch_size)
        self._set_text_states(self._encode_prompt(texts))
        self._prompts = texts
        self._pending = self._pending[len(due) :]
        return True

    def _set_text_states(self, text_states: Tensor) -> None:
        self._text_states = text_states
        self._text = self._transformer.encode_text(text_states)

    def _recache(self) -> None:
        memory = self.cache.recache(self._recache_frames, keep_sink=self._keep_sink)
        if memory.frames:
            assert self._newest_latents is not None
            latents = self._newest_latents[:, -len(memory.frames) :]
            places = self._places(memory.positions)
            self._over(self._transformer.at_level, places, memory)(latents, self._sampler.context_noise)

    def _make_chunk(self) -> Tensor:
        first_frame, first_position = self.cache.num_frames, self.cache.first_position
        chunk_frames = self.cache.geometry.chunk_frames
        places = self._places(range(first_position, first_position + chunk_frames))  # once for all passes
        if self._given is not None and first_frame < self.given_frames:
            latents = self._given[:, first_frame : first_frame + chunk_frames].to(self._transformer.device)
            for _ in range(self._sampler.num_draws):
                self._noise.draw()
        else:
            denoise = self._over(self._denoise, places, self.cache)
            latents = self._sampler.sample(self._noise.draw(), denoise, self._noise.draw)
        # The commit pass: only what it writes is wanted.
        self._over(self._run_pass, places, self.cache)(latents, self._sampler.context_noise)
        self.cache.commit()
        newest = latents if self._newest_latents is None else torch.cat((self._newest_latents, latents), dim=1)
        self._newest_latents = newest[:, -self._recache_frames :]
        return latents

    def _places(self, positions: range) -> TokenPositions:
        geometry = self.cache.geometry
        return self._transformer.token_positions(positions, geometry.frame_rows, geometry.frame_cols)

    def _over(
        self, model: Model, places: TokenPositions, memory: SelfAttentionMemory
    ) -> Callable[[Tensor, float], Tensor]:
        """A model under the prompt that holds now, as (latents, timestep) -> velocity."""
        assert self._text is not None
        model = partial(model, text=self._text, positions=places, memory=memory)
        return lambda latents, timestep: model(latents, self._levels[timestep])

    def _check_texts(self, prompts: Sequence[ScheduledPrompt]) -> None:
        for prompt in prompts:
            if len(prompt.texts(self.cache.batch_size)) != self.cache.batch_size:
                raise PromptError(
                    f"{len(prompt.texts(1))} prompts for {self.cache.batch_size} videos; give one for all or one each"
                )

    def _full_identity(self) -> dict[str, Any]:
        geometry = self.cache.geometry
        head_map = head_map_of(self.cache.policy)
        return {
            **self._identity,
            "geometry": asdict(geometry),
            "policy": self.cache.policy.spec(),
            "positions": self.cache.positions,
            "kv_dtype": self.cache.kv_dtype,
            "head_map": None if head_map is None else list(head_map.roles),
            "batch_size": self.cache.batch_size,
            "dtype": str(self.cache.dtype),
            "timesteps": list(self._sampler.timesteps),
            "context_noise": self._sampler.context_noise,
            "recache_frames": self._recache_frames,
            "keep_sink": self._keep_sink,
            "step_cache": self._step_cache,
            "fps": self.fps,
            "given_frames": self.given_frames,
            "decodes": self._decoder is not None,
        }

    def _clock(self) -> float:
        finish_stream(self._transformer.device)  # and not the device: a decoder may be at work beside
        return time.perf_counter()
