import pytest
import torch

from drawn import SCENE, drawn, held_out, scene_with, worn
from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.scenes import random_scenes
from forcing_kv.tiny.scoring.free_scenes import look
from forcing_kv.tiny.scoring.switches import score_switch
from forcing_kv.tiny.world import Clip, Scene, Thing, draw

AT, NUM_FRAMES = 69, 197
AFTER = Scene(
    things=(Thing(colour="blue", shape="cross", size="small"),),
    motion="circling clockwise",
    background="white",
    texture="checkered",
)


def switched(before, after, *, late_frames=0):
    clip = Clip(scene=before)
    at = AT + late_frames
    return torch.cat([draw([clip], at), draw([clip.switched(after, at)], NUM_FRAMES - at)], dim=1)[0]


def wrong(video, after=AFTER):
    return {name for name, right in score_switch(video, after, AT).as_dict().items() if not right}


@pytest.mark.parametrize("worn_out", [False, True])
def test_drawn_switches_are_followed(worn_out):
    scenes = held_out(12)
    for before, after in zip(scenes[::2], scenes[1::2], strict=True):
        video = switched(before, after)
        assert wrong(worn(video) if worn_out else video, after) == set(), after


def test_an_object_that_goes_on_along_the_very_edge_is_whole_enough():
    triangle = scene_with(shape="triangle", motion="moving rightward")
    assert wrong(torch.cat([drawn(SCENE, AT), drawn(triangle, NUM_FRAMES - AT, start=(80.0, 76.0))]), triangle) == set()


@pytest.mark.parametrize("way", ["upward", "downward", "rightward", "leftward"])
def test_the_motion_is_told_wherever_a_slow_object_is_when_the_prompt_switches(way):
    scene = scene_with(motion=f"moving {way}", size="large", shape="cross", speed="slowly")
    for x, y in ((20.0, 20.0), (60.0, 40.0), (100.0, 56.0), (140.0, 76.0)):
        assert wrong(torch.cat([drawn(SCENE, AT), drawn(scene, NUM_FRAMES - AT, start=(x, y))]), scene) == set(), (x, y)


def test_the_colour_is_that_of_the_object_and_not_of_a_sliver_at_the_edge():
    scene = scene_with(motion="moving leftward", speed="quickly", colour="yellow")
    clip = [
        drawn(scene_with(scene, colour=colour), NUM_FRAMES - AT, start=(20.0, 48.0)) for colour in ("yellow", "orange")
    ]
    is_cut = look(clip[0], scene).blobs.is_cut[:, 0]
    assert 5 < is_cut[16:32].sum() < 16
    for cut, whole, expected in ((1, 0, set()), (0, 1, {"followed", "colour"})):
        video = torch.where(is_cut[:, None, None, None], clip[cut], clip[whole])
        assert wrong(torch.cat([drawn(SCENE, AT), video]), scene) == expected


def test_up_to_a_second_late_is_in_time():
    assert wrong(switched(SCENE, AFTER, late_frames=15)) == set()
    assert {"followed", "colour", "background"} <= wrong(switched(SCENE, AFTER, late_frames=24))


def test_a_switch_that_is_not_followed_is_wrong_in_what_differs():
    everything = {"followed", "colour", "background", "texture", "shape", "size", "motion", "speed"}
    assert wrong(drawn(SCENE, NUM_FRAMES)) == everything


@pytest.mark.parametrize(
    ("field", "value", "followed"),
    [
        ("colour", "red", False),
        ("shape", "circle", False),
        ("background", "gray", False),
        ("motion", "circling counterclockwise", False),
        ("size", "large", True),
        ("speed", "quickly", True),
        ("texture", "striped", True),
    ],
)
def test_one_wrong_attribute_is_found_and_no_other(field, value, followed):
    expected = {field} if followed else {field, "followed"}
    assert wrong(switched(SCENE, scene_with(AFTER, **{field: value}))) == expected


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ConfigurationError, match="need 128"):
        score_switch(drawn(SCENE, 100), AFTER, 40)
    memory = next(random_scenes(0, memory=True))
    with pytest.raises(ConfigurationError, match="memory scene"):
        score_switch(drawn(SCENE, 100), memory, 10)
