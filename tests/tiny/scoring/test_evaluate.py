import json
from dataclasses import replace

import pytest
import torch

from forcing_kv.errors import OutputError
from forcing_kv.models.weights import weights_sha256
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.prompts import caption, parse
from forcing_kv.tiny.scenes import is_held_out
from forcing_kv.tiny.scoring import evaluate as evaluation
from forcing_kv.tiny.scoring.evaluate import evaluate, evaluate_share, scores_in, scores_record
from forcing_kv.tiny.scoring.kept_scores import code_sha256
from forcing_kv.tiny.scoring.parts import (
    DRAWN,
    FREE,
    FREE_LATE,
    FREE_SOON,
    MEMORY,
    SHORT_WINDOW,
    SWITCHES,
    THROUGH_VAE,
    Evaluation,
)
from forcing_kv.tiny.scoring.sources import (
    drawn_switches,
    first_chunk_frame,
    held_out_clips,
    psnr,
    streamed,
    streamed_switches,
    through_vae,
)
from forcing_kv.tiny.world import HEIGHT, WIDTH, draw

SMALL = Evaluation(
    policies=("full",),
    num_prompts=2,
    seconds=1.5,
    short_seconds=1.1,
    long_seconds=3,
    num_memory_prompts=2,
    memory_seconds=1.5,
    num_switches=1,
    batch_size=2,
)


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    """Random weights, at the world's resolution."""
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="auto")
    pipeline.preset = replace(pipeline.preset, default_resolution=(WIDTH, HEIGHT))
    return pipeline


def held_out_prompts(num):
    return [caption(clip.scene) for clip in held_out_clips(num)]


def as_json(results):
    return json.loads(json.dumps(results))


@pytest.fixture(scope="module")
def evaluated(pipeline):
    lines = []
    return evaluate(pipeline, SMALL, report=lines.append), lines


def test_every_part_has_both_ceilings_and_the_policies(evaluated):
    results, lines = evaluated
    parts = results["parts"]
    assert list(parts) == [FREE, FREE_SOON, FREE_LATE, MEMORY, SWITCHES]
    ceilings = ["drawn", "drawn, through the VAE"]
    assert list(parts[FREE]["sources"]) == [*ceilings, "full"]
    assert list(parts[FREE_SOON]["sources"]) == [*ceilings, "full"]
    assert list(parts[FREE_LATE]["sources"]) == ["drawn", "full"]
    assert list(parts[MEMORY]["sources"]) == [*ceilings, "full", SHORT_WINDOW]
    assert list(parts[SWITCHES]["sources"]) == [*ceilings, "full"]
    assert lines[0] == "free scenes, drawn: 2 of 2"
    assert len(lines) == 3 + 4 + 3


def test_an_untrained_model_fails_and_its_ceiling_does_not(evaluated):
    parts = evaluated[0]["parts"]
    for part, name in ((FREE, "colour"), (FREE_LATE, "visible"), (SWITCHES, "followed")):
        assert parts[part]["sources"]["drawn"]["shares"][name]["share"] == 1.0
        assert parts[part]["sources"]["full"]["shares"][name]["share"] == 0.0
    assert parts[FREE]["sources"]["drawn"]["shares"]["colour"]["num_videos"] == 2


def test_what_belongs_together_is_compared_in_pairs(evaluated):
    parts = evaluated[0]["parts"]
    assert parts[FREE_LATE]["seconds"] == [1.5, 3]
    assert parts[FREE_LATE]["drops"]["full"]["colour"]["difference"] == 0
    assert parts[MEMORY]["differences"]["full"]["kept"]["num_videos"] == 2


def test_every_video_is_on_record(evaluated):
    parts = evaluated[0]["parts"]
    video = parts[FREE]["sources"]["full"]["videos"][0]
    assert video["prompt"] == held_out_prompts(2)[0]
    assert video["right"]["colour"] is False
    assert 0 <= video["shares"]["visible"] <= 1
    assert {"prompt", "right", "before", "after"} <= set(parts[MEMORY]["sources"]["full"]["videos"][0])
    assert {"prompt", "switches_to", "right"} <= set(parts[SWITCHES]["sources"]["full"]["videos"][0])
    json.dumps(evaluated[0])


