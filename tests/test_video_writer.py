"""What is written comes back; what is interrupted can go on."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import pytest
import torch

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.output_files import atomic_write
from forcing_kv.video import VideoWriter, probe, read_video
from forcing_kv.video.writer import partial_folder, snapshot_path

METADATA = {"prompt": "a red circle", "seed": 3, "model": "tiny", "policy": "forcing-kv", "version": "0.1.0"}


def moving_gradient(num_frames: int, height: int = 64, width: int = 96, start: int = 0) -> torch.Tensor:
    """[T, H, W, 3] uint8: smooth in space, moving in time, another slope per channel."""
    t = torch.arange(start, start + num_frames).view(-1, 1, 1)
    y = torch.arange(height).view(1, -1, 1) / height
    x = torch.arange(width).view(1, 1, -1) / width
    channels = [
        torch.sin(3 * x + t / 9).expand(num_frames, height, width),
        torch.cos(2 * y + t / 11).expand(num_frames, height, width),
        torch.sin(x + y + t / 7),
    ]
    return (torch.stack(channels, dim=-1) * 90 + 128).round().to(torch.uint8)


def write_all(writer: VideoWriter, frames: torch.Tensor, chunk_sizes: list[int]) -> None:
    for chunk in frames.split(chunk_sizes):
        writer.write(chunk)


@pytest.mark.parametrize(("height", "width", "fps"), [(64, 96, 16), (50, 34, 24), (272, 304, 8)])
def test_frames_size_rate_and_metadata_come_back(tmp_path, height, width, fps):
    path = tmp_path / "video.mp4"
    frames = moving_gradient(33, height, width)
    writer = VideoWriter(path, fps=fps, title="a red circle", metadata=METADATA)
    write_all(writer, frames, [9, 12, 12])
    assert writer.num_frames == 33
    assert writer.finish() == path
    info = probe(path)
    assert (info.num_frames, info.fps, info.width, info.height) == (33, fps, width, height)
    assert info.metadata["title"] == "a red circle"
    assert json.loads(info.metadata["comment"]) == METADATA
    difference = (read_video(path).int() - frames.int()).abs()
    assert difference.float().mean() < 2.5
    assert difference.max() <= 24
    assert os.listdir(tmp_path) == ["video.mp4"]


def test_timestamps_rise_by_one_frame_and_segments_start_with_key_frames(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4")
    write_all(writer, moving_gradient(25), [9, 1, 12, 3])
    with av.open(str(writer.finish())) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        packets = [packet for packet in container.demux(stream) if packet.size]
    times = [float(packet.pts * packet.time_base) for packet in packets]
    assert times == pytest.approx([index / 16 for index in range(25)])
    assert [packet.dts for packet in packets] == [packet.pts for packet in packets]
    assert {0, 9, 10, 22} <= {index for index, packet in enumerate(packets) if packet.is_keyframe}


def test_prompt_of_many_letters_and_lines_comes_back(tmp_path):
    prompt = "une rivière « bleue »\nund ein Fuß 🦊 " + "very long " * 300
    writer = VideoWriter(tmp_path / "video.mp4", title=prompt, metadata={"prompt": prompt})
    writer.write(moving_gradient(3))
    metadata = probe(writer.finish()).metadata
    assert metadata["title"] == prompt
    assert json.loads(metadata["comment"]) == {"prompt": prompt}


def test_resumed_video_equals_uninterrupted_one(tmp_path):
    frames = moving_gradient(33)
    whole = VideoWriter(tmp_path / "whole.mp4", metadata=METADATA)
    write_all(whole, frames, [9, 12, 12])
    whole.finish()

    path = tmp_path / "cut.mp4"
    write_all(VideoWriter(path, metadata=METADATA), frames[:21], [9, 12])
    (partial_folder(path) / ".segment-00002.mp4.tmp").write_bytes(b"half a segment")
    resumed = VideoWriter.resume(path, metadata=METADATA)
    assert (resumed.num_segments, resumed.num_frames) == (2, 21)
    resumed.keep_segments(1)  # the snapshot lags one chunk behind
    assert (resumed.num_segments, resumed.num_frames) == (1, 9)
    write_all(resumed, frames[9:], [12, 12])
    resumed.finish()
    assert torch.equal(read_video(path), read_video(tmp_path / "whole.mp4"))
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["cut.mp4", "whole.mp4"]


def test_killed_process_leaves_no_video_but_one_that_can_be_resumed(tmp_path):
    path = tmp_path / "video.mp4"
    script = textwrap.dedent(
        """
        import sys, time
        sys.path.insert(0, sys.argv[2])
        from test_video_writer import METADATA, moving_gradient
        from forcing_kv.video import VideoWriter
        writer = VideoWriter(sys.argv[1], metadata=METADATA)
        for index in range(3):
            writer.write(moving_gradient(6, start=6 * index))
        print("written", flush=True)
        time.sleep(60)
        """
    )
    arguments = [sys.executable, "-c", script, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    writer = VideoWriter.resume(path, metadata=METADATA)
    writer.write(moving_gradient(6, start=18))
    frames = read_video(writer.finish())
    assert (frames.int() - moving_gradient(24).int()).abs().float().mean() < 2.5


def test_interrupted_video_is_made_of_what_is_there(tmp_path):
    """What a driver does on Ctrl-C: `finish` with the chunks so far."""
    writer = VideoWriter(tmp_path / "video.mp4")
    try:
        for index in range(5):
            if index == 2:
                raise KeyboardInterrupt
            writer.write(moving_gradient(4, start=4 * index))
    except KeyboardInterrupt:
        writer.finish()
    assert probe(tmp_path / "video.mp4").num_frames == 8


def test_same_frames_give_the_same_bytes(tmp_path):
    """Noise of many kinds in the memory that the encoder is given must not reach the file."""
    frames = torch.randint(0, 256, (8, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    writer = VideoWriter(tmp_path / "video.mp4")
    contents = set()
    for _ in range(100):
        writer.write(frames)
        contents.add((writer.partial_folder / f"segment-{writer.num_segments - 1:05d}.mp4").read_bytes())
    assert len(contents) == 1


def test_no_chunk_no_file(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4")
    with pytest.raises(OutputError, match="no chunk was finished"):
        writer.finish()
    assert os.listdir(tmp_path) == []


def test_existing_video_is_refused_and_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists: choose another name, or replace it with --overwrite"):
        VideoWriter(path)
    writer = VideoWriter(path, overwrite=True)
    writer.write(moving_gradient(3))
    assert path.read_bytes() == b"precious"
    writer.finish()
    assert probe(path).num_frames == 3


def test_unfinished_video_is_not_dropped_by_accident(tmp_path):
    path = tmp_path / "video.mp4"
    VideoWriter(path).write(moving_gradient(3))
    with pytest.raises(OutputError, match=r"--resume, or start over with --overwrite"):
        VideoWriter(path)
    assert (partial_folder(path) / "segment-00000.mp4").exists()
    writer = VideoWriter(path, overwrite=True)
    assert not (partial_folder(path) / "segment-00000.mp4").exists()
    assert writer.num_segments == 0


def test_resume_refusals(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(OutputError, match="no unfinished video to resume"):
        VideoWriter.resume(path)
    VideoWriter(path, metadata=METADATA).write(moving_gradient(3))
    with pytest.raises(OutputError, match="seed 3, not 4"):
        VideoWriter.resume(path, metadata={**METADATA, "seed": 4})
    with pytest.raises(OutputError, match="fps 16, not 8"):
        VideoWriter.resume(path, fps=8, metadata=METADATA)
    with pytest.raises(OutputError, match="holds 1 segments where its snapshot needs 2"):
        VideoWriter.resume(path, metadata=METADATA).keep_segments(2)


def test_path_refusals_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="does not exist: create it first"):
        VideoWriter(tmp_path / "missing" / "video.mp4")
    with pytest.raises(OutputError, match=r"is no MP4.*video\.mp4"):
        VideoWriter(tmp_path / "video.avi")
    with pytest.raises(OutputError, match="is a folder"):
        VideoWriter(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        VideoWriter(tmp_path / "file" / "video.mp4")
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write everywhere
    with pytest.raises(OutputError, match="not writable"):
        VideoWriter(tmp_path / "video.mp4")
    assert os.listdir(tmp_path) == ["file"]


def test_frame_refusals_name_the_shape(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4")
    with pytest.raises(ConfigurationError, match=r"97x65 cannot be written.*96x64"):
        writer.write(moving_gradient(3, 65, 97))
    with pytest.raises(ConfigurationError, match=r"torch\.float32"):
        writer.write(moving_gradient(3).float())
    with pytest.raises(ConfigurationError, match="at least one frame"):
        writer.write(moving_gradient(3)[:0])
    writer.write(moving_gradient(3))
    with pytest.raises(ConfigurationError, match="64x48 does not fit a video of 96x64"):
        writer.write(moving_gradient(3, 48, 64))
    with pytest.raises(ConfigurationError, match="at least 1"):
        VideoWriter(tmp_path / "other.mp4", fps=0)


def test_full_disk_is_named_and_keeps_the_segments(tmp_path, monkeypatch):
    writer = VideoWriter(tmp_path / "video.mp4", metadata=METADATA)
    writer.write(moving_gradient(3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _disk_full)
        with pytest.raises(OutputError, match=r"segment-00001\.mp4 cannot be written: the disk is full"):
            writer.write(moving_gradient(3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _disk_full)
        with pytest.raises(OutputError, match=r"video\.mp4 cannot be written: the disk is full.*--resume"):
            writer.finish()
    assert not (tmp_path / "video.mp4").exists()
    resumed = VideoWriter.resume(tmp_path / "video.mp4", metadata=METADATA)
    assert probe(resumed.finish()).num_frames == 3


def test_atomic_write_leaves_the_old_file_or_the_new_one(tmp_path):
    path = snapshot_path(tmp_path / "video.mp4")
    path.parent.mkdir()
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]


def _write_half(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
