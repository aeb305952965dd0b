"""What a policy costs: time, bytes, and the arithmetic both are compared with."""

from forcing_kv.bench.arithmetic import pass_flops
from forcing_kv.bench.environment import environment
from forcing_kv.bench.peak_memory import PEAK_MEMORY
from forcing_kv.bench.random_weights import built_on, random_transformer
from forcing_kv.bench.steady_state import SteadyState, filled_stream, measure_steady_state

__all__ = [
    "PEAK_MEMORY",
    "SteadyState",
    "built_on",
    "environment",
    "filled_stream",
    "measure_steady_state",
    "pass_flops",
    "random_transformer",
]
