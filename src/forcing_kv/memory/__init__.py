"""The memory of a run: what it will need, and the refusal of one that does not fit."""

from forcing_kv.memory.need import (
    HEADROOM,
    UMT5_XXL_PARAMETERS,
    MemoryNeed,
    PlannedStream,
    memory_table,
    plan_run,
    plan_stream,
)
from forcing_kv.memory.refusal import check_memory, spare_bytes

__all__ = [
    "HEADROOM",
    "UMT5_XXL_PARAMETERS",
    "MemoryNeed",
    "PlannedStream",
    "check_memory",
    "memory_table",
    "plan_run",
    "plan_stream",
    "spare_bytes",
]
