"""Models by name."""

from pathlib import Path

from forcing_kv.errors import UnknownNameError
from forcing_kv.heads import HeadMap
from forcing_kv.models.folder import read_preset
from forcing_kv.models.preset import ModelPreset

EMBEDDED_MODELS = {"tiny": Path(__file__).parent / "tiny"}
"""Models whose weights lie in the package."""

HEAD_MAPS = Path(__file__).parent / "head_maps"
"""Published maps of released checkpoints, one file each."""


def published_head_map(name: str) -> HeadMap:
    """The published head map of a released checkpoint.

    Raises:
        UnknownNameError: No map of that name lies in the package.
    """
    names = sorted(path.stem for path in HEAD_MAPS.glob("*.json"))
    if name not in names:
        raise UnknownNameError("head map", name, names)
    return HeadMap.load(HEAD_MAPS / f"{name}.json")


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a model: an embedded one by name, or any saved folder by path.

    Raises:
        UnknownNameError: Neither a known name nor a folder with a `model_index.json`.
    """
    if name_or_folder in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[str(name_or_folder)]
    folder = Path(name_or_folder)
    if (folder / "model_index.json").is_file():
        return folder
    raise UnknownNameError("model", str(name_or_folder), [*EMBEDDED_MODELS, "the path of a saved model folder"])


def list_models() -> list[tuple[ModelPreset, Path]]:
    """Presets and folders of all models known by name."""
    return [(read_preset(folder), folder) for folder in EMBEDDED_MODELS.values()]