def test_the_record_has_the_hash_and_no_videos(evaluated, pipeline):
    record = scores_record(evaluated[0], SMALL)
    assert record["weights_sha256"] == weights_sha256(pipeline.transformer)
    assert record["dtype"] == str(pipeline.transformer.dtype).removeprefix("torch.")
    assert record["evaluation"]["num_prompts"] == 2
    assert record["vae_psnr"]["num_videos"] == 5
    assert record["parts"][FREE]["sources"]["full"] == {
        "shares": evaluated[0]["parts"][FREE]["sources"]["full"]["shares"]
    }
    assert "videos" not in json.dumps(record).replace("num_videos", "")


def test_kept_scores_are_those_of_one_call(evaluated, pipeline, tmp_path, monkeypatch):
    """Two shares, then the whole from what they have kept, and nothing made again."""
    lines = []
    kept = scores_in(tmp_path / "scores", pipeline, SMALL)
    for number in (1, 0):
        evaluate_share(pipeline, SMALL, kept=kept, share=(number, 2), report=lines.append)
    assert sorted(lines) == sorted(evaluated[1])
    monkeypatch.setattr(VideoPipeline, "stream", None)
    whole = evaluate(pipeline, SMALL, kept=scores_in(tmp_path / "scores", pipeline, SMALL))
    assert as_json(whole) == as_json(evaluated[0])


def test_kept_scores_grow(pipeline, tmp_path):
    asked = replace(SMALL, num_prompts=0, num_switches=0, num_memory_prompts=1, batch_size=1, policies=())
    evaluate(pipeline, asked, kept=scores_in(tmp_path, pipeline, asked))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    more = replace(asked, num_memory_prompts=2, policies=("full",))
    results = evaluate(pipeline, more, kept=scores_in(tmp_path, pipeline, more))
    assert len(results["parts"][MEMORY]["sources"]["full"]["videos"]) == 2
    assert (len(first), len(list(tmp_path.iterdir()))) == (3, 8)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())


def test_scores_of_other_settings_another_preset_or_scorer_are_not_taken(pipeline, tmp_path, monkeypatch):
    asked = replace(SMALL, num_prompts=0, num_switches=0, num_memory_prompts=1, policies=())
    evaluate(pipeline, asked, kept=scores_in(tmp_path, pipeline, asked))
    other = replace(asked, seed=7)
    with pytest.raises(OutputError, match="json has scores of another settings: choose another folder"):
        evaluate(pipeline, other, kept=scores_in(tmp_path, pipeline, other))
    monkeypatch.setattr(evaluation, "code_sha256", lambda folder: "0")
    with pytest.raises(OutputError, match="scores of another scorer_sha256"):
        evaluate(pipeline, asked, kept=scores_in(tmp_path, pipeline, asked))
    monkeypatch.setattr(pipeline, "preset", replace(pipeline.preset, recache_frames=3))
    with pytest.raises(OutputError, match="scores of another preset and scorer_sha256"):
        evaluate(pipeline, asked, kept=scores_in(tmp_path, pipeline, asked))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        scores_in(tmp_path / "file" / "scores", pipeline, asked)


def test_the_hash_of_code_is_that_of_what_it_does(tmp_path):
    (tmp_path / "rules.py").write_text("LIMIT = 3  # frames\n")
    first = code_sha256(tmp_path)
    (tmp_path / "rules.py").write_text("# in frames\nLIMIT  =  3\n")
    (tmp_path / "notes.txt").touch()
    assert code_sha256(tmp_path) == first
    (tmp_path / "rules.py").write_text("LIMIT = 4\n")
    assert code_sha256(tmp_path) != first


def test_a_batch_that_breaks_off_leaves_nothing(pipeline, tmp_path, monkeypatch):
    asked = replace(SMALL, num_prompts=0, num_switches=0, policies=())
    kept = scores_in(tmp_path, pipeline, asked)
    monkeypatch.setattr(VideoPipeline, "stream", None)  # the drawn clips are scored, and then the window's videos fail
    with pytest.raises(TypeError):
        evaluate(pipeline, asked, kept=kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "memory scenes, drawn, 1 to 2.json",
        "memory scenes, drawn, through the VAE, 1 to 2.json",
    ]


