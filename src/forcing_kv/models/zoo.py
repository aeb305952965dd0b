"""Models by name or folder: which parts a model is made of, and where each lies before anything is loaded."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from forcing_kv.errors import CheckpointError, ConfigurationError, UnknownNameError
from forcing_kv.heads import HeadMap
from forcing_kv.models.checkpoint import Checkpoint
from forcing_kv.models.components import Components
from forcing_kv.models.folder import is_model_folder, read_head_map, read_preset, read_transformer_config
from forcing_kv.models.location import LocalPath, Location
from forcing_kv.models.lora import listed
from forcing_kv.models.preset import ModelPreset
from forcing_kv.models.released import RELEASED_MODELS, ReleasedModel
from forcing_kv.models.weights import LoraSource, build_transformer, find_problems, merge_lora, read_weights
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

EMBEDDED_MODELS = {"tiny": Path(__file__).parent / "tiny"}
"""Models whose weights lie in the package."""

HEAD_MAPS = Path(__file__).parent / "head_maps"
"""Published maps of released checkpoints, one file each."""

NO_LORA = "none"
"""In place of a LoRA file: the weights given have it merged already."""


class LicenceWarning(UserWarning):
    """The weights may not be used commercially."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that has not been loaded.

    Attributes:
        preset: How it is sampled.
        config: Sizes of the transformer.
        weights: Weight file or folder of the transformer.
        lora: Adapter that is merged into it.
        components: Text encoder and VAE.
        head_map: Roles of its heads.
    """

    preset: ModelPreset
    config: TransformerConfig
    weights: Location
    lora: LoraSource | None = None
    components: Components
    head_map: HeadMap | None = None

    @property
    def locations(self) -> list[Location]:
        """The files of the transformer."""
        return [self.weights] + ([self.lora.location] if self.lora else [])

    def is_here(self) -> bool:
        """Whether the transformer's weights are on this machine."""
        return all(location.find() is not None for location in self.locations)

    def weights_label(self) -> str:
        """What tells these weights from others of the same model."""
        return " + ".join(location.label() for location in self.locations)

    def warn_of_licence(self) -> None:
        """Names a non-commercial licence."""
        if self.preset.is_non_commercial:
            warnings.warn(
                f"the weights of {self.preset.name} are licensed {self.preset.licence}: not for commercial use",
                LicenceWarning,
                stacklevel=3,
            )

    def open_weights(self) -> Checkpoint:
        """The transformer's weights, found or downloaded, LoRA merged, names and shapes checked; no value is read yet.

        Raises:
            CheckpointError: Files that cannot be had or read, or weights that do not fit.
        """
        path = self.weights.fetch()
        tensors = read_weights(path)
        problems = find_problems(tensors, self.config)
        if problems:
            raise CheckpointError(
                f"{path} does not fit {self.preset.name} ({len(problems)} of its weights): {listed(problems)}; "
                f"{_what_it_fits(tensors, self.config)}"
            )
        return tensors if self.lora is None else merge_lora(tensors, self.lora, self.config)

    def load_transformer(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device,
        precision: str | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> CausalWanTransformer:
        """Loads the transformer; see `open_weights` and `build_transformer`."""
        return build_transformer(
            self.open_weights(),
            self.config,
            dtype=dtype,
            device=device,
            precision=precision,
            on_progress=on_progress,
        )


def find_model(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    lora: str | Path | None = None,
    components: str | Path | None = None,
) -> ModelSource:
    """Finds a model.

    Args:
        model: A name (embedded or released), or the path of a saved folder.
        weights: Weight file or folder, in place of the model's own.
        lora: LoRA file to merge, in place of the model's own; `none` for weights that have it merged.
        components: Folder with `vae`, `text_encoder` and `tokenizer`, in place of the model's own.

    Raises:
        UnknownNameError: Neither a known name nor a saved folder.
        CheckpointError: The folder is broken.
        ConfigurationError: A LoRA is needed and not given.
    """
    given = None if weights is None else Path(weights)
    if model in RELEASED_MODELS:
        source = _released(RELEASED_MODELS[str(model)], given, lora)
    else:
        folder = EMBEDDED_MODELS.get(str(model), Path(model))
        if not is_model_folder(folder):
            choices = [*EMBEDDED_MODELS, *RELEASED_MODELS, "the path of a saved model folder"]
            raise UnknownNameError("model", str(model), choices)
        source = _saved(folder, given, lora)
    return source if components is None else replace(source, components=Components.in_folder(Path(components)))


def list_models() -> list[ModelSource]:
    """All models known by name."""
    return [find_model(name) for name in (*EMBEDDED_MODELS, *RELEASED_MODELS)]


def published_head_map(name: str) -> HeadMap:
    """The published head map of a released checkpoint.

    Raises:
        UnknownNameError: No map of that name lies in the package.
    """
    names = sorted(path.stem for path in HEAD_MAPS.glob("*.json"))
    if name not in names:
        raise UnknownNameError("head map", name, names)
    return HeadMap.load(HEAD_MAPS / f"{name}.json")


def _released(model: ReleasedModel, given: Path | None, lora: str | Path | None) -> ModelSource:
    return ModelSource(
        preset=model.preset,
        config=model.config,
        weights=model.weights if given is None else LocalPath(_weights_in(given, model.weights.path)),
        lora=_released_lora(model, given, lora),
        head_map=None if model.head_map is None else published_head_map(model.head_map),
        components=Components.on_hub(model.preset.components),
    )


def _released_lora(model: ReleasedModel, given: Path | None, lora: str | Path | None) -> LoraSource | None:
    if lora == NO_LORA:
        return None
    if model.lora is None:
        return _given_lora(lora)
    location: Location = model.lora.file
    if lora is not None:
        location = LocalPath(Path(lora))
    elif given is not None:
        if is_model_folder(given):
            return None  # a folder that `convert` wrote has it merged
        file = _file_in(given, model.lora.file.path)
        if file is None:
            raise ConfigurationError(
                f"{model.preset.name} is a base with a LoRA ({model.lora.file.path}): give it with --lora FILE, or say "
                f"--lora {NO_LORA} if {given} has it merged"
            )
        location = LocalPath(file)
    return LoraSource(location=location, alpha=model.lora.alpha, is_complete=True)


def _saved(folder: Path, given: Path | None, lora: str | Path | None) -> ModelSource:
    preset = read_preset(folder)
    has_parts = (folder / "vae").is_dir() or not preset.components
    return ModelSource(
        preset=preset,
        config=read_transformer_config(folder),
        weights=LocalPath(folder / "transformer" if given is None else _weights_in(given)),
        lora=_given_lora(lora),
        head_map=read_head_map(folder),
        components=Components.in_folder(folder) if has_parts else Components.on_hub(preset.components),
    )


def _given_lora(lora: str | Path | None) -> LoraSource | None:
    return None if lora is None or lora == NO_LORA else LoraSource(location=LocalPath(Path(lora)))


def _weights_in(given: Path, released_path: str = "") -> Path:
    """The weights in a saved model folder or in a copy of a released repository; else `given` itself."""
    if is_model_folder(given):
        return given / "transformer"
    return _file_in(given, released_path) or given


def _file_in(given: Path, released_path: str) -> Path | None:
    """A released file in a folder that is a copy of its repository, or of the part of it that matters."""
    candidates = (given / released_path, given / Path(released_path).name)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _what_it_fits(tensors: Checkpoint, config: TransformerConfig) -> str:
    """Which models known by name have exactly these weights."""
    configs = {name: read_transformer_config(folder) for name, folder in EMBEDDED_MODELS.items()}
    configs |= {name: model.config for name, model in RELEASED_MODELS.items()}
    fitting = {other for other in set(configs.values()) - {config} if not find_problems(tensors, other)}
    names = [name for name, other in configs.items() if other in fitting]
    return (
        f"it fits {', '.join(names)}: use --model {names[0]}" if names else "it fits no other model known here either"
    )
