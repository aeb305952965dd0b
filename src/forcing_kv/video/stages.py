"""Work in stages, one after the other for each item, side by side for different items.

While a stage works on one item, the stage before it may work on the next: each has a thread of its own. A stage holds
one item at most, from its arrival until the stage after it has taken the result, so that however slow a stage is, no
more items are alive than there are stages. Without threads the same object does all stages of an item at once.
"""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

Stage = Callable[[Any], Any]
"""Takes an item, or what the stage before made of it; what the last stage returns is dropped."""

_NOTHING = object()


class StageLine:
    """A line of stages that items are put into; use it in a `with` block, whose end waits for all that was put.

    An error of a stage is raised in the caller, with its own traceback, by the next call or at the end of the block.
    Items that are past the stage that failed are finished; those before it, and the one it failed on, are dropped.
    """

    def __init__(self, stages: Sequence[Stage], *, threaded: bool = True) -> None:
        """Sets the line up; its threads start with the block.

        Args:
            stages: In their order.
            threaded: Whether each has a thread; without, `put` does everything itself.
        """
        self._stages = tuple(stages)
        self._held: list[Any] = [_NOTHING] * len(self._stages)
        self._changed = threading.Condition()
        self._num_broken = 0  # stages that take nothing more, counted from the first
        self._is_closing = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name=f"stage-{index}", daemon=True)
            for index in (range(len(self._stages)) if threaded else ())
        ]

    def put(self, item: Any) -> None:
        """Hands an item to the first stage, as soon as that holds none.

        Raises:
            BaseException: That of a stage.
        """
        if not self._threads:
            for stage in self._stages:
                item = stage(item)
            return
        with self._changed:
            assert not self._is_closing, "the block has ended"
            self._changed.wait_for(lambda: self._held[0] is _NOTHING or self._error is not None)
            self._raise_error()
            self._held[0] = item
            self._changed.notify_all()

    def wait(self, num_stages: int | None = None) -> None:
        """Waits until the first so many stages (all if None) hold nothing.

        Raises:
            BaseException: That of a stage.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_empty(num_stages) or self._error is not None)
            self._raise_error()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._end()
        except BaseException:  # a second Ctrl-C: what is being worked on ends, and nothing else is begun
            with self._changed:
                self._break(len(self._stages))
            self._end()
            raise
        if self._error is not error:  # told already if it is the one that ended the block
            self._raise_error()

    def _end(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, index: int) -> None:
        while self._wait_for_item(index):
            try:
                result = self._stages[index](self._held[index])
            except BaseException as error:
                with self._changed:
                    self._note(error)
                    self._break(index + 1)
                return
            self._hand_on(index, result)
            del result  # or it would live until the next one is there

    def _wait_for_item(self, index: int) -> bool:
        """Whether there is one; False at the end."""

        def is_over() -> bool:
            return index < self._num_broken or (self._is_closing and self._is_empty(index))

        with self._changed:
            self._changed.wait_for(lambda: self._held[index] is not _NOTHING or is_over())
            return self._held[index] is not _NOTHING and index >= self._num_broken

    def _hand_on(self, index: int, result: Any) -> None:
        with self._changed:
            following = index + 1
            if following < len(self._stages):
                self._changed.wait_for(lambda: self._held[following] is _NOTHING or following < self._num_broken)
                if following >= self._num_broken:
                    self._held[following] = result
            self._held[index] = _NOTHING
            self._changed.notify_all()

    def _is_empty(self, num_stages: int | None) -> bool:
        return all(held is _NOTHING for held in self._held[:num_stages])

    def _break(self, num_stages: int) -> None:
        self._num_broken = max(self._num_broken, num_stages)
        self._held[:num_stages] = [_NOTHING] * num_stages
        self._changed.notify_all()

    def _note(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        else:  # a later stage failed on an earlier item: the caller is told of the first error, and of this one with it
            self._error.add_note(f"Meanwhile another stage failed too: {error!r}")

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
