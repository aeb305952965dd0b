"""A file made with decoding and writing beside the diffusion is the file made without, however the run ends."""

import errno
import json
import os
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.generation import VideoRequest, check_made_alike, generate_video
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.video import DecoderOptions, probe, read_video
from forcing_kv.video import writer as writer_module
from forcing_kv.video.writer import partial_folder
from tiny_decoders import released_weights

PROMPT = prompt_schedule("a red circle")
SCHEDULE = (ScheduledPrompt(text="a red circle"), ScheduledPrompt(at_seconds=1, text="a blue square"))
SMALL = {"resolution": (48, 32)}


@pytest.fixture(scope="module")
def plain(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu")


@pytest.fixture(scope="module")
def overlapped(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", decoding=DecoderOptions(overlap=True))


@pytest.fixture(scope="module")
def decoder_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "taew2_1.pth"
    torch.save(released_weights(), path)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_model_folder, decoder_file):
    decoding = DecoderOptions(file=decoder_file, overlap=True)
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32", decoding=decoding)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture(autouse=True)
def a_snapshot_after_every_chunk(monkeypatch):
    monkeypatch.setattr("forcing_kv.generation.run.MAX_SNAPSHOT_SHARE", 1.0)


class Killed(BaseException):
    """Stands for a death that runs no clean-up of the driver's."""


def kill_after(num_chunks, error=Killed):
    def on_progress(progress):
        if progress.chunks_done == num_chunks:
            raise error

    return on_progress


def test_the_same_file_latents_and_true_times(plain, overlapped, tmp_path):
    reports = []
    for name, pipeline in (("plain", plain), ("overlapped", overlapped)):
        request = VideoRequest(
            prompts=SCHEDULE,
            path=tmp_path / f"{name}.mp4",
            num_frames=45,
            latents_path=tmp_path / f"{name}.safetensors",
            **SMALL,
        )
        steps = []
        reports.append(generate_video(pipeline, request, on_progress=lambda at, seen=steps: seen.append(at)))
        assert [step.chunks_done for step in steps] == [0, 1, 2, 3, 4]
        assert all(step.fps > 0 for step in steps[1:])
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "overlapped.mp4").read_bytes()
    kept = [load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("plain", "overlapped")]
    assert torch.equal(*kept)
    assert sorted(os.listdir(tmp_path)) == [
        f"{name}.{suffix}" for name in ("overlapped", "plain") for suffix in ("mp4", "safetensors")
    ]
    for report, is_overlapped in zip(reports, (False, True), strict=True):
        document = json.loads(json.dumps(report.to_json()))
        assert document["overlapped"] is is_overlapped
        assert (document["decoder"], document["decoder_dtype"]) == ("VAE", report.dtype)
        assert (document["decoder_layout"], document["decoder_compiled"]) == ("channels-last", False)
        assert min(report.decode_ms, report.encode_ms, report.waited_ms, report.snapshot_ms) > 0
        assert document["fps_diffusion"] > document["fps_end_to_end"] > 0
    # Without overlap all of decoding and encoding is waited for; the little more is what lies between the clocks.
    assert reports[0].waited_ms >= reports[0].decode_ms + reports[0].encode_ms


@pytest.mark.parametrize("died_after", [1, 2, 3])
def test_a_killed_run_is_gone_on_with(plain, overlapped, tmp_path, died_after):
    whole = VideoRequest(prompts=SCHEDULE, path=tmp_path / "whole.mp4", num_frames=45, **SMALL)
    generate_video(plain, whole)
    cut = replace(whole, path=tmp_path / "cut.mp4", latents_path=tmp_path / "cut.safetensors")
    with pytest.raises(Killed):
        generate_video(overlapped, cut, on_progress=kill_after(died_after))
    assert len(list(partial_folder(cut.path).glob("segment-*.mp4"))) >= died_after
    # With or without overlap: a snapshot does not know how it was made.
    report = generate_video(plain if died_after == 2 else overlapped, cut, resume=True)
    assert report.frames == 45
    assert report.frames_made < 45
    assert cut.path.read_bytes() == whole.path.read_bytes()
    assert not partial_folder(cut.path).exists()


def test_a_snapshot_never_covers_what_is_not_on_disk(overlapped, tmp_path, monkeypatch):
    """Killed in the writing of the third chunk: two are on disk, and the newest snapshot is theirs or older."""
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=57, **SMALL)
    generate_video(overlapped, request)
    expected = request.path.read_bytes()
    fail_at(monkeypatch, 2, Killed())
    with pytest.raises(Killed):
        generate_video(overlapped, request, overwrite=True)
    assert len(list(partial_folder(request.path).glob("segment-*.mp4"))) == 2
    monkeypatch.undo()
    monkeypatch.setattr("forcing_kv.generation.run.MAX_SNAPSHOT_SHARE", 1.0)
    assert generate_video(overlapped, request, resume=True).frames_made >= 36
    assert request.path.read_bytes() == expected


