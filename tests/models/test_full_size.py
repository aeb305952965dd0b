"""The true shapes of Wan 1.3B load within a bound on host memory, and load right."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from forcing_kv.models.weights import shapes_of
from forcing_kv.wan import WAN_1_3B

NUM_WEIGHTS = 1_418_996_800
LOAD = """
import json, sys, torch
from forcing_kv.bench.host_memory import AnonymousMemory
from forcing_kv.models import find_model

source = find_model("self-forcing-1.3b", weights=sys.argv[1])
with AnonymousMemory() as memory:
    transformer = source.load_transformer(dtype=torch.bfloat16, device=torch.device("cpu"))
sums = {name: tensor[..., :64].double().sum().item() for name, tensor in transformer.state_dict().items()}
print(json.dumps({"taken": memory.taken_bytes, "sums": sums, "dtype": str(transformer.dtype)}))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="anonymous memory is told apart on Linux only")
def test_the_full_model_loads_within_its_own_size(tmp_path):
    weights, expected = {}, {}
    random = torch.randn(20_000_000, generator=torch.Generator().manual_seed(0)).half()
    for number, (name, shape) in enumerate(shapes_of(WAN_1_3B).items()):
        size = math.prod(shape)
        weights[f"model.{name}"] = random[number : number + size].clone().view(shape)
        expected[name] = weights[f"model.{name}"][..., :64].bfloat16().double().sum().item()
    assert sum(tensor.numel() for tensor in weights.values()) == NUM_WEIGHTS
    torch.save({"generator_ema": weights}, tmp_path / "full.pt")
    del weights
    try:
        result = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path / "full.pt")], check=True, stdout=subprocess.PIPE, text=True
        )
    finally:
        (tmp_path / "full.pt").unlink()
    loaded = json.loads(result.stdout)
    assert loaded["dtype"] == "torch.bfloat16"
    assert loaded["sums"] == expected
    assert loaded["taken"] < 1.3 * NUM_WEIGHTS * torch.bfloat16.itemsize
