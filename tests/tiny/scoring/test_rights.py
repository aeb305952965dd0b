from dataclasses import replace

import pytest

from drawn import drawn, held_out, scene_with
from forcing_kv.tiny.scoring.memory_scenes import MEMORY_SECONDS
from forcing_kv.tiny.scoring.rights import memory_rights
from forcing_kv.tiny.world import FRAMES_PER_SECOND, Scene, Thing

NUM_FRAMES = round(MEMORY_SECONDS * FRAMES_PER_SECOND)
RED, BLUE = Thing(colour="red", shape="square"), Thing(colour="blue", shape="circle", size="small")
RETURNING = Scene(things=(RED,), motion="leaving and returning", place="left")
CROSSING = Scene(things=(RED, BLUE), motion="crossing", background="white")


@pytest.mark.parametrize("scene", held_out(6, memory=True, seed=3), ids=lambda scene: " ".join(scene.names()))
def test_all_is_right_with_drawn_memory_scenes(scene):
    rights, _ = memory_rights(drawn(scene, NUM_FRAMES), scene)
    assert {right for right in rights.values() if right is not None} == {True}


@pytest.mark.parametrize(("attribute", "value"), [("colour", "green"), ("shape", "triangle"), ("size", "small")])
@pytest.mark.parametrize("scene", [RETURNING, CROSSING], ids=lambda scene: scene.motion)
def test_what_was_another_from_the_start_is_kept_but_not_as_named(scene, attribute, value):
    rights, details = memory_rights(drawn(scene_with(scene, **{attribute: value}), NUM_FRAMES), scene)
    assert rights["kept"]
    assert not rights["as named"]
    assert len(details["before"]) == len(scene.things)


def test_two_objects_that_lend_each_other_an_attribute_are_not_as_named():
    mixed = replace(CROSSING, things=(replace(RED, shape=BLUE.shape), replace(BLUE, shape=RED.shape)))
    rights, _ = memory_rights(drawn(mixed, NUM_FRAMES), CROSSING)
    assert rights["kept"]
    assert not rights["as named"]


def test_it_does_not_matter_which_of_two_objects_is_on_the_left():
    turned = replace(CROSSING, things=CROSSING.things[::-1])
    rights, _ = memory_rights(drawn(turned, NUM_FRAMES), CROSSING)
    assert rights["as named"]
