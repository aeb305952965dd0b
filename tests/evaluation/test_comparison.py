"""What is refused before any model is loaded, and what is chosen."""

import sys
from pathlib import Path

import pytest
import torch

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.evaluation import Comparison, choose_metrics, plan_comparison
from forcing_kv.evaluation.comparison import Contestant, folder_name, num_together
from forcing_kv.models import ModelPreset, find_model
from forcing_kv.policies import parse_policy
from forcing_kv.stream_options import StreamOptions

CPU = torch.device("cpu")
TINY = ModelPreset(name="tiny", default_resolution=(160, 96))


def asked(*policies, num_frames=40, **settings):
    return Comparison(policies=policies or ("full", "window"), num_frames=num_frames, **settings)


def specs(comparison):
    return [contestant.name for contestant in comparison.contestants(None)]


def test_the_reference_comes_first_whether_it_is_named_or_not():
    assert specs(asked("window", "full")) == ["full", "window"]
    assert specs(asked("window")) == ["full", "window"]
    assert specs(asked("window", "full", reference="window")) == ["window", "full"]
    assert specs(asked("window:window_frames=6,sink_frames=0")) == ["full", "window:window_frames=6,sink_frames=0"]


def test_policies_that_cannot_be_compared():
    with pytest.raises(ConfigurationError, match="'window:sink_frames=3' is there twice, the other time as 'window'"):
        specs(asked("window", "window:sink_frames=3"))
    with pytest.raises(ConfigurationError, match="name the reference full only: name another one too"):
        specs(asked("full"))
    with pytest.raises(UnknownNameError, match="unknown policy 'nonsense'"):
        specs(asked("nonsense"))
    with pytest.raises(UnknownNameError, match="unknown policy 'nonsense'"):
        specs(asked("window", reference="nonsense"))
    with pytest.raises(ConfigurationError, match="needs a head map"):
        specs(asked("forcing-kv"))


def test_settings_out_of_range():
    with pytest.raises(UnknownNameError, match="unknown metric 'beauty'"):
        asked(metrics="beauty")
    with pytest.raises(ConfigurationError, match="videos of 0 frames"):
        asked(num_frames=0)
    with pytest.raises(ConfigurationError, match="seed -1 is out of range"):
        asked(seed=-1)
    with pytest.raises(ConfigurationError, match="0 prompts cannot be made together"):
        asked(num_together=0)


def test_small_pictures_are_made_together():
    assert num_together(asked(), chunk_tokens=180) == 8
    assert num_together(asked(), chunk_tokens=500) == 3
    assert num_together(asked(), chunk_tokens=4680) == 1
    assert num_together(asked(num_together=5), chunk_tokens=4680) == 5


def test_folders_tell_settings_apart_in_any_order_of_policies():
    def folder(spec, **changes):
        return folder_name(Contestant(policy=parse_policy(spec), options=StreamOptions(), **changes))

    names = [folder(spec) for spec in ("full", "window", "window:sink_frames=2")]
    assert names[:2] == ["full", "window"]
    assert names[2].startswith("window-")
    assert len(set(names)) == 3
    assert folder("window:window_frames=9") != names[2]
    assert folder("full", is_plain=True) == "full-plain"


def test_all_leaves_out_what_cannot_be_had_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    chosen = choose_metrics(asked(), TINY, device=CPU)
    assert list(chosen.left_out) == ["lpips"]
    assert "pip install 'forcing-kv[lpips]'" in chosen.left_out["lpips"]
    assert [metric.name for metric in chosen.metrics][:3] == ["world", "psnr", "ssim"]
    assert chosen.meters.keys() >= {"squared-error", "ssim", "flow", "cosine", "contrast"}
    assert chosen.flow.startswith("DIS (OpenCV ")
    other = choose_metrics(asked(), ModelPreset(name="other"), device=CPU)
    assert other.left_out["world"] == "nothing here judges what other shows: a world score is there for tiny"
    assert other.world is None
    short = choose_metrics(asked(num_frames=9), TINY, device=CPU)
    assert short.left_out["world"] == "9 frames are too short to be judged: 16 are needed"


def test_what_is_asked_for_by_name_must_be_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigurationError, match="LPIPS needs lpips"):
        choose_metrics(asked(metrics="psnr,lpips"), TINY, device=CPU)
    with pytest.raises(ConfigurationError, match="nothing here judges what other shows"):
        choose_metrics(asked(metrics="world"), ModelPreset(name="other"), device=CPU)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'forcing-kv\[evaluation\]'"):
        choose_metrics(asked(), TINY, device=CPU)
    chosen = choose_metrics(asked(metrics="psnr,drift"), TINY, device=CPU)  # which do without it
    assert chosen.flow is None
    assert set(chosen.meters) == {"squared-error", "red", "green", "blue", "contrast", "sharpness"}
    with pytest.raises(UnknownNameError, match="unknown optical flow 'eyes'"):
        choose_metrics(asked(metrics="motion", flow="eyes"), TINY, device=CPU)


def test_every_policy_is_planned(tiny_model_folder: Path):
    source = find_model(tiny_model_folder)
    settings = {"head_map": source.head_map, "device": CPU, "dtype": torch.float32}
    planned = plan_comparison(asked("window", "forcing-kv"), source, num_prompts=20, **settings)
    assert [stream.policy.name for stream in planned] == ["full", "window", "forcing-kv"]
    assert {stream.batch_size for stream in planned} == {8}
    planned = plan_comparison(asked("window"), source, num_prompts=3, **settings)
    assert {stream.batch_size for stream in planned} == {3}
    options = StreamOptions(kv_dtype="int8", step_cache=0.2)
    small = plan_comparison(asked("window", options=options), source, num_prompts=3, **settings)
    for ours, theirs in zip(small, planned, strict=True):
        assert ours.options == options
        assert ours.need().cache_bytes < 0.65 * theirs.need().cache_bytes
        assert ours.need().passes_bytes > theirs.need().passes_bytes  # a residual is kept
    with pytest.raises(ConfigurationError, match="segments_per_frame=7 does not divide"):
        plan_comparison(asked("forcing-kv:segments_per_frame=7"), source, num_prompts=1, **settings)