def test_parts_can_be_left_out(pipeline):
    asked = replace(SMALL, num_prompts=0, num_switches=0, policies=())
    results = evaluate(pipeline, asked)
    assert list(results["parts"]) == [MEMORY]


def test_only_the_long_policies_are_judged_after_a_minute(pipeline):
    asked = replace(SMALL, policies=("full", "window"), num_prompts=1, num_memory_prompts=0, num_switches=0)
    parts = evaluate(pipeline, asked)["parts"]
    assert set(parts[FREE]["sources"]) == {DRAWN, THROUGH_VAE, "full", "window"}
    assert set(parts[FREE_LATE]["sources"]) == {DRAWN, "full"}
    assert set(parts[FREE_LATE]["drops"]) == {"full"}


def test_some_of_the_videos_may_be_long(pipeline):
    asked = replace(SMALL, num_prompts=3, num_long_prompts=1, batch_size=1, num_memory_prompts=0, num_switches=0)
    parts = evaluate(pipeline, asked)["parts"]
    assert [len(parts[name]["sources"]["full"]["videos"]) for name in (FREE, FREE_SOON, FREE_LATE)] == [3, 3, 1]
    first = evaluate(pipeline, replace(asked, num_prompts=1))["parts"]
    assert parts[FREE_LATE] == first[FREE_LATE]
    assert FREE_LATE not in evaluate(pipeline, replace(asked, num_prompts=1, num_long_prompts=0))["parts"]


def test_prompts_are_held_out_and_always_the_same():
    for memory in (False, True):
        clips = held_out_clips(32, memory=memory)
        assert clips == held_out_clips(32, memory=memory)
        assert all(is_held_out(clip.scene) for clip in clips)
        assert held_out_clips(8, memory=memory) == clips[:8]
    assert [parse(prompt).scene for prompt in held_out_prompts(32)] == [clip.scene for clip in held_out_clips(32)]


def test_only_the_wanted_frames_are_kept(pipeline):
    prompts = held_out_prompts(2)
    (whole,) = streamed(pipeline, prompts, [slice(0, 33)], policy="full", seed=3)
    early, late = streamed(pipeline, prompts, [slice(0, 10), slice(20, 33)], policy="full", seed=3)
    assert whole.shape == (2, 33, HEIGHT, WIDTH, 3)
    assert torch.equal(early, whole[:, :10])
    assert torch.equal(late, whole[:, 20:])


def test_a_switch_takes_effect_at_the_frame_that_is_said(pipeline):
    at = first_chunk_frame(pipeline, 0.5)
    assert at == 9
    one, other = held_out_prompts(2)
    (plain,) = streamed(pipeline, [one], [slice(0, 21)], policy="full", seed=3)
    video = streamed_switches(pipeline, [(one, other)], at, 21, policy="full", seed=3)
    assert torch.equal(video[:, :at], plain[:, :at])
    assert not torch.equal(video[:, at:], plain[:, at:])


def test_first_chunk_frame_is_not_before_the_time(pipeline):
    assert first_chunk_frame(pipeline, 4.0) == 69


def test_drawn_switches_go_on_where_the_object_is():
    before, after = held_out_clips(2)
    video = drawn_switches([(before, after.scene)], 20, 40)
    assert torch.equal(video[:, :20], draw([before], 20))
    assert torch.equal(video[:, 20:], draw([before.switched(after.scene, 20)], 20))


def test_through_the_vae_keeps_the_length_of_whole_latent_frames(pipeline):
    videos = draw(held_out_clips(2), 20)
    decoded = through_vae(pipeline, videos)
    assert decoded.shape == (2, 17, HEIGHT, WIDTH, 3)
    assert decoded.dtype == torch.uint8
    assert all(ratio < 20 for ratio in psnr(videos, decoded))


def test_psnr_of_known_cases():
    video = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    assert psnr(video, video + 255) == pytest.approx([0.0])
    assert psnr(video, video + 1) == pytest.approx([48.13], abs=0.01)
