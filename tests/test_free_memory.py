"""What a device has to give, containers included."""

import torch

from forcing_kv.free_memory import cgroup_free_bytes, free_bytes
from forcing_kv.memory import (
    check_memory,
)
from plans import planned

CPU = torch.device("cpu")


def test_free_bytes():
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free < 10**14
    assert free_bytes(torch.device("meta")) is None
    check_memory(planned(device=torch.device("meta")))  # cannot be asked: nothing is refused


def _cgroup(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_containers(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/service/worker\n")
    root = tmp_path / "v2"
    assert cgroup_free_bytes(root, own) is None
    assert cgroup_free_bytes(root, tmp_path / "missing") is None
    used = {"memory__current": 600, "memory__stat": "anon 300\ninactive_file 200\nactive_file 50"}
    _cgroup(root / "service" / "worker", memory__max="max", **used)
    assert cgroup_free_bytes(root, own) is None
    _cgroup(root / "service", memory__max=1000, **used)
    assert cgroup_free_bytes(root, own) == 1000 - 600 + 250
    _cgroup(root / "service" / "worker", memory__max=500, **used)  # the tightest counts
    assert cgroup_free_bytes(root, own) == 500 - 600 + 250

    own.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/0123\n")  # version 1, seen from inside the container
    statistics = "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 10"
    _cgroup(
        tmp_path / "v1" / "memory", memory__limit_in_bytes=2000, memory__usage_in_bytes=1900, memory__stat=statistics
    )
    assert cgroup_free_bytes(tmp_path / "v1", own) == 2000 - 1900 + 110
