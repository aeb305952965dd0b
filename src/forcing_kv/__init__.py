"""Forcing-KV: autoregressive video diffusion with a KV cache compressed by head role (arXiv 2605.09681).

The public names are loaded when they are first used, so that `import forcing_kv` and `forcing-kv --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcing_kv.attention import attend as attend
    from forcing_kv.cache import StreamCache as StreamCache
    from forcing_kv.calibration import calibrate as calibrate
    from forcing_kv.errors import CheckpointError as CheckpointError
    from forcing_kv.errors import ConfigurationError as ConfigurationError
    from forcing_kv.errors import ForcingKVError as ForcingKVError
    from forcing_kv.errors import HeadMapError as HeadMapError
    from forcing_kv.errors import MemoryLimitError as MemoryLimitError
    from forcing_kv.errors import OutputError as OutputError
    from forcing_kv.errors import PromptError as PromptError
    from forcing_kv.errors import SnapshotError as SnapshotError
    from forcing_kv.errors import UnknownNameError as UnknownNameError
    from forcing_kv.geometry import FrameGeometry as FrameGeometry
    from forcing_kv.heads import HeadMap as HeadMap
    from forcing_kv.memory import MemoryNeed as MemoryNeed
    from forcing_kv.pipeline import VideoPipeline as VideoPipeline
    from forcing_kv.policies import CachePolicy as CachePolicy
    from forcing_kv.policies import DummyForcing as DummyForcing
    from forcing_kv.policies import ForcingKV as ForcingKV
    from forcing_kv.policies import Full as Full
    from forcing_kv.policies import Window as Window
    from forcing_kv.policies import parse_policy as parse_policy
    from forcing_kv.prompt_schedule import ScheduledPrompt as ScheduledPrompt
    from forcing_kv.rollout import Chunk as Chunk
    from forcing_kv.rollout import VideoStream as VideoStream
    from forcing_kv.snapshot import StreamSnapshot as StreamSnapshot
    from forcing_kv.stream_options import StreamOptions as StreamOptions
    from forcing_kv.video import DecoderOptions as DecoderOptions

__version__ = "0.1.0"

_HOME = {
    "CachePolicy": "policies",
    "CheckpointError": "errors",
    "Chunk": "rollout",
    "ConfigurationError": "errors",
    "DecoderOptions": "video",
    "DummyForcing": "policies",
    "ForcingKV": "policies",
    "ForcingKVError": "errors",
    "FrameGeometry": "geometry",
    "Full": "policies",
    "HeadMap": "heads",
    "HeadMapError": "errors",
    "MemoryLimitError": "errors",
    "MemoryNeed": "memory",
    "OutputError": "errors",
    "PromptError": "errors",
    "ScheduledPrompt": "prompt_schedule",
    "SnapshotError": "errors",
    "StreamCache": "cache",
    "StreamOptions": "stream_options",
    "StreamSnapshot": "snapshot",
    "UnknownNameError": "errors",
    "VideoPipeline": "pipeline",
    "VideoStream": "rollout",
    "Window": "policies",
    "attend": "attention",
    "calibrate": "calibration",
    "parse_policy": "policies",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  # built from the table that also loads the names


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'forcing_kv' has no attribute {name!r}")
    return getattr(import_module(f"forcing_kv.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
