"""The progress bar of commands whose work counts done and all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, where somebody looks; it is gone when the block ends.

    Yields:
        To be called with the number done, and of all.
    """
    with tqdm(desc=name, unit=unit, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
