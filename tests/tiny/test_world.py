"""What is drawn: where objects are, what hides them, how the ground moves."""

import math
from dataclasses import replace

import pytest
import torch

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.tiny.world import (
    BACKGROUNDS,
    COLOURS,
    HEIGHT,
    MEMORY_MOTIONS,
    MOTIONS,
    PAN_SPEED,
    PLACES,
    SHAPES,
    SIZES,
    SPEEDS,
    TEXTURE_PERIOD,
    WIDTH,
    Clip,
    Region,
    Scene,
    Thing,
    coverage,
    draw,
    filled,
    ground,
    pillar_share,
    visible,
)

RED_CIRCLE = Thing(colour="red", shape="circle")
BLUE_SQUARE = Thing(colour="blue", shape="square", size="small")
DIRECTIONS = {
    "moving rightward": (1, 0),
    "moving leftward": (-1, 0),
    "moving upward": (0, -1),
    "moving downward": (0, 1),
}


def clip_of(motion="bouncing sideways", *, thing=RED_CIRCLE, speed_factor=1.0, **names):
    things = (thing, BLUE_SQUARE) if motion == "crossing" else (thing,)
    return Clip(scene=Scene(things=things, motion=motion, **names), speed_factor=speed_factor)


def longest_run(flags):
    """Most frames in a row that are True."""
    longest = current = 0
    for flag in flags.tolist():
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest


# Free motion


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize(("motion", "direction"), DIRECTIONS.items())
def test_straight_motion_has_its_direction_and_speed_and_comes_in_at_the_other_side(motion, direction, speed, place):
    clip = clip_of(motion, speed=speed, place=place, speed_factor=0.93)
    steps = clip.centres(300)[0].diff(dim=0)
    regular = torch.tensor(direction) * SPEEDS[speed] * 0.93 / 16
    around = regular - torch.tensor(direction) * (torch.tensor([WIDTH, HEIGHT]) + 2 * RED_CIRCLE.radius)
    wrapped = (steps - regular).abs().amax(dim=1) > 1
    torch.testing.assert_close(steps[~wrapped], regular.expand(int((~wrapped).sum()), 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(steps[wrapped], around.expand(int(wrapped.sum()), 2), atol=1e-3, rtol=0)
    way = SPEEDS[speed] * 0.93 * 299 / 16
    assert abs(int(wrapped.sum()) - way / float(around.abs().max())) < 1.001


@pytest.mark.parametrize("motion", DIRECTIONS)
@pytest.mark.parametrize("shape", ["circle", "square", "cross"])
@pytest.mark.parametrize("size", SIZES)
def test_what_wraps_around_is_out_of_sight_for_a_moment_and_comes_back_whole(motion, shape, size):
    thing = Thing(colour="green", shape=shape, size=size)
    area = coverage(clip_of(motion, thing=thing, speed="quickly"), 200)[0].sum(dim=(1, 2))
    whole = float(area.max())
    jumps = area.diff().abs()
    # No more than the rows or columns that it moves by in a frame appear or vanish at once.
    assert jumps.max() < 2 * SIZES[size] * 44 / 16 * 1.1
    assert area.min() < 0.1 * whole
    assert (area > 0.99 * whole).sum() > 40


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("motion", "axis", "high"), [("bouncing sideways", 0, 140), ("bouncing vertically", 1, 76)])
def test_bounces_keep_to_their_bounds_at_their_speed(motion, axis, high, place):
    centres = clip_of(motion, place=place, speed="quickly", speed_factor=1.07).centres(400)[0]
    along, across = centres[:, axis], centres[:, 1 - axis]
    assert along.min() >= 20
    assert along.max() <= high
    assert along.min() < 21.6  # a step is 2.9 pixels
    assert along.max() > high - 1.6
    assert across.std() == 0
    steps = along.diff()
    turning = (steps.abs() - 44 * 1.07 / 16).abs() > 1e-3
    assert int(turning.sum()) == pytest.approx(44 * 1.07 * 399 / 16 / (high - 20), abs=1)
    assert (steps[~turning] > 0).any()
    assert (steps[~turning] < 0).any()
    assert (steps[0] > 0) == (along[0] <= (WIDTH, HEIGHT)[axis] / 2)  # into the wider half first


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("motion", "sense"), [("circling clockwise", 1), ("circling counterclockwise", -1)])
@pytest.mark.parametrize("speed", SPEEDS)
def test_orbits_have_their_radius_sense_and_speed(motion, sense, speed, place):
    centres = clip_of(motion, place=place, speed=speed).centres(160)[0].double()
    turn = 2 * math.pi * 20 / SPEEDS[speed] * 16  # frames
    middle = (centres[0] + clip_of(motion, place=place, speed=speed).centres(1)[0, 0] - torch.tensor([40.0, 0.0])) / 2
    rays = centres - middle
    torch.testing.assert_close(rays.norm(dim=1), torch.full((160,), 20.0).double(), atol=1e-3, rtol=0)
    angles = torch.atan2(rays[:, 1], rays[:, 0])  # y points down, so growing angles are clockwise on a screen
    steps = torch.remainder(angles.diff() + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(steps, torch.full((159,), sense * 2 * math.pi / turn).double(), atol=1e-4, rtol=0)


def test_places_are_where_their_names_say():
    starts = {place: clip_of("moving rightward", place=place).centres(1)[0, 0].tolist() for place in PLACES}
    assert starts["left"][0] < starts["center"][0] == WIDTH / 2 < starts["right"][0]
    assert starts["top"][1] < starts["center"][1] == HEIGHT / 2 < starts["bottom"][1]
    assert starts["left"][1] == starts["right"][1] == HEIGHT / 2
    assert starts["top"][0] == starts["bottom"][0] == WIDTH / 2


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if not motion.startswith("moving")])
@pytest.mark.parametrize("shape", ["circle", "square", "cross"])
def test_what_bounces_or_circles_is_always_seen_whole(motion, shape):
    for place in PLACES:
        thing = Thing(colour="red", shape=shape)
        area = coverage(clip_of(motion, thing=thing, place=place, speed="quickly"), 300)[0, ::3].sum(dim=(1, 2))
        assert area.min() > 0.99 * area.max(), place


