"""What is right in one video, attribute by attribute, and all that its score says: what shares are made of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from forcing_kv.tiny.scoring.free_scenes import ATTRIBUTES, score
from forcing_kv.tiny.scoring.memory_scenes import score_memory
from forcing_kv.tiny.scoring.shares import Rights
from forcing_kv.tiny.scoring.switches import score_switch
from forcing_kv.tiny.world import Scene


def free_rights(frames: Tensor, scene: Scene) -> tuple[Rights, Mapping[str, Any]]:
    """What is right in a clip of a free scene, uint8 [frames, H, W, 3], and its score in full.

    A camera applies only where there is a pattern to see it by.
    """
    result = score(frames, scene)
    rights: dict[str, bool | None] = {name: getattr(result, name) for name in ATTRIBUTES}
    rights["camera"] = None if scene.texture == "plain" else result.camera
    rights["colour and background"] = result.colour and result.background
    rights["no collapse"] = not result.collapsed
    return rights, result.as_dict()


def memory_rights(frames: Tensor, scene: Scene) -> tuple[Rights, Mapping[str, Any]]:
    """What is kept in a clip of a memory scene, uint8 [frames, H, W, 3], and its score in full.

    Whether the objects are those of the scene ("as named") has no part in whether they are kept.
    """
    motion = scene.motion
    result = score_memory(frames, motion)
    rights: dict[str, bool | None] = {
        "kept": result.kept,
        f"kept, {motion}": result.kept,
        "seen": result.seen,
        "as named": sorted(result.before) == sorted((thing.colour, thing.shape, thing.size) for thing in scene.things),
        "came back": result.came_back,
        "colour": result.colour,
        "shape": result.shape,
        "size": result.size,
        "not swapped": result.came_back and not result.swapped if motion == "crossing" else None,
    }
    return rights, result.as_dict()


def switch_rights(frames: Tensor, after: Scene, switch_frame: int) -> tuple[Rights, Mapping[str, Any]]:
    """What is right after a switch, in uint8 [frames, H, W, 3]; there is no more to its score."""
    result = score_switch(frames, after, switch_frame)
    return result.as_dict(), {}
