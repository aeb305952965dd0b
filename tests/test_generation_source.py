"""Files that a video goes on from: what is taken of them, what is refused, and the run that goes on."""

import json
import os
from dataclasses import replace
from fractions import Fraction

import av
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.generation import VideoRequest, check_made_alike, generate_video, is_finished, open_source, skipped_json
from forcing_kv.models import Components
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.video import StreamingVaeEncoder, VideoWriter, probe, read_video
from forcing_kv.video.writer import partial_folder

PROMPT = prompt_schedule("a red circle")


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder) -> VideoPipeline:
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu")


@pytest.fixture
def look(pipeline):
    """Look at a file on behalf of the small model."""

    def open_for(path, **settings):
        return open_source(path, preset=pipeline.preset, num_channels=16, **settings)

    return open_for


@pytest.fixture(autouse=True)
def a_snapshot_after_every_chunk(monkeypatch):
    monkeypatch.setattr("forcing_kv.generation.run.MAX_SNAPSHOT_SHARE", 1.0)  # however slow the disk is


class Killed(BaseException):
    """Stands for a death that runs no clean-up of the driver's."""


def kill_after(num_chunks: int, error: type[BaseException] = Killed):
    def on_progress(progress) -> None:
        if progress.chunks_done == num_chunks:
            raise error

    return on_progress


def write_video(path, num_frames=12, width=96, height=64, fps=16):
    """A square that moves over a gradient, so that every frame is another."""
    frames = torch.linspace(0, 120, width).view(1, 1, width, 1).expand(num_frames, height, width, 3).clone()
    for number, frame in enumerate(frames):
        frame[8:16, number : number + 8] = 250
    writer = VideoWriter(path, fps=fps, overwrite=True)
    writer.write(frames.to(torch.uint8))
    return writer.finish()


def write_latents(path, latents, name="latents"):
    save_file({name: latents}, path)
    return path


@pytest.mark.parametrize(
    ("num_frames", "given_frames", "left_out"),
    [(9, 3, 0), (10, 3, 1), (20, 3, 11), (21, 6, 0), (24, 6, 3), (33, 9, 0)],
)
def test_the_last_whole_chunks_of_a_video_are_taken(pipeline, look, tmp_path, *, num_frames, given_frames, left_out):
    path = write_video(tmp_path / "v.mp4", num_frames)
    source = look(path)
    assert (source.given_frames, source.resolution) == (given_frames, (96, 64))
    assert (source.first_frames_left_out, source.last_frames_left_out) == (left_out, 0)
    frames = read_video(path)[left_out:]
    assert len(frames) == 4 * given_frames - 3
    latents = source.read(pipeline)
    assert (latents.dtype, latents.device.type) == (torch.float32, "cpu")
    assert torch.equal(latents, StreamingVaeEncoder(pipeline.vae).encode(frames[None])[0])


