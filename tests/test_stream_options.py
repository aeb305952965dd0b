"""What a stream is computed with is checked as early as it can be."""

import pytest
import torch

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.stream_options import StreamOptions


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"positions": "near"}, UnknownNameError, "unknown positions 'near'; choose one of: absolute, relative"),
        ({"kv_dtype": "int3"}, UnknownNameError, "unknown kv_dtype 'int3'; choose one of: int8, fp8"),
        ({"kv_dtype": "int8", "positions": "relative"}, ConfigurationError, "does not go with relative positions"),
        ({"step_cache": -1.0}, ConfigurationError, "step cache threshold -1 must be at least 0"),
        ({"execution": "cuda-graphs", "step_cache": 0.2}, ConfigurationError, r"step_cache=0\.2 leaves blocks out"),
        ({"execution": "fast"}, UnknownNameError, "unknown execution 'fast'; choose one of: eager, compile"),
    ],
)
def test_what_no_device_can_do_is_refused_at_once(chosen, error, message):
    with pytest.raises(error, match=message):
        StreamOptions(**chosen)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"attention": "sdpb"}, UnknownNameError, "unknown attention back end 'sdpb'; choose one of: auto, sdpa"),
        ({"attention": "cudnn"}, ConfigurationError, "'cudnn' cannot be had on cpu"),
        ({"execution": "cuda-graphs"}, ConfigurationError, "needs a CUDA GPU"),
    ],
)
def test_what_a_device_cannot_do_is_refused_there(chosen, error, message):
    with pytest.raises(error, match=message):
        StreamOptions(**chosen).backend_on(torch.device("cpu"), dtype=torch.float32, head_dim=128)


def test_the_back_end_has_a_name_where_none_was_asked_for():
    backend = StreamOptions().backend_on(torch.device("cpu"), dtype=torch.float32, head_dim=128)
    assert backend.name == "sdpa"


def test_only_some_change_what_is_made():
    fast = StreamOptions(attention="sdpa", execution="compile")
    assert fast.changing_results() == StreamOptions().changing_results()
    assert StreamOptions(step_cache=0.2).changing_results() != StreamOptions().changing_results()
