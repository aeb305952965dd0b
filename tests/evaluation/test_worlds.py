import pytest

from comparisons import measured
from drawn import SCENE, drawn, held_out, scene_with
from forcing_kv.errors import ConfigurationError, PromptError
from forcing_kv.evaluation import WORLDS
from forcing_kv.evaluation.metrics.world import world_score
from forcing_kv.models.zoo import EMBEDDED_MODELS
from forcing_kv.tiny.prompts import caption
from forcing_kv.tiny.world import Clip, draw


@pytest.fixture
def world():
    return WORLDS["tiny"]()


def test_worlds_are_of_models_that_there_are():
    assert WORLDS.keys() <= EMBEDDED_MODELS.keys()


def test_a_drawn_clip_is_right_in_everything_its_caption_says(world):
    rights = world.judge(caption(SCENE), num_frames=160)(drawn(SCENE, 160))
    assert set(rights) >= {"colour", "shape", "motion", "speed", "background", "visible", "no collapse"}
    assert all(rights.values()), rights
    assert world_score(measured(rights=rights)) == 100


def test_another_scene_is_wrong_in_what_is_other(world):
    rights = world.judge(caption(scene_with(colour="blue")), num_frames=160)(drawn(SCENE, 160))
    assert [name for name, right in rights.items() if not right] == ["colour"]
    assert world_score(measured(rights=rights)) == pytest.approx(100 * 10 / 11)


def test_what_does_not_apply_does_not_count(world):
    plain = scene_with(texture="plain", camera="still")
    rights = world.judge(caption(plain), num_frames=160)(drawn(plain, 160))
    assert rights["camera"] is None
    assert world_score(measured(rights=rights)) == 100


def test_a_memory_scene_is_judged_by_what_comes_back(world):
    (scene,) = held_out(1, memory=True)
    prompt = caption(scene, named=False)
    rights = world.judge(prompt, num_frames=192)(draw([Clip(scene=scene)], 192)[0])
    assert all(right for right in rights.values() if right is not None), rights
    assert "came back" in rights
    with pytest.raises(PromptError, match="a memory scene is judged over at least 12 seconds"):
        world.judge(prompt, num_frames=191)


def test_a_prompt_that_says_nothing_of_the_world_is_not_judged(world):
    with pytest.raises(PromptError, match="knows no word of 'the weather in Lisbon'"):
        world.judge("the weather in Lisbon", num_frames=160)


def test_other_videos_are_not_judged(world):
    world.check(width=160, height=96, fps=16, num_frames=16)
    with pytest.raises(ConfigurationError, match="videos of 96x64 at 16 frames per second are outside the world"):
        world.check(width=96, height=64, fps=16, num_frames=160)
    with pytest.raises(ConfigurationError, match="15 frames are too short to be judged"):
        world.check(width=160, height=96, fps=16, num_frames=15)
