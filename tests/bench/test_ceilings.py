"""The ceilings of the machine, and the bound they give."""

import pytest
import torch

from forcing_kv.bench import Ceilings, Work, measure_ceilings


@pytest.mark.parametrize(
    ("work", "least_ms"),
    [
        (Work(flops=50, bytes=1), 500),  # computing takes longer
        (Work(flops=50, bytes=20), 2000),  # moving does
        (Work(flops=0, bytes=0), 0),
    ],
)
def test_the_slower_of_both_is_the_bound(work, least_ms):
    assert Ceilings(matmul_flops_per_second=100, copy_bytes_per_second=10).least_ms(work) == least_ms


def test_a_machine_has_ceilings():
    """A product and a copy measured here do not exceed them by more than the noise of a clock."""
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    assert 1e8 < ceilings.matmul_flops_per_second < 1e15
    assert 1e7 < ceilings.copy_bytes_per_second < 1e13
