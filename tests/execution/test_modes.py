"""Ways to run a pass: what is refused, and with what words."""

import importlib.util
import shutil

import pytest
import torch

from forcing_kv import ConfigurationError, UnknownNameError
from forcing_kv.execution import EXECUTIONS, check_execution, check_together

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_names():
    assert list(EXECUTIONS) == ["eager", "compile", "cuda-graphs", "compile+cuda-graphs"]
    for device in (CPU, CUDA, torch.device("mps")):
        check_execution("eager", device=device)
    with pytest.raises(UnknownNameError, match=r"unknown execution 'fast'; choose one of: eager, compile,"):
        check_execution("fast", device=CPU)


def test_graphs_are_for_cuda():
    check_execution("cuda-graphs", device=CUDA)
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU, and this runs on cpu; use eager or compile"):
        check_execution("cuda-graphs", device=CPU)
    with pytest.raises(ConfigurationError, match=r"step_cache=0\.2 leaves blocks out of some; use one of the two"):
        check_together("cuda-graphs", step_cache=0.2)
    check_together("compile", step_cache=0.2)
    check_together("cuda-graphs", step_cache=None)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "a-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/it" if name == "a-compiler" else None)
    check_execution("compile", device=CPU)
    monkeypatch.delenv("CXX")
    with pytest.raises(
        ConfigurationError,
        match=r"needs a C\+\+ compiler, and there is no g\+\+: .* or name another one in CXX",
    ):
        check_execution("compile", device=CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for execution in ("compile", "compile+cuda-graphs"):
        with pytest.raises(ConfigurationError, match=r"needs Triton, .* or use eager"):
            check_execution(execution, device=CUDA)
