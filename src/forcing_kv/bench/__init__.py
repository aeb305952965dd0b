"""What a policy costs: time, bytes, and the arithmetic both are compared with."""

from forcing_kv.bench.arithmetic import Work, cache_work, pass_work
from forcing_kv.bench.ceilings import Ceilings, measure_ceilings
from forcing_kv.bench.environment import environment
from forcing_kv.bench.figure import write_figure
from forcing_kv.bench.filled_stream import filled_stream
from forcing_kv.bench.loading import load_pipeline
from forcing_kv.bench.peak_memory import PEAK_MEMORY
from forcing_kv.bench.plan import DEFAULT_POLICIES, DEFAULT_REPEATS, BenchmarkPlan, plan_benchmark
from forcing_kv.bench.random_weights import random_pipeline, random_transformer
from forcing_kv.bench.run import run_benchmark
from forcing_kv.bench.table import describe_limits, describe_results

__all__ = [
    "DEFAULT_POLICIES",
    "DEFAULT_REPEATS",
    "PEAK_MEMORY",
    "BenchmarkPlan",
    "Ceilings",
    "Work",
    "cache_work",
    "describe_limits",
    "describe_results",
    "environment",
    "filled_stream",
    "load_pipeline",
    "measure_ceilings",
    "pass_work",
    "plan_benchmark",
    "random_pipeline",
    "random_transformer",
    "run_benchmark",
    "write_figure",
]
