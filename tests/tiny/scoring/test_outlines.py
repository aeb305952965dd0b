import pytest
import torch

from drawn import SCENE, drawn, scene_with, worn
from forcing_kv.tiny.scoring.blobs import find_blobs
from forcing_kv.tiny.scoring.outlines import Outlines
from forcing_kv.tiny.world import COLOURS, SHAPES, SIZES, Clip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("background", ["brown", "white"])
def test_every_shape_and_size_is_read_off_half_a_second(shape, size, background):
    video = worn(drawn(scene_with(shape=shape, size=size, background=background), 16))
    fit = Outlines(video, find_blobs(video)).fit(torch.arange(16) < 8)
    assert (fit.shape, fit.size) == (shape, size)
    assert fit.radius == pytest.approx(SIZES[size], rel=0.1)
    assert fit.is_clear


def test_the_centre_is_found_to_a_fraction_of_a_pixel():
    for colour in COLOURS:
        video = drawn(scene_with(colour=colour), 16)
        centre = Outlines(video, find_blobs(video)).centre
        assert torch.allclose(centre, Clip(scene=SCENE).centres(16)[0], atol=0.3)


def test_what_is_no_shape_is_not_clear():
    video = drawn(SCENE, 16)
    video[:, 20:80:10] = 120
    video[:, :, 20:140:10] = 120
    video[:, 44:50] = 120
    fit = Outlines(video, find_blobs(video)).fit(torch.ones(16, dtype=torch.bool))
    assert not fit.is_clear


def test_no_frames_give_no_fit():
    video = drawn(SCENE, 16)
    assert Outlines(video, find_blobs(video)).fit(torch.zeros(16, dtype=torch.bool)) is None
