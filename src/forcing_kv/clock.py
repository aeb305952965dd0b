"""How long something took."""

import time


def milliseconds_since(started: float) -> float:
    """Since a reading of `time.perf_counter()`."""
    return 1e3 * (time.perf_counter() - started)
