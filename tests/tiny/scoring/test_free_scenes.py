import pytest
import torch

from drawn import SCENE, drawn, held_out, scene_with, worn
from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.scoring.free_scenes import ATTRIBUTES, score
from forcing_kv.tiny.world import HEIGHT, MOTIONS, WIDTH, Scene, Thing, coverage, draw, ground
from forcing_kv.tiny.world import Clip as WorldClip


def wrong(video, scene=SCENE):
    result = score(video, scene)
    return {name for name in ATTRIBUTES if not getattr(result, name)} | ({"collapsed"} if result.collapsed else set())


def empty(scene=SCENE, num_frames=320):
    return ground(WorldClip(scene=scene), num_frames).round().to(torch.uint8)


def with_extra(video, scene):
    """A second object drawn over a video."""
    clip = WorldClip(scene=scene)
    share = coverage(clip, len(video))[0][..., None]
    return torch.where(share > 0.5, draw([clip], len(video))[0], video)


@pytest.mark.parametrize("scene", held_out(8), ids=lambda scene: " ".join(scene.names()))
def test_drawn_clips_are_right_in_everything(scene):
    assert wrong(drawn(scene, speed_factor=0.92), scene) == set()


@pytest.mark.parametrize("scene", held_out(4, seed=6), ids=lambda scene: " ".join(scene.names()))
def test_so_are_pieces_from_the_middle_of_a_stream(scene):
    assert wrong(drawn(scene, first_frame=640, speed_factor=1.08), scene) == set()


@pytest.mark.parametrize("scene", held_out(4, seed=7), ids=lambda scene: " ".join(scene.names()))
def test_so_are_blurred_and_noisy_ones(scene):
    assert wrong(worn(drawn(scene)), scene) == set()


@pytest.mark.parametrize("motion", MOTIONS)
def test_so_are_five_seconds_of_every_motion(motion):
    scene = scene_with(motion=motion, shape="triangle")
    assert wrong(drawn(scene, 80), scene) == set()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("colour", {"colour": "orange"}),
        ("colour", {"colour": "purple"}),
        ("background", {"background": "brown"}),
        ("texture", {"texture": "checkered"}),
        ("camera", {"camera": "panning right"}),
        ("camera", {"camera": "still"}),
        ("shape", {"shape": "circle"}),
        ("shape", {"shape": "triangle"}),
        ("shape", {"shape": "cross"}),
        ("size", {"size": "small"}),
        ("motion", {"motion": "bouncing vertically"}),
        ("motion", {"motion": "circling clockwise"}),
        ("speed", {"speed": "slowly"}),
    ],
)
def test_one_wrong_attribute_is_found_and_no_other(name, other):
    assert wrong(drawn(scene_with(**other))) == {name}


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("moving rightward", "moving leftward"),
        ("moving leftward", "moving rightward"),
        ("moving upward", "moving downward"),
        ("moving downward", "moving upward"),
        ("circling clockwise", "circling counterclockwise"),
        ("circling counterclockwise", "circling clockwise"),
    ],
)
def test_the_wrong_direction_is_found(asked, shown):
    assert wrong(drawn(scene_with(motion=shown)), scene_with(motion=asked)) == {"motion"}


@pytest.mark.parametrize("speed", ["slowly", "quickly"])
def test_what_bounces_is_not_what_goes_straight(speed):
    bouncing = scene_with(motion="bouncing sideways", speed=speed)
    straight = scene_with(motion="moving rightward", speed=speed)
    assert "motion" in wrong(drawn(bouncing), straight)
    assert "motion" in wrong(drawn(straight), bouncing)


def test_a_vanished_object_is_a_collapse():
    video = torch.cat([drawn(SCENE)[:200], empty()[200:]])
    result = score(video, SCENE)
    assert result.collapsed
    assert not result.visible
    assert result.shares["visible"] == pytest.approx(200 / 320, abs=0.01)


