"""Our kernel through Triton's compiler, for GPUs that need not be here: what the interpreter takes, a GPU may not."""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json, re, sys
from dataclasses import asdict
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from forcing_kv.attention.triton_backend import FLOAT32_TILES, TILES
from forcing_kv.attention.triton_kernel import attend_kernel

dtype, head_dim, capability, groups = sys.argv[1], *map(int, sys.argv[2:])
tiles = FLOAT32_TILES if dtype == "fp32" else TILES[head_dim]
constants = {
    "NUM_GROUPS": groups, "HEAD_DIM": head_dim, "DIM_BLOCK": head_dim, "QUERY_BLOCK": tiles.queries,
    "KEY_BLOCK": tiles.keys, "PRECISION": "ieee" if dtype == "fp32" else "tf32", "WIDEN": False,
}
tensors, integers = ("*" + dtype,) * groups, ("i32",) * groups
kinds = {
    "q": "*" + dtype, "out": "*" + dtype, "keys": tensors, "values": tensors, "key_strides": 3 * integers,
    "value_strides": 3 * integers, "num_keys": integers, "first_places": integers, "first_rows": integers,
    "scale": "fp32", **dict.fromkeys(constants, "constexpr"),
}
names = attend_kernel.arg_names
signature = {name: kinds.get(name, "i32") for name in names}
# What the launcher tells of addresses and strides that are multiples of 16.
paths = [(names.index(name),) for name in names if name in ("q", "out") or name.endswith("_stride")]
paths += [(names.index(n), i) for n in ("keys", "values", "key_strides", "value_strides") for i in range(len(kinds[n]))]
source = ASTSource(
    fn=attend_kernel,
    signature=signature,
    constexprs={(names.index(name),): value for name, value in constants.items()},
    attrs={path: [["tt.divisibility", 16]] for path in paths},
)
options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
kernel = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
ptx = kernel.asm["ptx"]
copies = set(re.findall(r"cp[.]async[.]c[ag][.]shared[.]global [^;]*, 0x(\\w+), ", ptx))
print(json.dumps({
    "shared_bytes": kernel.metadata.shared, "wgmma": "wgmma.mma_async" in ptx, "mma": "mma.sync" in ptx,
    "copies": sorted(copies), "stores": sorted(set(re.findall(r"st[.]global[.:\\w]*", ptx))), "local": ".local" in ptx,
}))
"""
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""That a program may have."""


def compiled(dtype, head_dim, capability, groups, cache):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    arguments = [sys.executable, "-c", COMPILE, dtype, *map(str, (head_dim, capability, groups))]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "groups"),
    [("bf16", 128, 90, 2), ("bf16", 128, 80, 1), ("fp16", 256, 90, 3), ("fp32", 128, 90, 2)],
)
def test_it_compiles_with_tensor_cores_and_wide_copies(dtype, head_dim, capability, groups, tmp_path):
    pytest.importorskip("triton")
    kernel = compiled(dtype, head_dim, capability, groups, tmp_path)
    assert kernel["shared_bytes"] <= SHARED_BYTES[capability]
    if dtype != "fp32":
        assert kernel["wgmma" if capability == 90 else "mma"]
    assert kernel["copies"] == ["10"]  # 16 bytes, the widest: addresses out of a choice of groups are known to be even
    assert kernel["stores"] == ["st.global.v4.b32"]
    assert not kernel["local"]
