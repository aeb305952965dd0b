"""What a model needs besides its weights, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from forcing_kv.errors import CheckpointError, ConfigurationError
from forcing_kv.geometry import FrameGeometry, latent_frames, pixel_frames
from forcing_kv.resolution import PIXELS_PER_TOKEN, check_resolution
from forcing_kv.sampling import FewStepSampler, FlowSchedule
from forcing_kv.wan import TransformerConfig

FORMAT = "forcing-kv-model"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """How a model is sampled, and what a user wants to know of it.

    Attributes:
        name: On the command line.
        description: One line.
        licence: Of the weights, an SPDX name.
        chunk_frames: Latent frames generated together.
        steps: Denoising steps; `warped`, `shift`, `context_noise` as in `FewStepSampler`.
        default_policy: Cache policy, settings included.
        default_resolution: Width and height in pixels.
        fps: Pixel frames per second the model was trained at.
        recache_frames: Newest frames encoded again when the prompt changes.
        trained_frames: Latent frames the model was trained at; relative positions never reach further.
        components: Repository on the hub with text encoder, tokenizer and VAE, for a folder that does not hold them.
    """

    name: str
    description: str = ""
    licence: str = "unknown"
    chunk_frames: int = 3
    steps: tuple[float, ...] = (1000, 750, 500, 250)
    warped: bool = True
    shift: float = 5.0
    context_noise: float = 0.0
    default_policy: str = "forcing-kv"
    default_resolution: tuple[int, int] = (832, 480)
    fps: int = 16
    recache_frames: int = 12
    trained_frames: int = 21
    components: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "default_resolution", tuple(self.default_resolution))

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence of the weights forbids commercial use."""
        return "-NC" in self.licence.upper()

    @property
    def sampler(self) -> FewStepSampler:
        """The sampler these settings describe."""
        return FewStepSampler(
            steps=self.steps,
            warped=self.warped,
            schedule=FlowSchedule(shift=self.shift),
            context_noise=self.context_noise,
        )

    def geometry(self, config: TransformerConfig, resolution: tuple[int, int] | None = None) -> FrameGeometry:
        """Shape of a stream at a resolution (width, height in pixels; None for the model's own).

        Raises:
            ConfigurationError: The token grid does not allow the resolution.
        """
        width, height = self.default_resolution if resolution is None else resolution
        check_resolution(width, height)
        return FrameGeometry(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            frame_rows=height // PIXELS_PER_TOKEN,
            frame_cols=width // PIXELS_PER_TOKEN,
            chunk_frames=self.chunk_frames,
        )

    def num_chunks(self, num_frames: int, *, given_frames: int = 0) -> int:
        """Fewest whole chunks that give `num_frames` pixel frames after `given_frames` latent frames.

        Raises:
            ConfigurationError: Fewer than 1 frame.
        """
        if num_frames < 1:
            raise ConfigurationError(f"num_frames={num_frames} must be at least 1")
        return -(-latent_frames(pixel_frames(given_frames) + num_frames) // self.chunk_frames)

    def to_json(self) -> dict[str, Any]:
        """The content of `model_index.json`."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, source: str) -> "ModelPreset":
        """Reads the content of `model_index.json`; `source` names it in errors.

        Raises:
            CheckpointError: Another format or version, or settings that are unknown or missing.
        """
        if document.get("format") != FORMAT or document.get("version") != VERSION:
            raise CheckpointError(
                f'{source} is no model folder of this project: it needs "format": "{FORMAT}", "version": {VERSION}'
            )
        settings = {key: value for key, value in document.items() if key not in ("format", "version")}
        unknown = settings.keys() - {field.name for field in fields(cls)}
        if unknown or "name" not in settings:
            raise CheckpointError(f"{source} has unknown entries {sorted(unknown)} or lacks a name")
        return cls(**settings)
