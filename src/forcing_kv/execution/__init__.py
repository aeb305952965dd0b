"""How the passes of a stream are run: as they are, with compiled blocks, or replayed as CUDA graphs."""

from forcing_kv.execution.compiled import CompiledPieces
from forcing_kv.execution.graphs import GraphedPasses
from forcing_kv.execution.modes import EXECUTIONS, Execution, check_execution, check_together
from forcing_kv.execution.passes import PassRunner, PlainPasses, pass_runner

__all__ = [
    "EXECUTIONS",
    "CompiledPieces",
    "Execution",
    "GraphedPasses",
    "PassRunner",
    "PlainPasses",
    "check_execution",
    "check_together",
    "pass_runner",
]