# Memory


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", ["left", "right"])
def test_the_pillar_hides_the_object_long_enough_to_be_forgotten(shape, size, place):
    clip = clip_of("passing behind a pillar", thing=Thing(colour="red", shape=shape, size=size), place=place)
    num_frames = 16 * 13  # there and back
    seen = (coverage(clip, num_frames)[0] * (1 - pillar_share())).amax(dim=(1, 2))
    # The large triangle is 45 pixels wide, of the pillar's 64; the others at most 36.
    assert longest_run(seen == 0) >= 16 * (0.85 if (shape, size) == ("triangle", "large") else 1.2)
    assert seen[0] == 1
    assert (seen == 1).sum() > num_frames / 2
    start, turning = clip.centres(round(16 * 124 / 20) + 1)[0, [0, -1], 0].tolist()
    assert (start, turning) == pytest.approx((18, 142) if place == "left" else (142, 18), abs=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", ["left", "right"])
def test_what_leaves_is_gone_long_enough_to_be_forgotten_and_returns(shape, size, place):
    clip = clip_of("leaving and returning", thing=Thing(colour="red", shape=shape, size=size), place=place)
    area = coverage(clip, 16 * 20)[0].sum(dim=(1, 2))
    assert longest_run(area == 0) >= 16 * (1.4 if (shape, size) == ("triangle", "large") else 1.8)
    gone = (area == 0).nonzero().flatten()
    assert area[0] > 0.99 * area.max()
    assert area[int(gone[0]) + 16 * 6] > 0.99 * area.max()  # it is back, whole
    side = clip.centres(int(gone[0]) + 1)[0, -1, 0]
    assert side > WIDTH if place == "right" else side < 0


def test_two_objects_cross_and_the_first_is_in_front():
    clip = clip_of("crossing")
    first, second = clip.centres(200)
    torch.testing.assert_close(first[:, 0] + second[:, 0], torch.full((200,), float(WIDTH)))
    assert (first[:, 1] == second[:, 1]).all()
    meeting = int((first[:, 0] - second[:, 0]).abs().argmin())
    assert first[0, 0] < second[0, 0] - 100
    assert first[2 * meeting, 0] > second[2 * meeting, 0] + 100
    shares = coverage(clip, 200)
    assert (shares[0] * shares[1])[meeting].sum() > 0.95 * shares[1, meeting].sum()
    assert (shares[0] * shares[1])[0].sum() == 0
    x, y = first[meeting].long().tolist()
    assert tuple(draw([clip], 1, first_frame=meeting)[0, 0, y, x].tolist()) == COLOURS["red"]


@pytest.mark.parametrize("motion", MEMORY_MOTIONS)
def test_what_is_visible_of_an_object_is_what_the_picture_shows_of_it(motion):
    """Another colour of one object changes the picture where that object is visible, and nowhere else."""
    num_frames = 100
    things = (Thing(colour="red", shape="cross"), Thing(colour="blue", shape="circle", size="small"))
    scene = Scene(things=things if motion == "crossing" else things[:1], motion=motion, texture="striped")
    shares = visible(Clip(scene=scene), num_frames)
    assert shares.shape == (len(scene.things), num_frames, HEIGHT, WIDTH)
    for index, thing in enumerate(scene.things):
        others = list(scene.things)
        others[index] = replace(thing, colour="green")
        pictures = draw([Clip(scene=scene), Clip(scene=replace(scene, things=tuple(others)))], num_frames).float()
        changed = (pictures[0] - pictures[1]).abs().amax(-1)
        most = changed.max()
        assert (shares[index] - changed / most).abs().max() < 0.02
    assert motion == "leaving and returning" or (shares - coverage(Clip(scene=scene), num_frames)).min() < -0.9


@pytest.mark.parametrize("motion", MEMORY_MOTIONS)
def test_only_memory_scenes_need_memory(motion):
    assert clip_of(motion).scene.needs_memory
    assert not clip_of().scene.needs_memory


# The ground


@pytest.mark.parametrize("texture", ["striped", "checkered"])
@pytest.mark.parametrize(("camera", "direction"), [("panning left", 1), ("panning right", -1)])
def test_patterns_pan_against_the_camera_at_pan_speed(texture, camera, direction):
    pictures = ground(clip_of(texture=texture, camera=camera), 9)
    pixels = 8 * PAN_SPEED / 16  # in 8 frames
    assert pixels == 8  # so that whole pixels can be compared
    before, after = (pictures[0], pictures[8]) if direction > 0 else (pictures[8], pictures[0])
    assert torch.equal(after[:, 8:], before[:, :-8])
    assert not torch.equal(after, before)
    assert torch.equal(ground(clip_of(texture=texture), 9), ground(clip_of(texture=texture), 1).expand(9, -1, -1, -1))


def test_patterns_have_two_tones_of_equal_share_and_their_period():
    striped, checkered = (ground(clip_of(texture=name), 1)[0, :, :, 0] for name in ("striped", "checkered"))
    for picture in (striped, checkered):
        torch.testing.assert_close(picture.mean(), torch.tensor(125.0), atol=0.1, rtol=0)
        assert (picture.min(), picture.max()) == (111, 139)
        period = int(TEXTURE_PERIOD)
        assert torch.equal(picture[:, period:], picture[:, :-period])
        assert torch.equal(picture[:, period // 2 : period], 250 - picture[:, : period // 2])
    assert torch.equal(striped, striped[:1].expand(HEIGHT, -1))
    assert torch.equal(checkered[period // 2 : period], 250 - checkered[: period // 2])


def test_pixels_have_the_colours_asked_for():
    for colour, background in [("blue", "white"), ("yellow", "brown")]:
        clip = clip_of(thing=Thing(colour=colour, shape="square"), background=background)
        pixels = draw([clip], 3)
        assert pixels.shape == (1, 3, HEIGHT, WIDTH, 3)
        assert pixels.dtype == torch.uint8
        x, y = clip.centres(3)[0, 2].long().tolist()
        assert tuple(pixels[0, 2, y, x].tolist()) == COLOURS[colour]
        assert tuple(pixels[0, 2, 0, 0].tolist()) == BACKGROUNDS[background]


def test_shapes_are_what_they_are_called():
    x = torch.arange(-25, 26).float()[None]
    y = torch.arange(-25, 26).float()[:, None]
    masks = {shape: filled(shape, x, y, 18.0) for shape in SHAPES}
    for mask in masks.values():
        torch.testing.assert_close(mask, mask.flip(1))
        assert mask[25, 25] == 1
    corner = 25 + 16
    assert {shape: float(mask[corner, corner]) for shape, mask in masks.items()} == {
        "circle": 0,
        "square": 1,
        "triangle": 1,  # its base is below
        "cross": 0,
    }
    assert masks["triangle"][25 - 16, corner] == 0
    assert masks["triangle"].sum(dim=1)[[12, 25, 40]].diff().min() > 5  # wider and wider
    assert masks["cross"].sum(dim=1)[25] == pytest.approx(37, abs=1)
    assert masks["cross"].sum(dim=1)[25 - 15] == pytest.approx(2 * 0.34 * 18, abs=1)
    assert masks["circle"].sum() == pytest.approx(math.pi * 18**2, rel=0.01)


# Clips


def test_a_switch_goes_on_from_where_the_object_and_the_pattern_are():
    before = clip_of("moving rightward", texture="striped", camera="panning left", speed_factor=1.05)
    for motion in MOTIONS:
        scene = Scene(things=(BLUE_SQUARE,), motion=motion, texture="striped", camera="panning right", place="top")
        after = before.switched(scene, 21)
        assert after.speed_factor == 1.05
        torch.testing.assert_close(after.centres(1), before.centres(1, first_frame=21), atol=1e-4, rtol=0)
        torch.testing.assert_close(ground(after, 1), ground(before, 1, first_frame=21), atol=1e-2, rtol=0)
        step = after.centres(2)[0].diff(dim=0).norm()
        assert step == pytest.approx(20 * 1.05 / 16, rel=1e-2)


@pytest.mark.parametrize("motion", [*DIRECTIONS, "leaving and returning"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", ["left", "right"])
def test_an_object_is_due_when_it_is_about_to_come_in(motion, size, place):
    clip = clip_of(motion, thing=Thing(colour="red", shape="cross", size=size), place=place, speed_factor=0.94)
    area = coverage(clip, 16 * 40)[0].sum(dim=(1, 2))
    for due in clip.entries(3):
        frame = math.ceil(16 * due)
        assert area[frame - 1] < 0.05 * area.max()  # what wraps around may touch the edge that it leaves by
        assert area[frame + 3] > area[frame + 1] >= area[frame]
    empty = area < 0.05 * area.max()
    assert int((empty[1:] & ~empty[:-1]).sum()) == sum(due < 40 for due in clip.entries(30))  # it is due each time


@pytest.mark.parametrize("motion", [*DIRECTIONS, "leaving and returning"])
def test_a_delay_keeps_the_object_outside_and_moves_all_that_is_later(motion):
    clip = clip_of(motion, place="left")
    late = replace(clip, delays=(1.5, 0.0, 2.25))
    due = clip.entries(4)
    assert late.entries(4) == pytest.approx([due[0], due[1] + 1.5, due[2] + 1.5, due[3] + 3.75])
    usual, delayed = clip.centres(16 * 60)[0], late.centres(16 * 60)[0]
    first, third = (math.floor(16 * entry) for entry in (due[0], late.entries(3)[2]))
    torch.testing.assert_close(delayed[:first], usual[:first])
    torch.testing.assert_close(delayed[first + 25 : third], usual[first + 1 : third - 24], atol=1e-2, rtol=0)
    torch.testing.assert_close(delayed[third + 61 :], usual[third + 1 : -60], atol=1e-2, rtol=0)
    waiting = coverage(late, 22, first_frame=first + 2)[0].sum(dim=(1, 2))
    assert waiting.max() < 0.01 * coverage(late, 1)[0].sum()


@pytest.mark.parametrize("motion", ["bouncing sideways", "circling clockwise", "passing behind a pillar"])
def test_what_never_leaves_is_never_delayed(motion):
    with pytest.raises(ConfigurationError, match=f"{motion!r} never leaves the picture"):
        replace(clip_of(motion, place="left"), delays=(1.0,)).centres(3)


def test_what_is_out_of_the_picture_at_a_switch_is_brought_in():
    before = clip_of("moving leftward", place="left")
    frame = int((before.centres(80)[0, :, 0] < -10).nonzero()[0])
    after = before.switched(Scene(things=(BLUE_SQUARE,), motion="circling clockwise"), frame)
    assert after.centres(1)[0, 0].tolist() == pytest.approx([20, 48], abs=1e-4)
    x = after.centres(200)[0, :, 0]
    assert x.min() >= 20 - 1e-3  # the orbit lies towards the middle
    assert x.max() == pytest.approx(60, abs=0.1)


@pytest.mark.parametrize("motion", [*MOTIONS, *MEMORY_MOTIONS])
def test_a_frame_does_not_depend_on_where_the_drawing_begins(motion):
    clip = clip_of(motion, speed_factor=1.05, texture="checkered")
    assert torch.equal(draw([clip], 41)[:, 33:], draw([clip], 8, first_frame=33))
    assert torch.equal(coverage(clip, 41)[:, 33:], coverage(clip, 8, first_frame=33))


def test_parts_of_the_picture_are_cuts_of_the_whole():
    clips = [clip_of("passing behind a pillar"), clip_of("crossing", texture="striped")]
    regions = [Region(top=3, left=41, height=57, width=31), Region(top=39, left=0, height=57, width=31)]
    parts = draw(clips, 5, first_frame=40, regions=regions)
    whole = draw(clips, 5, first_frame=40)
    assert parts.shape == (2, 5, 57, 31, 3)
    for part, picture, region in zip(parts, whole, regions, strict=True):
        assert torch.equal(
            part,
            picture[:, region.top : region.top + region.height, region.left : region.left + region.width],
        )
    single = Region(top=95, left=159, height=1, width=1)
    assert torch.equal(draw(clips[:1], 1, regions=[single])[0, 0, 0, 0], draw(clips[:1], 1)[0, 0, 95, 159])
    with pytest.raises(ValueError, match="zip"):
        draw(clips, 1, regions=regions[:1])


# Scenes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"motion": "hopping"}, r"motion 'hopping'.*moving rightward.*crossing"),
        ({"speed": "fast"}, r"speed 'fast'.*slowly, quickly"),
        ({"place": "above"}, r"place 'above'.*left, right"),
        ({"background": "red"}, r"background 'red'.*black, white"),
        ({"texture": "dotted"}, r"texture 'dotted'.*plain, striped"),
        ({"camera": "zooming"}, r"camera 'zooming'.*still, panning left"),
    ],
)
def test_unknown_names_list_the_choices(names, message):
    with pytest.raises(UnknownNameError, match=message):
        Scene(things=(RED_CIRCLE,), **names)


@pytest.mark.parametrize(("kind", "choices"), [("colour", "red, green"), ("shape", "circle"), ("size", "small, large")])
def test_unknown_things_list_the_choices(kind, choices):
    with pytest.raises(UnknownNameError, match=rf"{kind} 'pink'.*{choices}"):
        Thing(**({"colour": "red", "shape": "circle"} | {kind: "pink"}))


@pytest.mark.parametrize(
    ("things", "names", "message"),
    [
        ((), {}, "'bouncing sideways' takes 1 things, not 0"),
        ((RED_CIRCLE, BLUE_SQUARE), {}, "'bouncing sideways' takes 1 things, not 2"),
        ((RED_CIRCLE,), {"motion": "crossing"}, "'crossing' takes 2 things, not 1"),
        (
            (RED_CIRCLE,),
            {"motion": "leaving and returning", "speed": "quickly"},
            "goes slowly under a still camera, not quickly, still",
        ),
        (
            (RED_CIRCLE,),
            {"motion": "passing behind a pillar", "texture": "striped", "camera": "panning left"},
            "not slowly, panning left",
        ),
        ((RED_CIRCLE,), {"camera": "panning left"}, "camera panning left is not seen on a plain background"),
    ],
)
def test_scenes_that_do_not_fit_together_are_refused(things, names, message):
    with pytest.raises(ConfigurationError, match=message):
        Scene(things=things, **names)


def test_a_record_is_plain_and_gives_the_scene_back():
    import json

    scene = Scene(things=(RED_CIRCLE, BLUE_SQUARE), motion="crossing", texture="checkered", background="brown")
    assert Scene.from_record(json.loads(json.dumps(scene.record()))) == scene
    assert scene.names() == (
        *("large", "red", "circle", "small", "blue", "square"),
        *("crossing", "slowly", "center", "checkered", "brown", "still"),
    )
