import pytest
import torch

from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.evaluate import drawn_videos, evaluate, held_out_prompts, summary, through_vae, wilson
from forcing_kv.tiny.prompts import is_held_out, parse
from forcing_kv.tiny.scorer import score


def test_wilson_interval_of_known_cases():
    assert wilson(32, 32) == pytest.approx((0.8928, 1.0), abs=1e-3)
    assert wilson(0, 32) == pytest.approx((0.0, 0.1072), abs=1e-3)
    assert wilson(16, 32) == pytest.approx((0.3363, 0.6637), abs=1e-3)


def test_prompts_are_held_out_and_always_the_same():
    prompts = held_out_prompts()
    assert prompts == held_out_prompts()
    assert len(set(prompts)) == 32
    assert all(is_held_out(parse(prompt)) for prompt in prompts)


def test_summary_of_drawn_clips_is_all_right():
    prompts = held_out_prompts(4)
    shares = summary([score(video, parse(text)) for video, text in zip(drawn_videos(prompts, 100), prompts)])  # noqa: B905
    assert {name: value["share"] for name, value in shares.items()} == dict.fromkeys(shares, 1.0)
    assert "no collapse" in shares
    assert shares["shape"]["interval_95"][1] == 1.0


def test_an_untrained_model_fails_and_its_ceiling_does_not(tiny_model_folder):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    lines = []
    results = evaluate(pipeline, policies=["full"], num_prompts=2, seconds=1.5, batch_size=2, report=lines.append)
    assert list(results) == ["drawn", "drawn, through the VAE", "full"]
    assert results["drawn"]["colour"]["share"] == 1.0
    assert results["full"]["colour"]["share"] == 0.0
    assert len(results["full"]["videos"]) == 2
    assert len(lines) == 3


def test_through_the_vae_keeps_the_length_of_whole_latent_frames(tiny_model_folder):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    videos = drawn_videos(held_out_prompts(2), 20)
    decoded = through_vae(pipeline, videos)
    assert decoded.shape == (2, 17, 64, 96, 3)
    assert decoded.dtype == torch.uint8
