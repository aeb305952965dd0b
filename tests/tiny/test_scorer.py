import pytest
import torch

from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.prompts import parse, random_prompts
from forcing_kv.tiny.scorer import motion_of, score
from forcing_kv.tiny.world import BACKGROUNDS, Scene, draw

SCENE = Scene(colour="red", shape="square", motion="sideways", speed="quickly", background="gray")
RIGHT = {"colour": True, "background": True, "shape": True, "motion": True, "visible": True, "moving": True}


def rights(video, scene=SCENE):
    result = score(video, scene).as_dict()
    return {name: result[name] for name in RIGHT}, result["collapsed"]


@pytest.mark.parametrize("prompt", random_prompts(12, seed=5))
def test_drawn_clips_are_right_in_everything(prompt):
    scene = parse(prompt)
    assert rights(draw([scene], 161)[0], scene) == (RIGHT, False)


def test_a_noisy_picture_scores_the_same():
    clip = draw([SCENE], 161)[0].float()
    noise = 8 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    assert rights((clip + noise).round().clamp(0, 255).to(torch.uint8)) == (RIGHT, False)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("colour", {"colour": "orange"}),
        ("background", {"background": "brown"}),
        ("shape", {"shape": "circle"}),
        ("shape", {"shape": "triangle"}),
        ("motion", {"motion": "up and down"}),
        ("motion", {"motion": "in circles"}),
    ],
)
def test_one_wrong_attribute_is_found_and_no_other(name, other):
    values = {field: getattr(SCENE, field) for field in SCENE.__dataclass_fields__} | other
    assert rights(draw([Scene(**values)], 161)[0]) == (RIGHT | {name: False}, False)


def test_a_vanished_object_is_a_collapse():
    clip = draw([SCENE], 321)[0]
    clip[200:] = torch.tensor(BACKGROUNDS["gray"], dtype=torch.uint8)
    result = score(clip, SCENE)
    assert result.collapsed
    assert not result.visible
    assert result.visible_share == pytest.approx(200 / 321, abs=0.01)
    assert not result.moving


def test_a_frozen_video_is_a_collapse():
    clip = draw([SCENE], 321)[0]
    clip[160:] = clip[160]
    result = score(clip, SCENE)
    assert result.collapsed
    assert result.visible
    assert not result.moving


def test_a_background_that_drifts_away_is_a_collapse():
    clip = draw([SCENE], 321)[0]
    white = Scene(colour="red", shape="square", motion="sideways", speed="quickly", background="white")
    clip[200:] = draw([white], 321)[0, 200:]
    result = score(clip, SCENE)
    assert result.collapsed
    assert not result.background


def test_two_objects_are_not_one():
    second = Scene(colour="blue", shape="circle", size="small", motion="sideways", place="top", background="gray")
    first = Scene(colour="red", shape="square", size="small", motion="sideways", place="bottom", background="gray")
    clip, extra = draw([first, second], 161)
    background = torch.tensor(BACKGROUNDS["gray"], dtype=torch.uint8)
    both = torch.where((extra != background).any(dim=-1, keepdim=True), extra, clip)
    assert not score(both, first).visible


def test_an_empty_picture_is_nothing_but_its_background():
    clip = torch.full((40, 64, 96, 3), 125, dtype=torch.uint8)
    assert rights(clip)[0] == dict.fromkeys(RIGHT, False) | {"background": True}


def test_a_trembling_object_does_not_move():
    clip = draw([SCENE], 1)[0].repeat(161, 1, 1, 1)
    for frame in range(1, 161, 2):
        clip[frame] = clip[frame].roll(1, dims=1)
    assert not score(clip, SCENE).moving


def test_motion_of_degenerate_paths():
    assert motion_of(torch.zeros(5, 2)) is None
    assert motion_of(torch.zeros(50, 2)) is None
    diagonal = torch.linspace(0, 40, 50)[:, None].repeat(1, 2)
    assert motion_of(diagonal) is None


def test_too_short_a_clip_is_refused():
    with pytest.raises(ConfigurationError, match="frames >= 16"):
        score(torch.zeros(4, 64, 96, 3, dtype=torch.uint8), SCENE)