def fail_at(monkeypatch, number, error):
    original, calls = writer_module.encode_mp4, []

    def encode(frames, **settings):
        calls.append(1)
        if len(calls) == number + 1:
            raise error
        return original(frames, **settings)

    monkeypatch.setattr(writer_module, "encode_mp4", encode)


def test_a_full_disk_leaves_the_finished_chunks(overlapped, tmp_path, monkeypatch):
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=57, **SMALL)
    with monkeypatch.context() as patch:
        fail_at(patch, 2, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OutputError, match=r"segment-00002\.mp4 cannot be written: the disk is full"):
            generate_video(overlapped, request)
    assert len(list(partial_folder(request.path).glob("segment-*.mp4"))) == 2
    assert generate_video(overlapped, request, resume=True).frames == 57


def test_an_interrupt_gives_what_is_there(overlapped, tmp_path):
    request = VideoRequest(
        prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=93, latents_path=tmp_path / "v.st", **SMALL
    )
    report = generate_video(overlapped, request, on_progress=kill_after(2, KeyboardInterrupt))
    assert report.interrupted
    assert 21 <= report.frames < 93
    assert report.frames == report.frames_made == probe(request.path).num_frames
    assert load_file(request.latents_path)["latents"].shape[0] == (report.frames + 3) // 4


def test_death_before_the_first_chunk_leaves_nothing(overlapped, tmp_path, monkeypatch):
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=21, **SMALL)
    fail_at(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        generate_video(overlapped, request)
    assert os.listdir(tmp_path) == []


def test_what_is_given_counts_for_no_speed(plain, overlapped, tmp_path):
    first = VideoRequest(
        prompts=PROMPT, path=tmp_path / "a.mp4", num_frames=21, latents_path=tmp_path / "a.safetensors", **SMALL
    )
    generate_video(plain, first)
    made = []
    for name, pipeline in (("b", plain), ("c", overlapped)):
        request = VideoRequest(
            prompts=PROMPT, path=tmp_path / f"{name}.mp4", num_frames=24, continue_from=first.latents_path, **SMALL
        )
        report = generate_video(pipeline, request)
        assert (report.frames, report.frames_given, report.frames_made) == (45, 21, 24)
        assert report.given_ms > 0
        assert report.waited_ms > 0
        made.append(request.path.read_bytes())
    assert made[0] == made[1]


def test_a_tiny_decoder_in_place_of_the_vae(plain, tiny, decoder_file, tmp_path):
    assert tiny.vae is None
    whole = VideoRequest(prompts=PROMPT, path=tmp_path / "whole.mp4", num_frames=33, **SMALL)
    report = generate_video(tiny, whole)
    assert report.decoder.startswith("taew2_1.pth (sha256 ")
    assert (report.decoder_dtype, report.overlapped) == ("float32", True)
    cut = replace(whole, path=tmp_path / "cut.mp4")
    with pytest.raises(Killed):
        generate_video(tiny, cut, on_progress=kill_after(1))
    with pytest.raises(OutputError, match=r"decoder 'taew2_1\.pth .*', not None"):
        generate_video(plain, cut, resume=True)
    generate_video(tiny, cut, resume=True)
    assert cut.path.read_bytes() == whole.path.read_bytes()
    check_made_alike(tiny, cut)
    with pytest.raises(OutputError, match="is finished, with decoder 'taew2_1"):
        check_made_alike(plain, cut)
    frames = tiny.generate("a red circle", num_frames=33, **SMALL)[0]
    assert frames.shape == read_video(whole.path).shape
    with pytest.raises(ConfigurationError, match="leave out --decoder, or continue from latents"):
        generate_video(tiny, replace(whole, path=tmp_path / "more.mp4", continue_from=whole.path))
    need = tiny.memory_need("a red circle", num_frames=33, **SMALL)
    assert need.vae_weights_bytes == 4 * tiny.decoder.size.num_parameters


def test_the_decoders_dtype_and_layout_are_as_asked(tiny_model_folder):
    decoding = DecoderOptions(dtype="bfloat16", layout="contiguous")
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32", decoding=decoding)
    assert pipeline.decoder.settings() == {
        "decoder": "VAE",
        "decoder_dtype": "bfloat16",
        "decoder_layout": "contiguous",
        "decoder_compiled": False,
    }
    assert pipeline.dtype == torch.float32
    need = pipeline.memory_need("a red circle", num_frames=9)
    assert need.vae_weights_bytes == sum(parameter.nbytes for parameter in pipeline.vae.parameters())
    (chunk,) = pipeline.stream("a red circle", num_frames=9, **SMALL)
    assert chunk.frames.shape == (1, 9, 32, 48, 3)
