"""A pass in the steady state leaves the host out: nothing is read back, and the cache is not copied or made anew."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from forcing_kv import FrameGeometry, HeadMap, StreamCache, parse_policy
from forcing_kv.execution import pass_runner
from forcing_kv.policies import POLICIES
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

CONFIG = TransformerConfig(dim=36, ffn_dim=40, num_layers=3, num_heads=3, text_dim=8, text_len=4, freq_dim=8)
GEOMETRY = FrameGeometry(num_layers=3, num_heads=3, head_dim=12, frame_rows=6, frame_cols=7)
HEAD_MAP = HeadMap(model="test", roles=("sds", "dds", "ssd"))
READ_BACKS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


class Watch(TorchDispatchMode):
    """Notes what a pass reads back, makes, and makes out of the cache.

    Attributes:
        read_back: Operations whose result the host must wait for.
        largest_bytes: Of the largest tensor made.
        from_cache: Operations that copy out of the cache; attention only reads it.
    """

    def __init__(self, cache):
        super().__init__()
        self.cache_storages = {
            plane.untyped_storage().data_ptr() for buffer in cache._buffers for plane in buffer.store.planes
        }
        self.read_back, self.from_cache, self.largest_bytes = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage.data_ptr() for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        if name in READ_BACKS:
            self.read_back.append(name)
        made = [storage for storage in storages(result) if storage.data_ptr() not in given]
        self.largest_bytes = max([self.largest_bytes, *(storage.nbytes() for storage in made)])
        if made and given & self.cache_storages and "attention" not in name:
            self.from_cache.append(name)
        return result


def storages(tree):
    return [leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


class SteadyPass:
    """A stream in its steady state, and a pass over its next chunk."""

    @torch.no_grad()
    def __init__(self, policy, *, kv_dtype=None, device="cpu", dtype=torch.float32, execution="eager"):
        torch.manual_seed(0)
        self.model = CausalWanTransformer(CONFIG).to(device, dtype).requires_grad_(False)
        self.model.join_projections()
        self.cache = StreamCache(
            GEOMETRY, parse_policy(policy, head_map=HEAD_MAP), kv_dtype=kv_dtype, device=device, dtype=dtype
        )
        self.run = pass_runner(execution, self.model)
        self.level = self.model.noise_level(750.0)
        self.text = self.model.encode_text(torch.randn(1, 4, 8).to(device))
        self.latents = torch.randn(1, 3, 16, 12, 14).to(device)
        for _ in range(6):
            self.begin_chunk()
            self()
            self.cache.commit()
        self.begin_chunk()

    def begin_chunk(self):
        start = self.cache.first_position
        self.positions = self.model.token_positions(range(start, start + 3), 6, 7)

    @torch.no_grad()
    def __call__(self):
        return self.run(self.latents, self.level, text=self.text, positions=self.positions, memory=self.cache)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_the_host_reads_nothing_and_the_cache_is_left_where_it_is(policy, kv_dtype):
    steady = SteadyPass(policy, kv_dtype=kv_dtype)
    with Watch(steady.cache) as watch:
        steady()
    assert watch.read_back == []
    assert watch.from_cache == []  # a quantised one is expanded in a workspace that is there already
    if kv_dtype is None:
        # The most is q, k and v as they came, in a model as small as this.
        assert watch.largest_bytes < steady.cache.nbytes / 2


def test_the_watch_sees_what_it_is_there_to_see():
    cache = SteadyPass("window").cache
    keys = cache._layers[0][0].store.planes[0]
    with Watch(cache) as watch:
        keys.amax().item()
        torch.cat((keys[0], keys[1]))
    assert watch.read_back == ["aten::_local_scalar_dense"]
    assert watch.from_cache == ["aten::amax", "aten::cat"]
    assert watch.largest_bytes == keys.nbytes


@needs_cuda
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("execution", ["eager", "cuda-graphs"])
def test_a_gpu_is_not_waited_for_and_its_memory_does_not_grow(policy, execution):
    steady = SteadyPass(policy, device="cuda", dtype=torch.bfloat16, execution=execution)
    for _ in range(3):
        steady()  # a graph is captured
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            steady()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.memory_stats()
    for statistic in ("reserved_bytes.all.current", "allocated_bytes.all.current", "num_alloc_retries"):
        assert after[statistic] == before[statistic], statistic
    assert after["segment.all.allocated"] == before["segment.all.allocated"]  # nothing was asked of the driver