def test_what_leaves_the_picture_must_come_in_again():
    scene = scene_with(motion="moving upward")
    video = drawn(scene)
    assert score(video, scene).visible
    out = int((coverage(WorldClip(scene=scene), 320)[0].sum(dim=(1, 2)) < 60).nonzero()[0])
    result = score(torch.cat([video[:out], empty(scene)[out:]]), scene)
    assert not result.visible
    assert result.collapsed


def test_what_does_not_go_straight_may_not_leave_the_picture():
    found = wrong(drawn(scene_with(motion="moving upward")))
    assert {"motion", "visible"} <= found
    assert not {"colour", "shape", "size", "collapsed"} & found


def test_a_split_object_is_not_visible():
    scene = scene_with(motion="bouncing vertically")
    left, right = (drawn(scene, start=(x, 48.0)) for x in (50.0, 100.0))
    halves = torch.cat([left[:, :, : WIDTH // 2], right[:, :, WIDTH // 2 :]], dim=2)
    assert "visible" in wrong(halves, scene)


def test_an_object_torn_apart_is_not_visible():
    video = drawn(SCENE)
    centres = WorldClip(scene=SCENE).centres(320)[0, :, 0].round().long()
    torn = empty()
    for frame, x in enumerate(centres.tolist()):  # each half is four pixels further out
        torn[frame, :, : x - 4] = video[frame, :, 4:x]
        torn[frame, :, x + 4 :] = video[frame, :, x : WIDTH - 4]
    assert "visible" in wrong(torn)


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_a_second_object_is_found(colour):
    scene = scene_with(motion="moving rightward", place="bottom", size="small")
    extra = Scene(things=(Thing(colour=colour, shape="circle", size="small"),), motion="bouncing sideways", place="top")
    assert "visible" in wrong(with_extra(drawn(scene), extra), scene)


def test_a_frozen_video_is_a_collapse():
    video = drawn(SCENE)
    video[160:] = video[160].clone()
    assert wrong(video) == {"moving", "motion", "speed", "camera", "collapsed"}


def test_a_background_that_drifts_away_is_a_collapse():
    video = drawn(SCENE)
    video[200:] = drawn(scene_with(background="white"))[200:]
    assert wrong(video) == {"background", "collapsed"}


def test_a_colour_that_changes_on_the_way_is_wrong():
    video = drawn(SCENE)
    video[240:] = drawn(scene_with(colour="green"))[240:]
    assert wrong(video) == {"colour"}


def test_a_shape_that_changes_on_the_way_is_wrong():
    video = drawn(SCENE)
    video[200:] = drawn(scene_with(shape="circle"))[200:]
    assert wrong(video) == {"shape"}


def test_a_turn_in_the_middle_of_the_picture_is_not_going_straight():
    scene = scene_with(motion="moving rightward")
    video = drawn(scene)
    assert "motion" in wrong(torch.cat([video[:160], video[:160].flip(0)]), scene)


def test_a_trembling_object_does_not_move():
    video = drawn(SCENE, 1).repeat(160, 1, 1, 1)
    video[1::2] = video[1::2].roll(1, dims=2)
    assert {"moving", "motion", "speed", "collapsed"} <= wrong(video)


def test_an_empty_picture_is_nothing_but_its_ground():
    assert set(ATTRIBUTES) - wrong(empty()) == {"background", "texture", "camera"}


def test_a_plain_ground_says_nothing_of_the_camera():
    still = scene_with(camera="still")
    assert wrong(drawn(scene_with(camera="still", texture="plain")), still) == {"texture", "camera"}


def test_noise_is_nothing():
    noise = torch.randint(0, 256, (48, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(0))
    assert {"colour", "shape", "visible", "motion"} <= wrong(noise.to(torch.uint8))


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ConfigurationError, match="frames >= 16"):
        score(torch.zeros(4, HEIGHT, WIDTH, 3, dtype=torch.uint8), SCENE)
    with pytest.raises(ConfigurationError, match="96, 160"):
        score(torch.zeros(40, 64, 96, 3, dtype=torch.uint8), SCENE)
    memory = Scene(things=(Thing(colour="red", shape="circle"),), motion="leaving and returning")
    with pytest.raises(ConfigurationError, match="score_memory"):
        score(drawn(memory, 20), memory)
