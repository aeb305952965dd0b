"""What runs the passes of one stream."""

from typing import Protocol

from torch import Tensor

from forcing_kv.cache import StreamCache
from forcing_kv.execution.compiled import CompiledPieces
from forcing_kv.execution.graphs import GraphedPasses
from forcing_kv.execution.modes import EXECUTIONS
from forcing_kv.wan import CausalWanTransformer, NoiseLevel, Pieces, TextMemory, TokenPositions


class PassRunner(Protocol):
    """Runs passes over a chunk; what it gives is valid until its next call."""

    @property
    def prepared_ms(self) -> float:
        """Milliseconds that went into compiling and capturing so far."""
        ...

    @property
    def pieces(self) -> Pieces | None:
        """Compiled pieces of the blocks, if there are any."""
        ...

    def __call__(
        self, latents: Tensor, level: NoiseLevel, *, text: TextMemory, positions: TokenPositions, memory: StreamCache
    ) -> Tensor:
        """As `CausalWanTransformer.at_level`."""
        ...


class PlainPasses:
    """Runs every pass from the host, operation by operation, with compiled pieces where they are given."""

    def __init__(self, transformer: CausalWanTransformer, compiled: CompiledPieces | None = None) -> None:
        self._transformer = transformer
        self._compiled = compiled

    @property
    def prepared_ms(self) -> float:
        """See `PassRunner`; other streams may have added to it."""
        return 0.0 if self._compiled is None else self._compiled.compile_ms

    @property
    def pieces(self) -> Pieces | None:
        """See `PassRunner`."""
        return None if self._compiled is None else self._compiled.pieces

    def __call__(
        self, latents: Tensor, level: NoiseLevel, *, text: TextMemory, positions: TokenPositions, memory: StreamCache
    ) -> Tensor:
        """See `PassRunner`."""
        return self._transformer.at_level(
            latents, level, text=text, positions=positions, memory=memory, pieces=self.pieces
        )


def pass_runner(
    execution: str, transformer: CausalWanTransformer, *, compiled: CompiledPieces | None = None
) -> PassRunner:
    """For one stream.

    Args:
        execution: A name of `EXECUTIONS`, checked (`check_execution`).
        transformer: Shared.
        compiled: Where the way compiles: shared by the streams of the model; None makes new ones.
    """
    way = EXECUTIONS[execution]
    plain = PlainPasses(transformer, (compiled or CompiledPieces()) if way.compiles else None)
    return GraphedPasses(plain) if way.replays else plain
