"""A stream of a released model that need not exist, for tests of memory."""

from forcing_kv.memory import (
    UMT5_XXL_PARAMETERS,
    plan_stream,
)
from forcing_kv.models import ModelPreset, published_head_map
from forcing_kv.wan import WAN_1_3B

KREA_POLICY = "forcing-kv:sink_frames=0,dynamic_recent_frames=3,similarity_pruning=false"


def planned(config=WAN_1_3B, **changes):
    """A stream of a released model, with its published head map, on a GPU."""
    small = config is WAN_1_3B
    name = "self-forcing-1.3b" if small else "krea-realtime-14b"
    preset = ModelPreset(name=name, default_policy="forcing-kv" if small else KREA_POLICY)
    encoder = {"text_encoder_bytes": 2 * UMT5_XXL_PARAMETERS}
    return plan_stream(config, preset, head_map=published_head_map(name), **(encoder | changes))
