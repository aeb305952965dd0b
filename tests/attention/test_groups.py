"""Any layer, read by every back end that is here: its heads dealt into groups that read different numbers of keys."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attending import COMPILED, DEVICE, assert_groups_are_read, backend_here, random_groups, random_q
from forcing_kv.attention import BACKENDS, Placement


@st.composite
def layers(draw):
    """Sizes of a layer whose heads are dealt into groups of different lengths, at any places."""
    num_heads = draw(st.integers(1, 4))
    owners = draw(st.lists(st.integers(0, 2), min_size=num_heads, max_size=num_heads))
    places = [[place for place in range(num_heads) if owners[place] == owner] for owner in sorted(set(owners))]
    return {
        "places": places,
        "lengths": [draw(st.integers(2, 70)) for _ in places],
        "batch": draw(st.integers(1, 2)),
        "queries": draw(st.integers(1, 40)),
        "head_dim": draw(st.sampled_from([16, 32, 48, 80])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        "one_by_one": draw(st.booleans()),
    }


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != COMPILED])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layer=layers(), seed=st.integers(0, 2**20))
def test_groups_may_lie_anywhere_and_read_any_number_of_keys(name, layer, seed):
    places, batch, head_dim, dtype = (layer[key] for key in ("places", "batch", "head_dim", "dtype"))
    if BACKENDS[name].lacks(Placement(device=DEVICE, dtype=torch.bfloat16, head_dim=32)):
        backend_here(name, torch.bfloat16, 32)
    if BACKENDS[name].lacks(Placement(device=DEVICE, dtype=dtype, head_dim=head_dim)):
        return  # it can do others
    groups = random_groups(places, layer["lengths"], batch=batch, head_dim=head_dim, dtype=dtype, seed=seed)
    q = random_q(batch, layer["queries"], sum(map(len, places)), head_dim, dtype=dtype, seed=seed)
    out = BACKENDS[name].attend_groups(q, iter(groups), one_by_one=layer["one_by_one"])
    assert_groups_are_read(out, q, groups)
    assert_groups_are_read(BACKENDS[name].attend_side_by_side(q, groups), q, groups)
