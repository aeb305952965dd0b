"""The two pieces of a block, compiled by torch.

A piece is the same in all blocks, and what self-attention reads is not in it. So two graphs serve the whole model (four
where some blocks are in fp8), at every length of the history; compiling takes seconds and not minutes, and nothing is
compiled again as a stream goes on. Another resolution or batch size is another shape, compiled when it comes.
"""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from forcing_kv.clock import milliseconds_since
from forcing_kv.wan import Pieces
from forcing_kv.wan.blocks import Block

Result = TypeVar("Result")


class CompiledPieces:
    """Pieces for `CausalWanTransformer`, shared by all streams of one model.

    Attributes:
        pieces: Hand them to a pass. A piece is compiled when it first meets a shape.
        compile_ms: Milliseconds of the calls in which something was compiled.
        num_graphs: What was compiled so far.
    """

    def __init__(self) -> None:
        self.compile_ms = 0.0
        self.num_graphs = 0
        backend = self._count_and_compile
        self.pieces = Pieces(
            before_attention=self._timed(torch.compile(Block.before_attention, backend=backend, dynamic=False)),
            after_attention=self._timed(torch.compile(Block.after_attention, backend=backend, dynamic=False)),
        )

    def _count_and_compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        inductor = torch._dynamo.lookup_backend("inductor")
        compiled: Callable[..., Any] = inductor(graph, list(inputs))
        return compiled

    def _timed(self, piece: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(piece)
        def call(*arguments: Any) -> Result:
            num_graphs, started = self.num_graphs, time.perf_counter()
            result = piece(*arguments)
            if self.num_graphs != num_graphs:
                self.compile_ms += milliseconds_since(started)
            return result

        return call
