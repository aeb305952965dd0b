"""Comparisons of a small random model: what is measured, what is kept, and what a run that broke off loses."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forcing_kv.errors import ConfigurationError, OutputError, PromptError
from forcing_kv.evaluation import Comparison, compare, format_table, summarise
from forcing_kv.evaluation.metrics.fidelity import squared_errors
from forcing_kv.evaluation.metrics.latents import cosine
from forcing_kv.evaluation.report import report_document
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import probe

PROMPTS = ("a large red circle", "a small blue square", "a green triangle moving left")
FORGETS = "window:window_frames=6,sink_frames=0"
KEEPS_ALL = "window:window_frames=100,sink_frames=0"
NUM_FRAMES = 45  # four chunks
SIZE = (48, 32)
SAVING = StreamOptions(kv_dtype="int8", step_cache=1e6)


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder) -> VideoPipeline:
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32")


def asked(**changes) -> Comparison:
    settings = {
        "policies": ("full", FORGETS),
        "num_frames": NUM_FRAMES - 3,
        "seed": 5,
        "num_together": 2,
        "resolution": SIZE,
    }
    return Comparison(**{**settings, **changes})


def document(compared):
    """All that a report says, but for when and how fast."""
    content = report_document(summarise(compared))
    del content["environment"]
    for policy in content["policies"]:
        del policy["seconds"]
    return content


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(pipeline, tmp_path_factory):
    """A comparison in one go, and its folder."""
    folder = tmp_path_factory.mktemp("done") / "in" / "folders"
    progress = []
    compared = compare(
        pipeline,
        PROMPTS,
        asked(policies=(FORGETS, KEEPS_ALL)),
        folder,
        on_progress=lambda *counts: progress.append(counts),
    )
    return compared, folder, progress


def test_a_policy_that_forgets_nothing_gives_the_reference(done):
    compared, _, _ = done
    metrics = document(compared)["policies"][2]["metrics"]
    assert metrics["psnr"]["values"] == [100, 100, 100]
    for name in ("ssim", "cosine", "motion-ratio"):
        assert metrics[name]["values"] == pytest.approx([1, 1, 1]), name
    for name in ("motion", "boundary-jump", "drift-colour"):
        assert metrics[name]["difference"]["mean"] == 0
        assert metrics[name]["difference"]["verdict"] == ""
    forgets = document(compared)["policies"][1]["metrics"]
    assert max(forgets["psnr"]["values"]) < 60
    assert max(forgets["cosine"]["values"]) < 1


def test_what_is_measured_is_what_streams(done, pipeline):
    """The frames and latents themselves, not what is left of them in the MP4; each prompt with its own seed."""
    compared, _, _ = done
    for first, prompts in ((0, PROMPTS[:2]), (2, PROMPTS[2:])):
        settings = {"num_frames": NUM_FRAMES, "seed": 5 + first, "resolution": SIZE}
        reference, video = (list(pipeline.stream(prompts, policy=policy, **settings)) for policy in ("full", FORGETS))
        for item in range(len(prompts)):
            measured = compared.videos[FORGETS][first + item].measured
            ours, theirs = (torch.cat([chunk.frames[item] for chunk in each]).numpy() for each in (video, reference))
            assert measured.series["squared-error"] == pytest.approx(squared_errors(ours, theirs), rel=1e-5)
            cosines = [
                cosine(one.latents[item].numpy(), other.latents[item].numpy())
                for one, other in zip(video, reference, strict=True)
            ]
            assert measured.series["cosine"] == pytest.approx(cosines, rel=1e-5)
            assert measured.chunk_starts == (0, 9, 21, 33)
    # From the same noise: until something is forgotten, the videos are the same.
    assert compared.videos[FORGETS][0].measured.series["squared-error"][:21].max() == 0
    assert compared.videos[FORGETS][0].measured.series["squared-error"][33:].min() > 0


def test_what_lies_in_the_folder(done):
    compared, folder, progress = done
    assert sorted(path.name for path in folder.iterdir()) == ["measured", "videos"]
    assert len(files(folder)) == 2 * 3 * 3
    paths = compared.paths["full"]
    assert [path.name for path in paths][:2] == ["001-a-large-red-circle.mp4", "002-a-small-blue-square.mp4"]
    info = probe(paths[1])
    assert (info.num_frames, info.width, info.height, info.fps) == (NUM_FRAMES, *SIZE, 16)
    made_from = json.loads(info.metadata["comment"])
    assert (made_from["prompt"], made_from["seed"], made_from["policy"]) == (PROMPTS[1], 6, "full")
    assert progress[0] == (0, 24)  # 2 batches of 3 policies, 4 chunks each
    assert progress[-1] == (24, 24)


def test_against_a_plain_reference_the_options_themselves_are_measured(pipeline, tmp_path):
    settings = asked(metrics="cosine", policies=("full", FORGETS), options=SAVING, plain_reference=True)
    compared = compare(pipeline, PROMPTS[:2], settings, tmp_path)
    summary = summarise(compared)
    assert [policy.spec for policy in summary.policies] == ["full (plain)", "full", FORGETS]
    assert compared.paths["full (plain)"][0].parent.name == "full-plain"
    comments = [json.loads(probe(compared.paths[name][0]).metadata["comment"]) for name in ("full (plain)", "full")]
    assert [comment["kv_dtype"] for comment in comments] == [None, "int8"]
    assert "All policies but the reference with the cache stored as int8 and a step cache" in format_table(summary)
    plain = pipeline.stream(PROMPTS[:2], policy="full", seed=5, num_frames=NUM_FRAMES, resolution=SIZE)
    saving = pipeline.stream(PROMPTS[:2], policy="full", seed=5, num_frames=NUM_FRAMES, resolution=SIZE, options=SAVING)
    cosines = [cosine(*(chunk.latents[1].numpy() for chunk in pair)) for pair in zip(saving, plain, strict=True)]
    told = summary.policies[1].metrics["cosine"].values[1]
    assert told == pytest.approx(sum(cosines) / len(cosines), abs=1e-4)
    assert told < 0.999


def test_in_fp8_against_its_own_precision(tiny_model_folder, tmp_path):
    quantised = VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32", precision="fp8")
    plain = VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32")
    settings = asked(metrics="psnr", policies=("full",), num_frames=9, plain_reference=True)
    shared = quantised.with_transformer(plain.transformer)
    assert shared.precision is None
    assert shared.vae is quantised.vae
    assert shared.decoder is quantised.decoder
    compared = compare(quantised, PROMPTS[:1], settings, tmp_path, plain_pipeline=shared)
    (value,) = summarise(compared).policies[1].metrics["psnr"].values
    assert 10 < value < 80
    assert "All policies but the reference with linear layers in fp8." in format_table(summarise(compared))


def test_bytes_are_per_video(done, pipeline):
    compared, _, _ = done
    alone = pipeline.stream(PROMPTS[0], policy=FORGETS, num_frames=NUM_FRAMES, resolution=SIZE)
    for _ in alone:
        pass
    assert {video.cache_bytes for video in compared.videos[FORGETS]} == {alone.cache.nbytes}
    assert {video.full_cache_bytes for video in compared.videos[FORGETS]} == {alone.cache.full_nbytes}


def test_one_storage_and_one_step_cache_for_all(pipeline, tmp_path):
    """Also for the reference; what is reported is what is held, and how many steps were left out."""
    settings = asked(metrics="psnr,cosine", policies=(FORGETS, KEEPS_ALL), options=SAVING)
    compared = compare(pipeline, PROMPTS[:2], settings, tmp_path)
    config = document(compared)["config"]
    assert (config["kv_dtype"], config["step_cache"], config["steps_skipped"]) == ("int8", 1e6, 3)
    expected = "All policies, the reference too, with the cache stored as int8 and a step cache at 1e+06 (3 of 4 steps"
    assert expected in format_table(summarise(compared))
    comment = json.loads(probe(compared.paths["full"][0]).metadata["comment"])
    assert (comment["kv_dtype"], comment["step_cache"]) == ("int8", 1e6)
    stream = pipeline.stream(PROMPTS[:2], policy="full", seed=5, num_frames=NUM_FRAMES, resolution=SIZE, options=SAVING)
    chunks = list(stream)
    assert {video.cache_bytes for video in compared.videos["full"]} == {stream.cache.nbytes // 2}
    again = list(
        pipeline.stream(PROMPTS[:2], policy=FORGETS, seed=5, num_frames=NUM_FRAMES, resolution=SIZE, options=SAVING)
    )
    cosines = [
        cosine(ours.latents[1].numpy(), theirs.latents[1].numpy()) for ours, theirs in zip(again, chunks, strict=True)
    ]
    assert compared.videos[FORGETS][1].measured.series["cosine"] == pytest.approx(cosines, rel=1e-5)


def test_what_is_finished_is_not_made_again(done, pipeline, tmp_path):
    compared, folder, _ = done
    before = files(folder)
    again = compare(pipeline, PROMPTS, asked(policies=(FORGETS, KEEPS_ALL)), folder)
    assert files(folder) == before
    assert report_document(summarise(again))["policies"] == report_document(summarise(compared))["policies"]
    fewer = compare(pipeline, PROMPTS[:2], asked(metrics="psnr,drift"), folder)  # prompts, policies and metrics
    assert files(folder) == before
    assert fewer.chosen.flow is None


def test_a_run_that_breaks_off_keeps_what_is_finished_and_gives_the_same_in_the_end(done, pipeline, tmp_path):
    whole, _, _ = done
    settings = asked(policies=(FORGETS, KEEPS_ALL))

    def stop(done, total):
        if done == 10:  # within the second policy after the reference
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(pipeline, PROMPTS, settings, tmp_path, on_progress=stop)
    kept = files(tmp_path / "measured")
    assert len(kept) == 2 * 2
    assert not list(tmp_path.rglob("*.partial"))
    assert len(files(tmp_path / "reference-chunks")) == 5  # for the policies that are still to come
    progress = []
    resumed = compare(pipeline, PROMPTS, settings, tmp_path, on_progress=lambda *counts: progress.append(counts))
    assert document(resumed) == document(whole)
    assert files(tmp_path / "measured").items() >= kept.items()
    assert progress[-1] == (16, 16)
    assert not (tmp_path / "reference-chunks").exists()


def test_a_missing_video_is_made_again_with_the_reference_and_its_batch(done, pipeline, tmp_path):
    whole, folder, _ = done
    settings = asked(policies=(FORGETS, KEEPS_ALL))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path / "measured")
    lost = next((tmp_path / "videos").glob("window-*/002-*.mp4"))
    lost.unlink()
    again = compare(pipeline, PROMPTS, settings, tmp_path)
    assert document(again) == document(whole)
    after = files(tmp_path / "measured")
    changed = {name for name, time in after.items() if before[name] != time}
    assert {Path(name).name for name in changed} == {"00000.json", "00001.json"}
    assert {Path(name).parent.name for name in changed} == {"full", lost.parent.name}


def test_prompts_and_policies_may_be_added(pipeline, tmp_path):
    few = asked(policies=(FORGETS,), num_together=1, metrics="psnr,cosine")
    compare(pipeline, PROMPTS[:1], few, tmp_path)
    before = files(tmp_path / "measured")
    more = replace(few, policies=(KEEPS_ALL, FORGETS))
    progress = []
    compared = compare(pipeline, PROMPTS[:2], more, tmp_path, on_progress=lambda *counts: progress.append(counts))
    assert progress[-1] == (5 * 4, 5 * 4)  # of the first prompt, the reference once more and the new one; three of two
    assert [contestant.name for contestant in compared.contestants] == ["full", KEEPS_ALL, FORGETS]
    after = files(tmp_path / "measured")
    assert {name for name in before if after[name] == before[name]} == {
        name for name in before if not name.startswith("full")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, r"full/00000\.json was made with seed 5, not 6: .*--overwrite"),
        ({"num_frames": 9}, "was made with num_chunks 4, not 1"),
        ({"num_together": 1}, "was made with together 2, not 1"),
        ({"options": StreamOptions(kv_dtype="int8")}, "was made with kv_dtype None, not 'int8'"),
        ({"options": StreamOptions(step_cache=0.2)}, r"was made with step_cache None, not 0\.2"),
        ({"options": StreamOptions(positions="relative")}, "was made with positions 'absolute', not 'relative'"),
        ({"reference": FORGETS}, "was made with reference 'full', not 'window"),
        ({"resolution": (64, 64)}, r"was made with resolution \[48, 32\], not \[64, 64\]"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_and_nothing_is_touched(done, pipeline, change, message):
    _, folder, _ = done
    before = files(folder)
    with pytest.raises(OutputError, match=message):
        compare(pipeline, PROMPTS, asked(policies=(KEEPS_ALL,), **change), folder)
    assert files(folder) == before


def test_other_prompts_and_unmeasured_metrics_are_refused(done, pipeline, tmp_path):
    _, folder, _ = done
    with pytest.raises(OutputError, match="was made with prompt 'a large red circle', not 'a red cross'"):
        compare(pipeline, ("a red cross",), asked(), folder)
    compare(pipeline, PROMPTS[:1], asked(metrics="psnr"), tmp_path)
    with pytest.raises(
        OutputError, match="was made without measuring red, green, blue: go on with the metrics of then"
    ):
        compare(pipeline, PROMPTS[:1], asked(metrics="drift-colour"), tmp_path)
    broken = next((tmp_path / "measured").glob("full/*.json"))
    broken.write_text("{")
    with pytest.raises(OutputError, match=r"00000\.json cannot be read .*: start over with --overwrite"):
        compare(pipeline, PROMPTS[:1], asked(metrics="psnr"), tmp_path)
    (tmp_path / "videos" / "full" / "mine.txt").touch()
    for name in (
        "report.json",
        "measured/other/00000.json",
        "videos/other/001-a.mp4",
        "reference-chunks/00000/complete",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "videos" / "other" / "002-b.mp4.partial").mkdir()
    before = files(tmp_path)
    with pytest.raises(PromptError, match="the model knows no word of 'Lissabon'"):
        compare(pipeline, ("Lissabon",), asked(metrics="psnr"), tmp_path, overwrite=True)
    assert files(tmp_path) == before
    compare(pipeline, ("a red cross",), asked(metrics="psnr"), tmp_path, overwrite=True)
    assert json.loads(broken.read_text())["identity"]["prompt"] == "a red cross"
    assert sorted(path.name for path in (tmp_path / "videos" / "full").iterdir()) == ["001-a-red-cross.mp4", "mine.txt"]
    assert sorted(os.listdir(tmp_path)) == ["measured", "videos"]
    assert not (tmp_path / "measured" / "other").exists()
    assert not (tmp_path / "videos" / "other").exists()


def test_a_full_disk_is_named_and_loses_nothing_that_is_finished(pipeline, tmp_path, monkeypatch):
    settings = asked(metrics="psnr", num_together=1)
    write_bytes, written = Path.write_bytes, []

    def fill(path, content):
        written.append(path)
        if len(written) > 10:  # two videos of four segments, and half of the next
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(
            OutputError, match=r"segment-00002\.mp4 cannot be written: the disk is full; free some space"
        ):
            compare(pipeline, PROMPTS[:2], settings, tmp_path)
    assert len(files(tmp_path / "measured")) == 2
    assert not list(tmp_path.rglob("*.partial"))
    with monkeypatch.context() as patch:
        patch.setattr("forcing_kv.evaluation.reference.save_file", lambda *_: _full())
        with pytest.raises(OutputError, match=r"reference-chunks.*cannot be written: the disk is full"):
            compare(pipeline, PROMPTS[:2], settings, tmp_path)
    compared = compare(pipeline, PROMPTS[:2], settings, tmp_path)
    assert len(compared.videos["full"]) == 2


def _full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_prompts_that_the_model_does_not_know_are_told_before_any_video(pipeline, tmp_path):
    with pytest.raises(PromptError, match="prompt 2: the model knows no word of 'Lissabon'"):
        compare(pipeline, ("a red circle", "Lissabon"), asked(), tmp_path)
    with pytest.raises(PromptError, match="nothing to compare on"):
        compare(pipeline, (), asked(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_model_without_a_decoder_is_refused(pipeline, tmp_path):
    blind = VideoPipeline(
        preset=pipeline.preset,
        transformer=pipeline.transformer,
        encode_prompt=pipeline.encode_prompt,
        head_map=pipeline.head_map,
    )
    with pytest.raises(ConfigurationError, match="was loaded without a VAE"):
        compare(blind, PROMPTS[:1], asked(metrics="psnr"), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
