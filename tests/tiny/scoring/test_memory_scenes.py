from dataclasses import replace

import pytest
import torch

from drawn import drawn, held_out, scene_with, worn
from forcing_kv.errors import UnknownNameError
from forcing_kv.tiny.scoring.memory_scenes import MEMORY_SECONDS, score_memory
from forcing_kv.tiny.world import FRAMES_PER_SECOND, MEMORY_MOTIONS, Scene, Thing

NUM_FRAMES = round(MEMORY_SECONDS * FRAMES_PER_SECOND)
RED, BLUE = Thing(colour="red", shape="square"), Thing(colour="blue", shape="circle", size="small")
PILLAR = Scene(things=(RED,), motion="passing behind a pillar", place="left", texture="checkered")
RETURNING = Scene(things=(RED,), motion="leaving and returning", place="right", texture="striped", background="brown")
CROSSING = Scene(things=(RED, BLUE), motion="crossing", background="white")
HIDDEN_FRAME = {PILLAR: 50, RETURNING: 79, CROSSING: 45}  # in the middle of the first time
SCENES = tuple(HIDDEN_FRAME)


def changed(scene, **fields):
    """The scene, its first object another one from the middle of its first absence on."""
    at = HIDDEN_FRAME[scene]
    return torch.cat([drawn(scene, at), drawn(scene_with(scene, **fields), NUM_FRAMES - at, first_frame=at)])


@pytest.mark.parametrize("scene", held_out(9, memory=True), ids=lambda scene: " ".join(scene.names()))
def test_drawn_clips_keep_everything(scene):
    result = score_memory(drawn(scene, NUM_FRAMES, speed_factor=0.92), scene.motion)
    assert result.kept
    assert result.num_returns >= 1
    assert {(thing.colour, thing.shape, thing.size) for thing in scene.things} == set(result.before)
    assert not result.swapped


@pytest.mark.parametrize("scene", held_out(6, memory=True, seed=6), ids=lambda scene: " ".join(scene.names()))
def test_so_do_blurred_and_noisy_ones(scene):
    assert score_memory(worn(drawn(scene, NUM_FRAMES, speed_factor=1.08)), scene.motion).kept


@pytest.mark.parametrize("scene", SCENES, ids=MEMORY_MOTIONS)
@pytest.mark.parametrize(
    ("attribute", "value"), [("colour", "green"), ("shape", "triangle"), ("shape", "cross"), ("size", "small")]
)
def test_an_attribute_that_is_not_kept_is_found_and_no_other(scene, attribute, value):
    result = score_memory(changed(scene, **{attribute: value}), scene.motion)
    assert result.came_back
    assert not result.kept
    assert [name for name in ("colour", "shape", "size") if not getattr(result, name)] == [attribute]


@pytest.mark.parametrize("scene", SCENES, ids=MEMORY_MOTIONS)
def test_an_object_that_never_comes_back_is_found(scene):
    video = drawn(scene, NUM_FRAMES)
    video[HIDDEN_FRAME[scene] :] = video[HIDDEN_FRAME[scene]].clone()
    result = score_memory(video, scene.motion)
    assert result.seen
    assert not result.came_back
    assert not result.kept


@pytest.mark.parametrize(("late_frames", "came_back"), [(16, True), (40, False)])
@pytest.mark.parametrize("scene", SCENES, ids=MEMORY_MOTIONS)
def test_a_little_late_is_in_time(scene, late_frames, came_back):
    video, at = drawn(scene, NUM_FRAMES), HIDDEN_FRAME[scene]
    waiting = video[at : at + 1].expand(late_frames, -1, -1, -1)
    result = score_memory(torch.cat([video[:at], waiting, video[at:]])[:NUM_FRAMES], scene.motion)
    assert result.came_back == came_back
    assert result.kept == came_back


def test_swapped_identities_are_found():
    at = HIDDEN_FRAME[CROSSING]
    swapped = replace(CROSSING, things=(BLUE, RED))
    video = torch.cat([drawn(CROSSING, at), drawn(swapped, NUM_FRAMES - at, first_frame=at)])
    result = score_memory(video, "crossing")
    assert result.came_back
    assert result.swapped
    assert not result.kept
    assert not result.colour


def test_the_second_return_counts_too():
    first_return, second_absence = 80, 150  # the first one, of which it has turned at the left, is over by then
    scene = replace(PILLAR, things=(BLUE,))
    video = drawn(scene, 240)
    assert score_memory(video, scene.motion).num_returns == 2
    video[second_absence:] = drawn(scene_with(scene, colour="green"), 240)[second_absence:]
    result = score_memory(video, scene.motion)
    assert result.after[0] == result.before
    assert not result.kept
    assert score_memory(video[: first_return + 40], scene.motion).kept


def test_coming_out_at_the_wrong_side_is_not_coming_back():
    video = drawn(PILLAR, NUM_FRAMES)
    at = HIDDEN_FRAME[PILLAR]
    video[at:] = video[at:].flip(2)
    assert not score_memory(video, PILLAR.motion).came_back


def test_an_object_that_was_never_seen_is_not_kept():
    video = drawn(RETURNING, NUM_FRAMES)[79:80].repeat(NUM_FRAMES, 1, 1, 1)
    for motion in MEMORY_MOTIONS:
        result = score_memory(video, motion)
        assert not result.seen
        assert not result.kept


def test_one_of_two_objects_may_not_vanish():
    video = drawn(CROSSING, NUM_FRAMES)
    alone = Scene(things=(RED,), motion="bouncing sideways", background="white")
    video[HIDDEN_FRAME[CROSSING] :] = drawn(alone, NUM_FRAMES)[HIDDEN_FRAME[CROSSING] :]
    assert not score_memory(video, "crossing").came_back


def test_an_object_that_is_never_hidden_is_not_kept():
    free = Scene(things=(RED,), motion="bouncing sideways")
    assert not score_memory(drawn(free, NUM_FRAMES), "passing behind a pillar").came_back
    assert not score_memory(drawn(free, NUM_FRAMES), "leaving and returning").came_back


def test_other_motions_are_refused():
    with pytest.raises(UnknownNameError, match="crossing"):
        score_memory(drawn(PILLAR, 20), "bouncing sideways")
