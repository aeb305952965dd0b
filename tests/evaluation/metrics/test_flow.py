import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.evaluation.metrics import ChunkPair, Tools, open_flow
from forcing_kv.evaluation.metrics.flow import FLOW, FLOWS, RaftFlow

CPU = torch.device("cpu")


def moving(pixels_per_frame, *, num_frames=4, height=70, width=110):
    """A window that slides over a smooth random picture, uint8 [frames, H, W, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 20, 60, generator=generator)
    picture = F.interpolate(coarse, size=(height, 4 * width), mode="bicubic")[0, 0].clamp(0, 1)
    starts = [round(number * pixels_per_frame) for number in range(num_frames)]
    frames = torch.stack([picture[:, start : start + width] for start in starts])
    return (255 * frames).to(torch.uint8)[..., None].expand(-1, -1, -1, 3).numpy().copy()


@pytest.mark.parametrize("pixels_per_frame", [1, 3])
def test_a_translation_has_its_own_length(pixels_per_frame):
    magnitudes = open_flow("dis", CPU).magnitudes(moving(pixels_per_frame))
    assert magnitudes == pytest.approx([pixels_per_frame] * 3, rel=0.08)


def test_still_pictures_do_not_move():
    assert open_flow("dis", CPU).magnitudes(moving(0)) == pytest.approx([0, 0, 0], abs=1e-3)


def test_a_single_frame_has_no_pair():
    for name in FLOWS.keys() - {"raft"}:
        assert open_flow(name, CPU).magnitudes(moving(1, num_frames=1)).shape == (0,)
    assert RaftFlow(CPU, network=ConstantFlow()).magnitudes(moving(1, num_frames=1)).shape == (0,)


def test_pairs_reach_over_the_boundary_of_a_chunk():
    frames = moving(2, num_frames=6)
    meter = FLOW.open(Tools())
    latents = np.zeros((1, 1, 1, 1), dtype=np.float32)
    first = meter(ChunkPair(frames=frames[:3], previous=None, latents=latents))
    second = meter(ChunkPair(frames=frames[3:], previous=frames[2], latents=latents))
    whole = open_flow("dis", CPU).magnitudes(frames)
    assert np.concatenate([first, second]) == pytest.approx(whole)
    assert (len(first), len(second)) == (2, 3)


class ConstantFlow(torch.nn.Module):
    """In place of RAFT: four pixels to the right, wherever it looks; remembers what it was shown."""

    def forward(self, first, second):
        self.shape = tuple(first.shape)
        flow = torch.zeros(len(first), 2, *first.shape[2:])
        flow[:, 0] = 4
        return [torch.zeros_like(flow), flow]


def test_raft_is_shown_large_enough_pictures_and_its_flow_is_scaled_back():
    network = ConstantFlow()
    flow = RaftFlow(CPU, network=network)
    assert flow.magnitudes(moving(1, height=64, width=96)) == pytest.approx([2, 2, 2])
    assert network.shape == (3, 3, 128, 192)
    assert flow.magnitudes(moving(1, height=130, width=161)) == pytest.approx([4 * 161 / 168] * 3)
    assert network.shape == (3, 3, 136, 168)


def test_many_frames_go_through_raft_in_parts():
    assert RaftFlow(CPU, network=ConstantFlow()).magnitudes(moving(1, num_frames=19)).shape == (18,)


def test_unknown_and_missing_kinds(monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown optical flow 'nonsense'; choose one of: dis, raft"):
        open_flow("nonsense", CPU)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigurationError, match=r"optical flow needs OpenCV.*'forcing-kv\[evaluation\]'"):
        open_flow("dis", CPU)
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    with pytest.raises(ConfigurationError, match=r"RAFT needs torchvision.*'forcing-kv\[lpips\]'"):
        open_flow("raft", CPU)


def test_video_files_are_read_beside_opencv(tmp_path):
    """Both bring an FFmpeg of their own."""
    from forcing_kv.video import read_video
    from forcing_kv.video.h264 import encode_mp4

    open_flow("dis", CPU).magnitudes(moving(1))
    path = tmp_path / "video.mp4"
    path.write_bytes(encode_mp4(torch.from_numpy(moving(1)), fps=16))
    assert read_video(path).shape == (4, 70, 110, 3)
