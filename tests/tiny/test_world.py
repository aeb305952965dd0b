import pytest
import torch

from forcing_kv.errors import UnknownNameError
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, HEIGHT, WIDTH, Scene, all_scenes, centres_of, draw


def test_every_scene_is_there_once():
    scenes = all_scenes()
    assert len(scenes) == len(set(scenes)) == 6 * 3 * 2 * 3 * 2 * 5 * 4


def test_unknown_name_lists_the_choices():
    with pytest.raises(UnknownNameError, match=r"colour 'pink'.*red, green"):
        Scene(colour="pink", shape="circle")


def test_pixels_have_the_colours_asked_for():
    scene = Scene(colour="blue", shape="square", background="white")
    clip = draw([scene], 3)
    assert clip.shape == (1, 3, HEIGHT, WIDTH, 3)
    x, y = centres_of([scene], 3)[0, 2].long().tolist()
    assert tuple(clip[0, 2, y, x].tolist()) == COLOURS["blue"]
    assert tuple(clip[0, 2, 0, 0].tolist()) == BACKGROUNDS["white"]


def test_a_frame_does_not_depend_on_where_the_clip_begins():
    scenes = [
        Scene(colour="red", shape="triangle", motion=motion, speed="quickly")
        for motion in ("sideways", "up and down", "in circles")
    ]
    whole = draw(scenes, 100, speed_factors=[1.05, 0.95, 1.0])
    part = draw(scenes, 20, speed_factors=[1.05, 0.95, 1.0], first_frame=80)
    assert torch.equal(whole[:, 80:], part)


def test_no_object_is_ever_cut_by_the_edge():
    scenes = [scene for scene in all_scenes() if scene.size == "large" and scene.colour == "red"]
    for scene in scenes[::11]:
        clip = draw([scene], 330)[0, ::3].int()
        edges = torch.cat([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], dim=1)
        inked = (edges - torch.tensor(BACKGROUNDS[scene.background])).abs().amax(dim=-1) > 30
        assert inked.sum(dim=1).max() <= 2, scene  # a corner of the triangle may touch


def test_speed_is_the_named_one():
    slow, fast = (
        centres_of([Scene(colour="red", shape="circle", motion="in circles", speed=speed)], 33)[0]
        for speed in ("slowly", "quickly")
    )
    assert (slow[1:] - slow[:-1]).norm(dim=-1).sum() == pytest.approx(32, rel=0.01)
    assert (fast[1:] - fast[:-1]).norm(dim=-1).sum() == pytest.approx(64, rel=0.01)
