"""The network is another one here, because its weights are not everywhere; what is around it is the same."""

import sys
import types

import numpy as np
import pytest
import torch

from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation.libraries import downloaded_weights, library
from forcing_kv.evaluation.metrics import METRICS, Tools
from forcing_kv.evaluation.metrics.perceptual import DISTANCE, perceptual_distances


class Difference(torch.nn.Module):
    """As `lpips.LPIPS` is called: pictures in -1 to 1 -> [pictures, 1, 1, 1]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, first, second):
        self.shape = tuple(first.shape)
        return self.weight * (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)


def test_pictures_reach_the_network_in_its_range_and_large_enough():
    network = Difference()
    black, white = np.zeros((2, 48, 96, 3), dtype=np.uint8), np.full((2, 48, 96, 3), 255, dtype=np.uint8)
    assert perceptual_distances(network, black, white) == pytest.approx([2, 2])
    assert network.shape == (2, 3, 64, 128)
    assert perceptual_distances(network, black, black).tolist() == [0, 0]
    large = np.zeros((1, 70, 96, 3), dtype=np.uint8)
    perceptual_distances(network, large, large)
    assert network.shape == (1, 3, 70, 96)


def test_without_its_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigurationError, match=r"LPIPS needs lpips.*pip install 'forcing-kv\[lpips\]'"):
        DISTANCE.open(Tools())
    assert METRICS["lpips"].is_optional


def test_without_weights_it_says_how_they_are_had_and_does_not_wait_for_a_network(monkeypatch, tmp_path):
    models = types.ModuleType("torchvision.models")
    models.AlexNet_Weights = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url="https://nowhere/alexnet-1.pth"))
    monkeypatch.setitem(sys.modules, "lpips", types.ModuleType("lpips"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r'alexnet-1\.pth\); where there is a network: python -c "import torchv'
    ):
        DISTANCE.open(Tools())


def test_weights_that_are_there_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "net.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert downloaded_weights("https://nowhere/net.pth", what="a test", command="pass") == path


def test_with_the_real_package():
    try:
        lpips = library("lpips", what="the test")
    except ConfigurationError as error:
        pytest.skip(str(error))
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    assert perceptual_distances(network, frames, frames) == pytest.approx([0, 0], abs=1e-6)
    assert (perceptual_distances(network, frames, 255 - frames) > 0).all()