@pytest.mark.parametrize(("num_frames", "given_frames"), [(3, 3), (5, 3), (6, 6)])
@pytest.mark.parametrize("name", ["l.safetensors", "l.bin"])
def test_the_first_whole_chunks_of_latents_are_taken(pipeline, look, tmp_path, *, num_frames, given_frames, name):
    latents = torch.randn(num_frames, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    source = look(write_latents(tmp_path / name, latents), resolution=(96, 64))
    assert (source.given_frames, source.resolution) == (given_frames, (96, 64))
    assert (source.first_frames_left_out, source.last_frames_left_out) == (0, 4 * (num_frames - given_frames))
    assert torch.equal(source.read(pipeline), latents[:given_frames])


def test_what_was_made_here_keeps_its_prompts(look, tmp_path):
    red, blue, late = (ScheduledPrompt(at_seconds=at, text=text) for at, text in ((0, "red"), (0.5, "blue"), (9, "x")))
    path = tmp_path / "l.safetensors"
    latents = {"latents": torch.zeros(6, 16, 8, 12)}  # 21 frames, 1.3125 s
    for recorded, asked, expected in (
        ("red", (red,), [(0, "red")]),
        ("red", (replace(red, text="green"),), [(0, "red"), (1.3125, "green")]),
        ("red", (replace(red, text="green"), blue, late), [(0, "red"), (1.3125, "blue"), (9, "x")]),
        (
            [{"at_seconds": 0, "text": "red"}, {"at_seconds": 0.5, "text": "blue"}],
            (red,),
            [(0, "red"), (0.5, "blue"), (1.3125, "red")],
        ),
        (None, (red,), [(0, "red")]),
    ):
        comment = {"comment": json.dumps({"prompt": recorded})} if recorded else None
        save_file(latents, path, metadata=comment)
        whole = look(path).continued_with(asked, fps=16)
        assert [(prompt.at_seconds, prompt.text) for prompt in whole] == expected
    video = write_video(tmp_path / "v.mp4", 26)  # the first 5 frames are left out
    assert look(video).prompts is None
    writer = VideoWriter(
        tmp_path / "w.mp4", metadata={"prompt": [{"at_seconds": 0, "text": "red"}, {"at_seconds": 0.5, "text": "blue"}]}
    )
    writer.write(read_video(video))
    writer.finish()
    assert [(prompt.at_seconds, prompt.text) for prompt in look(tmp_path / "w.mp4").prompts] == [
        (0, "red"),
        (0.1875, "blue"),
    ]


def test_a_source_is_named_after_its_file_and_content(look, tmp_path):
    path = tmp_path / "l.safetensors"
    names = []
    for value, metadata in ((0, {"seed": "1"}), (0, {"seed": "2"}), (1, {"seed": "1"})):
        save_file({"latents": torch.full((3, 16, 8, 12), float(value))}, path, metadata=metadata)
        names.append(look(path).name)
    assert names[0].startswith("l.safetensors (sha256 ")
    assert names[0] == names[1] != names[2]
    names = [look(write_video(tmp_path / "v.mp4", num_frames)).name for num_frames in (9, 9, 10)]
    assert names[0].startswith("v.mp4 (sha256 ")
    assert names[0] == names[1] != names[2]


def test_a_clip_with_hidden_frames_is_what_it_shows(pipeline, look, tmp_path):
    """A clip cut without encoding begins with packets that are needed to decode the rest, and are not shown."""
    whole = write_video(tmp_path / "whole.mp4", 20)
    with av.open(str(whole)) as container, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size:
                packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 16), 1
                packet.pts = packet.dts = number - 5
                cut.mux(packet)
    assert torch.equal(read_video(tmp_path / "cut.mp4"), read_video(whole)[5:])
    source = look(tmp_path / "cut.mp4")
    assert (source.given_frames, source.first_frames_left_out) == (3, 6)
    assert torch.equal(source.read(pipeline), StreamingVaeEncoder(pipeline.vae).encode(read_video(whole)[None, 11:])[0])


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({"latents": torch.zeros(3, 12, 8, 12)}, {}, "l.st: latents of 12 channels do not fit this model"),
        ({"latents": torch.zeros(2, 16, 8, 12)}, {}, "l.st: 2 latent frames are too few"),
        ({"latents": torch.zeros(2, 3, 16, 8, 12)}, {}, "l.st: latents of 2 videos cannot be continued by 1"),
        ({"latents": torch.zeros(3, 16, 8, 11)}, {}, "l.st: resolution 88x64: .* nearest: 96x64"),
        ({"latents": torch.zeros(3, 16, 8, 12)}, {"resolution": (48, 32)}, "l.st: .* of 96x64 .* at 48x32"),
        ({"latents": torch.full((3, 16, 8, 12), torch.nan)}, {}, "l.st: .* not all finite"),
        ({"latents": torch.zeros(3, 16, 8, 12, dtype=torch.int64)}, {}, "l.st: .* torch.int64 cannot be continued"),
        ({"weight": torch.zeros(1), "bias": torch.zeros(1)}, {}, "l.st holds no latents but bias, weight: give"),
        ({f"w{n}": torch.zeros(1) for n in range(7)}, {}, "no latents but w0, w1, w2, w3, w4, ...: give"),
        ({}, {}, "l.st holds no latents but nothing: give a file that --save-latents wrote, or a video"),
    ],
)
def test_latents_that_do_not_fit(look, tmp_path, tensors, settings, message):
    save_file(tensors, tmp_path / "l.st")
    with pytest.raises(ConfigurationError, match=message):
        look(tmp_path / "l.st", **settings)


