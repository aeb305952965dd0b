"""Which scenes there are, and that the held-out ones stay what they are."""

import random
from collections import Counter
from itertools import islice

import pytest

from forcing_kv.tiny.scenes import is_held_out, random_clip, random_scene, random_scenes
from forcing_kv.tiny.world import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    MEMORY_MOTIONS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    SPEEDS,
    TEXTURES,
    Scene,
    Thing,
)


@pytest.mark.parametrize("memory", [False, True])
def test_every_name_is_drawn(memory):
    rng = random.Random(0)
    scenes = [random_scene(rng, memory=memory) for _ in range(3000)]
    assert {scene.motion for scene in scenes} == set(MEMORY_MOTIONS if memory else MOTIONS)
    assert {scene.needs_memory for scene in scenes} == {memory}
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.size for thing in things} == set(SIZES)
    assert {scene.speed for scene in scenes} == ({"slowly"} if memory else set(SPEEDS))
    assert {scene.camera for scene in scenes} == ({"still"} if memory else set(CAMERAS))
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.texture for scene in scenes} == set(TEXTURES)
    places = {(scene.motion, scene.place) for scene in scenes}
    if memory:
        assert {place for motion, place in places if motion == "crossing"} == {"center"}
        assert {place for motion, place in places if motion != "crossing"} == {"left", "right"}
    else:
        assert places == {(motion, place) for motion in MOTIONS for place in PLACES}
    for name, count in Counter(scene.texture for scene in scenes).items():
        assert count == pytest.approx(1000, abs=120), name


def test_half_of_the_patterned_scenes_pan_either_way():
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(3000)]
    cameras = Counter(scene.camera for scene in scenes if scene.texture != "plain")
    share = {camera: count / sum(cameras.values()) for camera, count in cameras.items()}
    assert share == pytest.approx({"still": 0.5, "panning left": 0.25, "panning right": 0.25}, abs=0.04)


def test_objects_that_cross_can_be_told_apart_by_colour():
    crossing = [scene for scene in islice(random_scenes(2, memory=True), 1500) if scene.motion == "crossing"]
    assert len(crossing) > 300
    assert all(first.colour != second.colour for first, second in (scene.things for scene in crossing))
    assert any(
        first.shape == second.shape and first.size == second.size for first, second in (s.things for s in crossing)
    )


@pytest.mark.parametrize("memory", [False, True])
def test_about_one_scene_in_ten_is_held_out(memory):
    scenes = list(islice(random_scenes(5, memory=memory), 6000))
    assert len(set(scenes)) == 6000
    assert sum(map(is_held_out, scenes)) / 6000 == pytest.approx(0.1, abs=0.012)


def test_the_split_never_changes():
    """What these weights were trained on must not become what they are tested on."""
    held_out = [
        Scene(
            things=(Thing(colour="red", shape="square", size="small"),),
            motion="circling clockwise",
            speed="quickly",
            place="right",
            background="black",
        ),
        Scene(
            things=(Thing(colour="orange", shape="circle"),),
            motion="moving leftward",
            place="bottom",
            background="white",
            texture="checkered",
            camera="panning right",
        ),
        Scene(
            things=(Thing(colour="green", shape="cross", size="small"),),
            motion="leaving and returning",
            place="left",
        ),
        Scene(
            things=(
                Thing(colour="blue", shape="square", size="small"),
                Thing(colour="purple", shape="square"),
            ),
            motion="crossing",
            background="black",
            texture="checkered",
        ),
    ]
    trained = [
        Scene(
            things=(Thing(colour="green", shape="cross", size="small"),),
            motion="bouncing vertically",
            place="right",
            background="black",
        ),
        Scene(
            things=(Thing(colour="purple", shape="square"),),
            motion="passing behind a pillar",
            place="left",
            background="black",
            texture="striped",
        ),
    ]
    assert [is_held_out(scene) for scene in held_out + trained] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("memory", [False, True])
def test_scenes_of_one_side_of_the_split_are_of_that_side_and_distinct(memory):
    for held_out in (True, False):
        scenes = list(islice(random_scenes(4, memory=memory, held_out=held_out), 200))
        assert {is_held_out(scene) for scene in scenes} == {held_out}
        assert len(set(scenes)) == 200
        assert list(islice(random_scenes(4, memory=memory, held_out=held_out), 200)) == scenes
        assert list(islice(random_scenes(5, memory=memory, held_out=held_out), 200)) != scenes


@pytest.mark.parametrize("memory", [False, True])
def test_training_clips_are_never_of_held_out_scenes_and_jitter_about_their_speed(memory):
    rng = random.Random(3)
    clips = [random_clip(rng, memory=memory) for _ in range(2000)]
    assert not any(is_held_out(clip.scene) for clip in clips)
    factors = sorted(clip.speed_factor for clip in clips)
    assert factors[0] == pytest.approx(0.9, abs=2e-3)
    assert factors[1000] == pytest.approx(1.0, abs=0.01)
    assert factors[-1] == pytest.approx(1.1, abs=2e-3)
    assert all(clip.start is None and clip.start_offset == 0 for clip in clips)
