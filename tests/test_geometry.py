"""Frames, tokens, bytes, and the seconds they last."""

import pytest

from forcing_kv import ConfigurationError, FrameGeometry
from forcing_kv.geometry import latent_frames, pixel_frames, start_seconds
from forcing_kv.resolution import parse_resolution


def geometry(**changes):
    settings = {"num_layers": 30, "num_heads": 12, "head_dim": 128, "frame_rows": 30, "frame_cols": 52}
    return FrameGeometry(**(settings | changes))


def test_published_sizes():
    assert geometry().frame_tokens == 1560
    assert geometry(frame_rows=68, frame_cols=120).frame_tokens == 8160
    assert geometry().kv_bytes(1, bytes_per_value=2) == pytest.approx(0.288e9, rel=2e-3)
    assert geometry(frame_rows=68, frame_cols=120).kv_bytes(1, bytes_per_value=2) == pytest.approx(1.504e9, rel=1e-3)
    assert geometry().kv_bytes(3, bytes_per_value=2, batch_size=2) == 6 * geometry().kv_bytes(1, bytes_per_value=2)


def test_first_latent_frame_is_one_picture():
    assert [pixel_frames(n) for n in (0, 1, 2, 3, 21)] == [0, 1, 5, 9, 81]
    assert [latent_frames(n) for n in (0, 1, 2, 5, 6, 81)] == [0, 1, 2, 2, 3, 21]
    for pixels in range(1, 60):
        assert pixel_frames(latent_frames(pixels)) >= pixels > pixel_frames(latent_frames(pixels) - 1)
    assert start_seconds(0, 16) == 0
    assert start_seconds(3, 16) == 9 / 16


def test_segments_that_do_not_divide_name_cuts_that_do():
    assert geometry().segment_tokens(6) == 260
    with pytest.raises(
        ConfigurationError, match=r"segments_per_frame=7 does not divide the 1560 tokens.*\[1, 2, 3, 4, 5"
    ):
        geometry().segment_tokens(7)


def test_counts_must_be_positive():
    with pytest.raises(ConfigurationError, match="chunk_frames is 0"):
        geometry(chunk_frames=0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("480p", (832, 480)),
        ("1080p", (1920, 1088)),
        ("480p-portrait", (480, 832)),
        ("720p-portrait", (720, 1280)),
        ("1080p-portrait", (1088, 1920)),
        ("96x64", (96, 64)),
        (" 640X352", (640, 352)),
    ],
)
def test_resolutions(text, size):
    assert parse_resolution(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4k", "unknown resolution '4k'; use WIDTHxHEIGHT"),
        ("1920x1080", "nearest: 1920x1088"),
        ("0x64", "nearest: 16x64"),
    ],
)
def test_bad_resolutions(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_resolution(text)
