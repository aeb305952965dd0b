"""Libraries that only a comparison needs: imported when they are used, and missed with the command that brings them."""

import importlib
from pathlib import Path
from typing import Any

from forcing_kv.errors import ConfigurationError

EVALUATION, LPIPS = "evaluation", "lpips"
"""The extras of this package that bring them."""

_PACKAGES = {"cv2": "OpenCV", "skimage.metrics": "scikit-image", "jinja2": "Jinja2"}


def library(module: str, *, what: str, extra: str = EVALUATION) -> Any:
    """Imports a module of an extra.

    Args:
        module: Its name.
        what: What it is needed for, for the error.
        extra: What to install where it is missing.

    Raises:
        ConfigurationError: It is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # torchvision made for another torch raises RuntimeError
        name = _PACKAGES.get(module, module)
        raise ConfigurationError(
            f"{what} needs {name}, which cannot be imported ({error}): pip install 'forcing-kv[{extra}]'"
        ) from error


def downloaded_weights(url: str, *, what: str, command: str) -> Path:
    """Where torch keeps weights of a network that were downloaded before: measuring never downloads, nor waits for it.

    Args:
        url: Where they come from.
        what: What they are needed for, for the error.
        command: Python code that downloads them.

    Raises:
        ConfigurationError: They are not there.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise ConfigurationError(
            f"{what} needs weights that are not on this machine ({path}); where there is a network: "
            f'python -c "{command}"'
        )
    return path
