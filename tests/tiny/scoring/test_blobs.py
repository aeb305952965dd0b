import pytest
import torch

from drawn import drawn, scene_with
from forcing_kv.tiny.scoring.blobs import find_blobs
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, HEIGHT, WIDTH

RED = torch.tensor(COLOURS["red"], dtype=torch.uint8)


def empty(num_frames=16):
    return torch.full((num_frames, HEIGHT, WIDTH, 3), 120, dtype=torch.uint8)


def test_the_two_largest_areas_are_told_apart():
    video = empty()
    video[:, 10:30, 20:60] = RED
    video[:, 50:60, 100:110] = RED
    video[:, 80:84, 80:84] = RED
    blobs = find_blobs(video)
    assert blobs.area[0].tolist() == [800, 100]
    assert blobs.total_area[0] == 916
    assert blobs.box[0].tolist() == [[20, 10, 60, 30], [100, 50, 110, 60]]
    assert blobs.centre[0].tolist() == [[40, 20], [105, 55]]
    assert not blobs.is_cut.any()


def test_a_winding_area_is_one():
    video = empty()
    for column in range(4, 150, 8):
        video[:, 4:90, column : column + 4] = RED
        end = 4 if column % 16 == 4 else 86
        video[:, end : end + 4, column : column + 12] = RED
    blobs = find_blobs(video)
    assert blobs.area[0, 0] == blobs.total_area[0]
    assert blobs.area[0, 1] == 0


def test_the_edge_that_is_touched_is_told():
    video = empty()
    video[:, 40:60, :10] = RED
    video[:, 90:, 80:88] = RED
    blobs = find_blobs(video)
    assert blobs.at_border[0].tolist() == [[True, False, False, False], [False, False, False, True]]


def test_nothing_has_no_area():
    blobs = find_blobs(empty())
    assert blobs.area.sum() == 0
    assert not blobs.mask.any()
    assert blobs.ground.all()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("texture", ["plain", "striped", "checkered"])
def test_colours_of_object_and_ground(background, texture):
    video = drawn(scene_with(colour="green", background=background, texture=texture, camera="still"), 16)
    blobs = find_blobs(video)
    assert torch.allclose(blobs.colour[:, 0], torch.tensor(COLOURS["green"]).float(), atol=1)
    assert torch.allclose(blobs.ground_colour, torch.tensor(BACKGROUNDS[background]).float(), atol=6)