@pytest.mark.parametrize(
    ("video", "settings", "message"),
    [
        ({"num_frames": 8}, {}, r"v.mp4 has 8 frames, too few to be continued: at least 9 are needed, one chunk"),
        (
            {"fps": 30},
            {},
            r"96x64 at 30 frames per second, and must be 96x64 at 16 .*ffmpeg -i .*v.mp4 -vf scale=96:64",
        ),
        (
            {"width": 100},
            {},
            r"100x64 at 16 .* must be 96x64 at 16 .*: ffmpeg -i .*v.mp4 -vf scale=96:64,fps=16 out.mp4",
        ),
        ({}, {"resolution": (48, 32)}, r"96x64 at 16 .* must be 48x32 at 16 .*scale=48:32,fps=16 out.mp4"),
    ],
)
def test_videos_that_do_not_fit(look, tmp_path, video, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        look(write_video(tmp_path / "v.mp4", **video), **settings)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.mp4", None, ConfigurationError, "missing.mp4 cannot be read: No such file"),
        ("l.safetensors", b"", ConfigurationError, "l.safetensors cannot be read as latents"),
        ("l.safetensors", b"\x10\0\0\0\0\0\0\0{", ConfigurationError, "l.safetensors cannot be read as latents"),
        ("l.bin", b"\x10\0\0\0\0\0\0\0{broken", ConfigurationError, "l.bin cannot be read as latents"),
        ("v.mp4", b"no video at all", OutputError, "v.mp4 cannot be read as a video"),
        ("v.mp4", b"", OutputError, "v.mp4 cannot be read as a video"),
    ],
)
def test_files_that_cannot_be_read(look, tmp_path, *, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        look(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_sound_file_is_no_video(look, tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(numpy.zeros((1, 800), dtype=numpy.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(OutputError, match=r"a\.wav cannot be read as a video: it holds none"):
        look(tmp_path / "a.wav")


def test_a_damaged_video_is_refused(pipeline, look, tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 21)
    for frames in (read_video(path)[:15], read_video(path)[:0], read_video(path)[[*range(21), 20]]):
        with monkeypatch.context() as patch:
            patch.setattr("forcing_kv.generation.source.iterate_frames", lambda _, frames=frames: iter(frames))
            with pytest.raises(OutputError, match=f"damaged: {len(frames)} of its 21 frames can be decoded; repair"):
                look(path).read(pipeline)


def test_a_model_that_cannot_encode_goes_on_from_latents_only(tiny_model_folder, look, tmp_path):
    weights = load_file(tiny_model_folder / "vae" / "diffusion_pytorch_model.safetensors")
    folder = tmp_path / "model" / "vae"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((tiny_model_folder / "vae" / "config.json").read_text())
    decoder = {name: value for name, value in weights.items() if not name.startswith(("encoder.", "quant_conv."))}
    save_file(decoder, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    pipeline.vae = Components.in_folder(folder.parent).load_vae(dtype=torch.float32, device=torch.device("cpu"))
    video = VideoRequest(
        prompts=PROMPT, path=tmp_path / "o.mp4", num_frames=9, continue_from=write_video(tmp_path / "v.mp4")
    )
    with pytest.raises(ConfigurationError, match=r"has no encoder.*--save-latents"):
        generate_video(pipeline, video)
    assert not partial_folder(video.path).exists()
    latents = write_latents(tmp_path / "l.st", torch.zeros(3, 16, 8, 12))
    request = VideoRequest(prompts=PROMPT, path=video.path, num_frames=9, continue_from=latents)
    assert generate_video(pipeline, request).frames == 21


def run(pipeline, path, num_frames, **settings):
    request = VideoRequest(prompts=PROMPT, path=path, num_frames=num_frames, seed=5, **settings)
    return request, generate_video(pipeline, request)


def test_going_on_from_saved_latents_makes_the_longer_video(pipeline, tmp_path):
    run(pipeline, tmp_path / "whole.mp4", 57, latents_path=tmp_path / "whole.st")
    run(pipeline, tmp_path / "first.mp4", 21, latents_path=tmp_path / "first.st")
    request, report = run(
        pipeline, tmp_path / "v.mp4", 36, latents_path=tmp_path / "v.st", continue_from=tmp_path / "first.st"
    )
    assert torch.equal(read_video(request.path), read_video(tmp_path / "whole.mp4"))
    assert torch.equal(load_file(tmp_path / "v.st")["latents"], load_file(tmp_path / "whole.st")["latents"])
    assert (report.frames, report.frames_given, report.frames_made, report.frames_requested) == (57, 21, 36, 36)
    name = open_source(tmp_path / "first.st", preset=pipeline.preset, num_channels=16).name
    assert json.loads(probe(request.path).metadata["comment"])["continue_from"] == report.continue_from == name
    assert is_finished(request)
    check_made_alike(pipeline, request)
    assert skipped_json(request)["continue_from"] == name
    elsewhere = VideoRequest(prompts=PROMPT, path=request.path, num_frames=36, continue_from=tmp_path / "whole.st")
    for other in (elsewhere, VideoRequest(prompts=PROMPT, path=request.path, num_frames=57)):
        with pytest.raises(OutputError, match=r"finished, with continue_from 'first.st \(sha256"):
            check_made_alike(pipeline, other)


def test_going_on_from_a_video_shows_it_first(pipeline, tmp_path):
    video = write_video(tmp_path / "first.mp4", 24)
    request, report = run(
        pipeline, tmp_path / "v.mp4", 12, continue_from=video, policy="full", latents_path=tmp_path / "v.st"
    )
    assert (report.frames, report.frames_given, report.frames_made) == (33, 21, 12)
    assert (report.first_frames_left_out, report.last_frames_left_out) == (3, 0)
    latents = load_file(tmp_path / "v.st")["latents"]
    given = StreamingVaeEncoder(pipeline.vae).encode(read_video(video)[None, 3:])[0]
    assert torch.equal(latents[:6], given)
    expected = VideoWriter(tmp_path / "expected.mp4")
    for chunk in pipeline.stream(PROMPT, seed=5, num_frames=12, policy="full", continue_from=given):
        expected.write(chunk.frames[0])
    assert torch.equal(read_video(request.path), read_video(expected.finish()))
    document = json.loads(json.dumps(report.to_json()))
    assert document["frames_given"] == 21
    assert document["given_ms"] > 0
    assert document["fps_diffusion"] == pytest.approx(1e3 * 12 / report.diffusion_ms, abs=1e-3)


def test_what_is_left_out_of_latents_is_made_anew(pipeline, tmp_path):
    latents = torch.randn(5, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    source = write_latents(tmp_path / "l.st", latents)
    _, report = run(pipeline, tmp_path / "v.mp4", 12, continue_from=source)
    assert (report.frames, report.frames_given, report.last_frames_left_out) == (21, 9, 8)
    assert (report.width, report.height) == (48, 32)


def test_times_of_what_is_given_are_in_no_speed(pipeline, tmp_path):
    _, report = run(pipeline, tmp_path / "v.mp4", 12)
    assert (report.given_ms, report.frames_given, report.continue_from) == (0, 0, None)
    latents = write_latents(tmp_path / "l.st", torch.zeros(30, 16, 8, 12))
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "w.mp4", num_frames=36, continue_from=latents)
    given = generate_video(pipeline, request, on_progress=kill_after(2, KeyboardInterrupt))  # two of its ten chunks
    assert (given.interrupted, given.frames, given.frames_given, given.frames_made) == (True, 21, 21, 0)
    assert (given.diffusion_ms, given.decode_ms, given.fps_diffusion, given.fps_end_to_end) == (0, 0, 0, 0)
    assert given.given_ms > 0


@pytest.mark.parametrize("kind", ["latents", "video"])
@pytest.mark.parametrize("died_after", [0, 1, 2, 3])
def test_resumed_file_equals_uninterrupted_one(pipeline, tmp_path, died_after, kind, monkeypatch):
    schedule = (ScheduledPrompt(text="a red circle"), ScheduledPrompt(at_seconds=0.5, text="a blue square"))
    source = (
        write_video(tmp_path / "s.mp4", 23)
        if kind == "video"
        else write_latents(tmp_path / "s.st", torch.randn(7, 16, 8, 12, generator=torch.Generator().manual_seed(0)))
    )
    settings = {"prompts": schedule, "num_frames": 24, "continue_from": source}
    whole = VideoRequest(path=tmp_path / "whole.mp4", latents_path=tmp_path / "whole.l", **settings)
    generate_video(pipeline, whole)
    cut = VideoRequest(path=tmp_path / "cut.mp4", latents_path=tmp_path / "cut.l", **settings)
    monkeypatch.setattr("forcing_kv.video.VideoWriter.discard", lambda _: None)  # the dead tidy nothing up
    with pytest.raises(Killed):
        generate_video(pipeline, cut, on_progress=kill_after(died_after))
    assert not cut.path.exists()
    report = generate_video(pipeline, cut, resume=True)
    assert (report.frames, report.frames_given) == (45, 21)
    assert report.frames_made == (24 if died_after < 3 else 12)
    assert cut.path.read_bytes() == whole.path.read_bytes()
    assert torch.equal(load_file(cut.latents_path)["latents"], load_file(whole.latents_path)["latents"])


def test_resume_refuses_another_source(pipeline, tmp_path):
    source = write_latents(tmp_path / "l.st", torch.zeros(6, 16, 8, 12))
    settings = {"prompts": PROMPT, "path": tmp_path / "v.mp4", "num_frames": 12}
    with pytest.raises(Killed):
        generate_video(pipeline, VideoRequest(continue_from=source, **settings), on_progress=kill_after(1))
    other = write_latents(tmp_path / "other.st", torch.zeros(6, 16, 8, 12))
    for request in (VideoRequest(continue_from=other, **settings), VideoRequest(**settings)):
        with pytest.raises(OutputError, match=r"asked for with continue_from 'l.st \(sha256 [0-9a-f]{16}\)', not"):
            generate_video(pipeline, request, resume=True)
    write_latents(source, torch.ones(6, 16, 8, 12))
    with pytest.raises(OutputError, match="asked for with continue_from"):
        generate_video(pipeline, VideoRequest(continue_from=source, **settings), resume=True)
    write_latents(source, torch.zeros(6, 16, 8, 12))
    assert generate_video(pipeline, VideoRequest(continue_from=source, **settings), resume=True).frames == 33


def test_a_video_can_be_made_longer_in_place(pipeline, tmp_path):
    latents_path = tmp_path / "v.st"
    for expected in (9, 21, 33):
        request = VideoRequest(
            prompts=PROMPT,
            path=tmp_path / "v.mp4",
            num_frames=9,
            latents_path=latents_path,
            continue_from=latents_path if latents_path.exists() else None,
        )
        assert generate_video(pipeline, request, overwrite=True).frames == expected
    whole = pipeline.generate(PROMPT, num_frames=33)
    expected = VideoWriter(tmp_path / "expected.mp4")
    for chunk in whole[0].split([9, 12, 12]):
        expected.write(chunk)
    assert torch.equal(read_video(request.path), read_video(expected.finish()))
    assert sorted(os.listdir(tmp_path)) == ["expected.mp4", "v.mp4", "v.st"]
