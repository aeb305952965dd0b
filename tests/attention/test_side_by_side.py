"""Works on streams side by side: in their order on the caller's and its lanes, and nothing lost or read too early.

On a CPU torch's streams do nothing, so the order of calls is looked at; on a GPU the results are.
"""

import threading
import weakref

import pytest
import torch

from attending import DEVICE, assert_groups_are_read, random_groups, random_q
from forcing_kv.attention import BACKENDS
from forcing_kv.attention.side_by_side import run_side_by_side


class RecordingStreams:
    """Stands for a device's module; says what was done, in order."""

    def __init__(self):
        self.events = []
        self.watched = {}
        self.now = [Lane("here", self)]
        self.made = 0

    def current_stream(self, device):
        return self.now[-1]

    def Stream(self, device):  # noqa: N802 (torch's name)
        self.made += 1
        return Lane(f"lane {self.made}", self)

    def stream(self, lane):
        return Entered(self, lane)

    def when(self, event, look):
        self.watched[event] = look


class Lane:
    def __init__(self, name, owner):
        self.name, self.owner = name, owner

    def wait_stream(self, other):
        event = f"{self.name} waits for {other.name}"
        self.owner.events.append(event)
        self.owner.watched.get(event, lambda: None)()


class Entered:
    def __init__(self, owner, lane):
        self.owner, self.lane = owner, lane

    def __enter__(self):
        self.owner.now.append(self.lane)

    def __exit__(self, *error):
        self.owner.now.pop()


@pytest.fixture
def streams(monkeypatch):
    recording = RecordingStreams()
    monkeypatch.setattr(torch, "get_device_module", lambda device: recording)
    return recording


def work(streams, number):
    def done():
        streams.events.append(f"{number} on {streams.now[-1].name}")
        return torch.full((1,), float(number))

    return done


def test_lanes_wait_for_the_caller_and_the_caller_for_them(streams):
    results = run_side_by_side([work(streams, number) for number in range(3)], device=DEVICE)
    assert [float(result) for result in results] == [0, 1, 2]
    assert streams.events == [
        "lane 1 waits for here",
        "lane 2 waits for here",
        "0 on here",
        "1 on lane 1",
        "2 on lane 2",
        "here waits for lane 1",
        "here waits for lane 2",
    ]


def test_a_stream_keeps_its_lanes_and_another_gets_others(streams):
    for _ in range(3):
        run_side_by_side([work(streams, 0), work(streams, 1)], device=DEVICE)
    assert streams.made == 1
    with streams.stream(Lane("there", streams)):
        run_side_by_side([work(streams, 0), work(streams, 1)], device=DEVICE)
    assert streams.made == 2
    thread = threading.Thread(
        target=run_side_by_side, args=([work(streams, 0), work(streams, 1)],), kwargs={"device": DEVICE}
    )
    thread.start()
    thread.join()
    assert streams.made == 3


def test_a_result_is_held_until_its_lane_has_waited_for_its_reader(streams):
    """Its memory would be the lane's next work's otherwise, while the caller's stream still reads it."""
    alive = []
    results = run_side_by_side([work(streams, 0), work(streams, 1)], device=DEVICE)
    result = weakref.ref(results[1])
    del results
    streams.when("lane 1 waits for here", lambda: alive.append(result() is not None))
    run_side_by_side([lambda: alive.append(result() is not None), work(streams, 1)], device=DEVICE)
    assert alive == [True, False]


def test_one_work_needs_no_lane(streams):
    (result,) = run_side_by_side([work(streams, 7)], device=DEVICE)
    assert float(result) == 7
    assert streams.events == ["7 on here"]


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: on a CPU streams do nothing")
def test_on_a_gpu_layer_after_layer_reads_the_same_as_one_by_one():
    """Lengths that keep a lane busy after the caller's stream has gone on, many times, with no synchronisation."""
    groups = random_groups([range(8), range(8, 12)], [3000, 2500], batch=1, head_dim=64, dtype=torch.bfloat16)
    q = random_q(1, 999, 12, 64, dtype=torch.bfloat16)
    backend = BACKENDS["sdpa"]
    outputs = [backend.attend_groups(q, groups) + 0 for _ in range(50)]
    expected = backend.attend_groups(q, groups, one_by_one=True)
    for out in outputs:
        assert torch.equal(out, expected)
    assert_groups_are_read(outputs[-1], q, groups)
