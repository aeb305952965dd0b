"""A line of stages: order, bounds, errors, interrupts and threads."""

import threading
import time
import traceback
from functools import partial

import pytest

from forcing_kv.video.stages import StageLine


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_items_go_through_all_stages_in_order(threaded, num_stages):
    out = []
    stages = [lambda item: item + "a"] * (num_stages - 1) + [out.append]
    with StageLine(stages, threaded=threaded) as line:
        for item in "12345":
            line.put(item)
    assert out == [item + "a" * (num_stages - 1) for item in "12345"]


def test_stages_work_side_by_side():
    """The second stage can only end once the first is at the next item, and the other way round."""
    meeting = threading.Barrier(2, timeout=30)
    out = []

    def first(item):
        if item:
            meeting.wait()
        return item

    def second(item):
        if item < 3:
            meeting.wait()
        out.append(item)

    with StageLine([first, second]) as line:
        for item in range(4):
            line.put(item)
    assert out == [0, 1, 2, 3]


def test_no_more_items_are_alive_than_stages():
    alive, most, release = [0], [0], threading.Semaphore(0)
    lock = threading.Lock()

    class Item:
        def __init__(self):
            with lock:
                alive[0] += 1
                most[0] = max(most[0], alive[0])

        def __del__(self):
            with lock:
                alive[0] -= 1

    def slow(item):
        release.acquire(timeout=30)

    with StageLine([lambda item: Item(), lambda item: item, slow]) as line:
        for _ in range(3):
            line.put(None)
        with pytest.raises(TimeoutError):
            _within(0.05, line.put, None)  # the first stage holds its result until the second can take it
        assert most[0] == 3
        for _ in range(4):
            release.release()
        _LATE[0].join(30)
    assert most[0] == 3
    assert alive[0] == 0


def _within(seconds, function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _LATE.append(thread)
        raise TimeoutError


_LATE: list[threading.Thread] = []


@pytest.fixture(autouse=True)
def late_threads_end(no_thread_is_left):
    yield
    while _LATE:
        _LATE.pop().join(30)


def test_waiting_for_the_first_stages():
    seen, release = [], threading.Event()

    def slow(item):
        release.wait(30)
        seen.append(item)

    with StageLine([lambda item: item, slow]) as line:
        line.put(1)
        line.wait(1)
        assert seen == []
        release.set()
        line.wait()
        assert seen == [1]


def run(stages, items, *, then=lambda: None):
    with StageLine(stages) as line:
        for item in items:
            line.put(item)
        then()


def interrupt(*, after=lambda: None):
    after()
    raise KeyboardInterrupt


def failing(item):
    if item == 2:
        raise ValueError("number 2")
    return item


def test_an_error_comes_to_the_caller_with_its_traceback():
    out = []
    with pytest.raises(ValueError, match="number 2") as caught:
        run([failing, out.append], range(100))
    assert out == [0, 1]  # what was past the stage is finished
    assert "in failing" in "".join(traceback.format_exception(caught.value))


def test_an_error_of_the_last_item_comes_at_the_end_of_the_block():
    with pytest.raises(ValueError, match="number 2"):
        run([failing], [2])


def test_an_error_of_a_later_stage_drops_what_comes_behind():
    begun, out = [], []

    def first(item):
        begun.append(item)
        return item

    def last(item):
        out.append(failing(item))

    with pytest.raises(ValueError, match="number 2"):
        run([first, last], range(100))
    assert out == [0, 1]
    assert len(begun) <= 6


def test_two_errors_are_both_told():
    ready = threading.Event()

    def first(item):
        if item:
            raise ValueError("first stage")
        return item

    def second(item):
        ready.wait(30)
        raise OSError("second stage")

    def later():
        time.sleep(0.05)
        ready.set()

    with pytest.raises(ValueError, match="first stage") as caught:
        run([first, second], [0, 1], then=later)
    assert "OSError('second stage')" in "".join(caught.value.__notes__)


def test_what_was_put_is_finished_when_the_block_is_left_by_an_error():
    out = []
    with pytest.raises(KeyboardInterrupt):
        run([lambda item: item, out.append], range(3), then=interrupt)
    assert out == [0, 1, 2]


def test_an_error_while_an_interrupted_block_is_left_is_not_lost():
    release = threading.Event()

    def full(item):
        release.wait(30)
        raise OSError("no space left")

    timer = threading.Timer(0.05, release.set)
    with pytest.raises(OSError, match="no space left") as caught:
        run([full], [1], then=lambda: interrupt(after=timer.start))
    timer.join()
    assert isinstance(caught.value.__context__, KeyboardInterrupt)


def test_a_second_interrupt_ends_what_is_begun_and_drops_the_rest(monkeypatch):
    out, release = [], threading.Event()

    def slow(item):
        release.wait(30)
        return item

    timer = threading.Timer(0.05, release.set)
    original = threading.Thread.join
    calls = []

    def join(thread, timeout=None):
        calls.append(thread)
        if len(calls) == 1:
            timer.start()
            raise KeyboardInterrupt("second")
        original(thread, timeout)

    with monkeypatch.context() as patch:
        replace_join = partial(patch.setattr, threading.Thread, "join", join)
        with pytest.raises(KeyboardInterrupt, match="second"):
            run([slow, out.append], [1], then=lambda: interrupt(after=replace_join))
    timer.join()
    assert out == []
