"""The training set: what is encoded, where the pieces of it belong, and what is drawn from it."""

import math
import random
from collections import Counter
from itertools import islice

import pytest
import torch
from diffusers import AutoencoderKLWan

from forcing_kv.errors import CheckpointError
from forcing_kv.models.zoo import EMBEDDED_MODELS
from forcing_kv.tiny.prompts import parse
from forcing_kv.tiny.scenes import is_held_out, random_clip, random_scenes
from forcing_kv.tiny.training import latents as training_set
from forcing_kv.tiny.training.latents import (
    ClipGroup,
    LatentClips,
    encode_clip_means,
    encode_group,
    load_group,
    pixel_frames,
    sample_clips,
    save_group,
    standardised,
)
from forcing_kv.tiny.training.vae import build_vae
from forcing_kv.tiny.world import Clip, Scene, Thing, draw, visible

EMBEDDED_VAE = EMBEDDED_MODELS["tiny"] / "vae"


@pytest.fixture(scope="module")
def vae():
    """Untrained, with a scale and a place of its own for each channel."""
    vae = build_vae()
    channels = vae.config.z_dim
    vae.register_to_config(
        latents_mean=[0.1 * channel for channel in range(channels)],
        latents_std=[0.5 + 0.1 * channel for channel in range(channels)],
    )
    return vae


@pytest.fixture
def drawn_clips(monkeypatch):
    """The clips that are drawn for a group, as they are."""
    clips = []
    draw_one = training_set.random_clip

    def record(*arguments, **settings):
        clips.append(draw_one(*arguments, **settings))
        return clips[-1]

    monkeypatch.setattr(training_set, "random_clip", record)
    return clips


@torch.no_grad()
def whole_encoding(vae, pixels):
    return standardised(vae, encode_clip_means(vae, pixels))[0]


@torch.no_grad()
def distance(first, second):
    return float((first.float() - second.float()).square().mean().sqrt())


def simple_group(kind="start", *, num_clips=3, frames=range(6), switch_chunk=0, seed=0, memory=False, num_late=0):
    """Latents that say which clip, frame and channel they are."""
    clip, frame, channel = torch.arange(num_clips), torch.tensor(list(frames)), torch.arange(2)
    numbers = clip[:, None, None] + 0.25 * frame[:, None] + 32 * channel
    near = torch.zeros(num_clips, len(frame), 2, 3, dtype=torch.bool)
    near[:, 1::2, 1, 2] = True
    returning = torch.zeros(num_clips, len(frame) // 3, dtype=torch.bool)
    returning[1:, -1:] = True
    overdue = torch.zeros_like(returning)
    overdue[:num_late, -1] = True
    return ClipGroup(
        kind=kind,
        frames=tuple(frames),
        switch_chunk=switch_chunk,
        latents=numbers[..., None, None].expand(-1, -1, -1, 2, 3).bfloat16(),
        near_object=near,
        returning=returning,
        overdue=overdue,
        scenes=tuple(islice(random_scenes(seed, memory=memory), num_clips)),
    )


# Encoding


def test_clips_are_encoded_standardised_from_the_start_of_the_stream(vae, drawn_clips):
    done = []
    group = encode_group(vae, "start", 2, seed=5, num_chunks=1, report=done.append)
    assert (group.kind, group.frames, group.switch_chunk) == ("start", (0, 1, 2), 0)
    assert group.latents.shape == (2, 3, 16, 12, 20)
    assert group.latents.dtype == torch.bfloat16
    assert done == [1, 2]
    assert group.scenes == tuple(clip.scene for clip in drawn_clips)
    assert not any(map(is_held_out, group.scenes))
    for latents, clip in zip(group.latents, drawn_clips, strict=True):
        raw = encode_clip_means(vae, draw([clip], 9))[0]
        channel = torch.arange(16)[:, None, None]
        expected = (raw - 0.1 * channel) / (0.5 + 0.1 * channel)
        assert distance(latents, expected) < 0.02 * expected.std()
    assert torch.equal(encode_group(vae, "start", 2, seed=5, num_chunks=1).latents, group.latents)
    assert not torch.equal(encode_group(vae, "start", 2, seed=6, num_chunks=1).latents, group.latents)


def test_some_of_the_clips_need_memory_but_never_those_that_switch(vae, drawn_clips, monkeypatch):
    nothing = torch.zeros(1), torch.zeros(1, 12, 96, 160)
    monkeypatch.setattr(training_set, "_encode", lambda *arguments, **settings: nothing)
    shares = {"first": 0.25, "start": 0.25, "long": 3 / 19, "switch": 0.0, "memory": 1.0, "wrap": 0.0}
    for kind, share in shares.items():
        group = encode_group(vae, kind, 400, seed=1)
        assert sum(scene.needs_memory for scene in group.scenes) / 400 == pytest.approx(share, abs=0.07)


def test_some_kinds_have_motions_of_their_own(vae, drawn_clips, monkeypatch):
    nothing = torch.zeros(1), torch.zeros(1, 12, 96, 160)
    monkeypatch.setattr(training_set, "_encode", lambda *arguments, **settings: nothing)

    def motions(kind):
        counts = Counter(scene.motion for scene in encode_group(vae, kind, 400, seed=1).scenes)
        return {motion: count / 400 for motion, count in counts.items()}

    assert motions("pair") == {"crossing": 1}
    memory = motions("memory")
    assert memory["crossing"] == pytest.approx(0.4, abs=0.07)
    assert memory["leaving and returning"] == pytest.approx(0.4, abs=0.07)
    assert motions("wrap") == {
        f"moving {way}": pytest.approx(0.25, abs=0.07) for way in ("rightward", "leftward", "upward", "downward")
    }
    after = motions("switch")
    assert after["circling clockwise"] == pytest.approx(0.25, abs=0.07)
    assert after["circling counterclockwise"] == pytest.approx(0.25, abs=0.07)
    assert len(after) == 8


def test_half_of_the_switches_reverse_the_motion(vae, drawn_clips, monkeypatch):
    pairs = []

    def encode(vae, clip, num_frames, *, after, switch_frame):
        pairs.append((clip.scene.motion, after.scene.motion))
        return torch.zeros(1), torch.zeros(1, 12, 96, 160)

    monkeypatch.setattr(training_set, "_encode", encode)
    encode_group(vae, "switch", 600, seed=1)
    opposites = [
        {"moving rightward", "moving leftward"},
        {"moving upward", "moving downward"},
        {"bouncing sideways", "bouncing vertically"},
        {"circling clockwise", "circling counterclockwise"},
    ]
    circling = [after for before, after in pairs if before == "circling clockwise"]
    assert len(circling) / 600 == pytest.approx(0.25, abs=0.06)
    assert circling.count("circling counterclockwise") / len(circling) == pytest.approx(0.5 + 0.5 / 4, abs=0.1)
    for pair in opposites:
        from_pair = [{before, after} == pair for before, after in pairs if before in pair]
        assert 0.4 < sum(from_pair) / len(from_pair) < 0.75


@pytest.mark.parametrize("kind", ["first", "pair", "switch", "memory"])
def test_crosses_are_learned_oftener_than_other_shapes(vae, kind, drawn_clips, monkeypatch):
    nothing = torch.zeros(1), torch.zeros(1, 12, 96, 160)
    monkeypatch.setattr(training_set, "_encode", lambda *arguments, **settings: nothing)
    shapes = Counter(thing.shape for scene in encode_group(vae, kind, 400, seed=1).scenes for thing in scene.things)
    assert shapes["cross"] / shapes.total() == pytest.approx(0.4, abs=0.07)
    assert shapes["square"] / shapes.total() == pytest.approx(0.2, abs=0.07)


def test_a_switch_shows_one_scene_before_and_another_after_it(vae, drawn_clips):
    group = encode_group(vae, "switch", 2, seed=3, num_chunks=8)
    before, after = drawn_clips[:2], drawn_clips[2:]
    assert group.scenes == tuple(clip.scene for clip in after)
    assert group.frames == tuple(range(24))
    first = 3 * group.switch_chunk
    assert 0 < first < 24
    for latents, old, new in zip(group.latents, before, after, strict=True):
        assert old.scene != new.scene
        alone = whole_encoding(vae, draw([old], pixel_frames(24)))
        rounding = distance(latents[:first], alone[:first])
        assert rounding < 0.02  # nothing is known of the switch before it
        assert min(distance(latents[frame], alone[frame]) for frame in range(first, 24)) > 5 * rounding
        goes_on = old.switched(new.scene, 4 * first - 3)
        pixels = torch.cat([draw([old], 4 * first - 3), draw([goes_on], 4 * (24 - first))], dim=1)
        assert distance(latents, whole_encoding(vae, pixels)) < 0.02


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_piece_far_from_the_start_is_the_same_part_of_the_whole_stream(seed, drawn_clips, monkeypatch):
    """To a few hundredths of the latents' deviation in the embedded VAE, whose memory fades; more in its first frame.

    An untrained VAE remembers for some twenty latent frames, so this says nothing about one.
    """
    monkeypatch.setattr(training_set, "FAR_CHUNKS", 1)
    monkeypatch.setattr(training_set, "_MAX_FAR_CHUNK", 4)
    vae = AutoencoderKLWan.from_pretrained(EMBEDDED_VAE, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    group = encode_group(vae, "far", 1, seed=seed)
    first = group.frames[3]
    assert group.frames == (0, 1, 2, first, first + 1, first + 2)
    assert first % 3 == 0
    (clip,) = drawn_clips
    assert group.scenes == (clip.scene,)
    num_pixels = pixel_frames(first + 4)
    whole = whole_encoding(vae, draw([clip], num_pixels))
    errors = [distance(group.latents[0, index], whole[frame]) for index, frame in enumerate(group.frames)]
    assert max(errors[:3]) < 0.02
    assert errors[3] < (0.02 if first == 3 else 0.15)
    assert max(errors[4:]) < 0.06
    if clip.scene.camera != "still":  # then a neighbouring frame is something else
        assert all(distance(group.latents[0, index], whole[first + index - 2]) > 3 * errors[index] for index in (3, 4))
    near_whole = brute_force_near(clip, num_pixels)
    assert torch.equal(group.near_object[0], near_whole[list(group.frames)])


# Near objects


def brute_force_near(clip, num_pixels):
    """Cells within one cell of any pixel that shows an object, per latent frame."""
    covered = visible(clip, num_pixels).amax(0) > 0
    num_frames = (num_pixels + 3) // 4
    near = torch.zeros(num_frames, 12, 20, dtype=torch.bool)
    for frame in range(num_frames):
        touched = covered[max(0, 4 * frame - 3) : 4 * frame + 1].any(0)
        for row, col in touched.view(12, 8, 20, 8).any(3).any(1).nonzero().tolist():
            near[frame, max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = True
    return near


@pytest.mark.parametrize("motion", ["moving leftward", "circling clockwise", "crossing", "leaving and returning"])
def test_cells_near_an_object_have_it_in_them_or_beside_them(vae, motion, monkeypatch):
    things = (Thing(colour="red", shape="cross", size="small"), Thing(colour="blue", shape="triangle"))
    scene = Scene(things=things if motion == "crossing" else things[:1], motion=motion, texture="striped")
    clip = Clip(scene=scene, speed_factor=1.09)
    monkeypatch.setattr(training_set, "random_clip", lambda *arguments, **settings: clip)
    monkeypatch.setattr(training_set, "encode_clip_means", lambda vae, clips: torch.zeros(1, 1, 16, 1, 1))
    group = encode_group(vae, "start", 1, seed=0)
    assert group.near_object.shape == (1, 21, 12, 20)
    expected = brute_force_near(clip, 81)
    assert torch.equal(group.near_object[0], expected)
    assert 0 < expected.float().mean() < 0.5


def chunks_of(clip, num_chunks):
    """Whether each chunk is one in which an object comes into sight, as training has it."""
    shares = training_set._with_copies(visible(clip, pixel_frames(3 * num_chunks)))
    return training_set._returning(shares).nonzero().flatten().tolist()


RED, BLUE = Thing(colour="red", shape="circle"), Thing(colour="blue", shape="square")


@pytest.mark.parametrize(
    ("motion", "things", "expected"),
    [
        ("passing behind a pillar", (RED,), [6, 7, 8, 14, 15]),
        ("leaving and returning", (RED,), [8, 9, 10]),
        ("crossing", (RED, BLUE), [4, 5, 11, 12, 13]),
        ("moving rightward", (RED,), [10, 11, 12]),
        ("bouncing sideways", (RED,), []),
    ],
)
def test_a_chunk_in_which_an_object_comes_into_sight(motion, things, expected):
    found = chunks_of(Clip(scene=Scene(things=things, motion=motion, place="left")), 16)
    assert found == expected


@pytest.mark.parametrize(("kind", "motions"), [("wrap", ()), ("memory", ("leaving and returning",)), ("long", ())])
def test_some_objects_are_late_and_such_chunks_are_marked(kind, motions, monkeypatch):
    rng = random.Random(1)
    num_chunks = training_set._OWN_CHUNKS[kind]
    num_late = num_entries = 0
    for _ in range(40):
        clip = random_clip(rng, motions=motions or ("moving upward", "moving rightward"))
        late = training_set._delayed(clip, num_chunks, rng)
        overdue = training_set._overdue(late, num_chunks)
        area = visible(late, pixel_frames(3 * num_chunks))[0].sum(dim=(1, 2))
        seen = area > 0.03 * area.max()
        expected = torch.zeros(num_chunks, dtype=torch.bool)
        for due, delay in zip(late.entries(len(late.delays)), late.delays, strict=True):
            num_entries += 1
            num_late += delay > 0
            if not delay:
                continue
            start, stop = 16 * due, 16 * (due + delay)
            assert not seen[math.ceil(start) + 1 : math.floor(stop)].any()
            chunk = next(chunk for chunk in range(num_chunks) if pixel_frames(3 * chunk) == round(stop))
            assert seen[pixel_frames(3 * chunk + 3) - 1]  # it comes in in the chunk
            first = next(chunk for chunk in range(num_chunks) if pixel_frames(3 * chunk + 3) - start > 2)
            expected[first:chunk] = stop - start > 2
        assert torch.equal(overdue, expected)
    assert num_late / num_entries == pytest.approx(0.4, abs=0.1)


def test_what_never_leaves_is_never_late():
    clip = Clip(scene=Scene(things=(RED,), motion="passing behind a pillar", place="left"))
    assert training_set._delayed(clip, 16, random.Random(0)) is clip
    assert not training_set._overdue(clip, 16).any()


def test_nothing_is_learned_where_an_object_is_overdue():
    group = simple_group("long", num_clips=2, num_late=1)
    _, weights, _ = sample_clips(group, torch.tensor([0, 1]), range(6), torch.Generator())
    assert weights[0, :3].min() >= 1
    assert weights[0, 3:].max() == 0  # its last chunk is overdue
    assert weights[1].min() >= 1


def test_nothing_is_near_where_the_pillar_hides_it(vae, monkeypatch):
    clip = Clip(scene=Scene(things=(RED,), motion="passing behind a pillar", place="left"))
    monkeypatch.setattr(training_set, "random_clip", lambda *arguments, **settings: clip)
    monkeypatch.setattr(training_set, "encode_clip_means", lambda vae, clips: torch.zeros(1, 1, 16, 1, 1))
    near = encode_group(vae, "memory", 1, seed=0).near_object[0]
    seen = visible(clip, pixel_frames(48)).amax((0, 2, 3))
    hidden = [frame for frame in range(1, 48) if seen[4 * frame - 3 : 4 * frame + 1].max() == 0]
    assert hidden
    assert not near[hidden].any()
    assert near.flatten(1).any(1).sum() == 48 - len(hidden)


def test_pixel_frames_before_a_latent_frame():
    assert [pixel_frames(frame) for frame in (0, 1, 2, 3, 21)] == [0, 1, 5, 9, 81]


# Groups


@pytest.mark.parametrize("memory", [False, True])
def test_a_group_survives_the_disk(tmp_path, memory):
    group = simple_group("far", frames=(0, 1, 2, 9, 10, 11), num_clips=5, memory=memory, num_late=2)
    save_group(group, tmp_path / "folder" / "far_000.pt")
    loaded = load_group(tmp_path / "folder" / "far_000.pt")
    assert (loaded.kind, loaded.frames, loaded.switch_chunk, loaded.scenes) == (
        group.kind, group.frames, group.switch_chunk, group.scenes,
    )  # fmt: skip
    assert torch.equal(loaded.latents, group.latents)
    assert torch.equal(loaded.near_object, group.near_object)
    assert torch.equal(loaded.returning, group.returning)
    assert torch.equal(loaded.overdue, group.overdue)
    assert (loaded.latents.dtype, loaded.near_object.dtype) == (torch.bfloat16, torch.bool)


def test_a_group_that_another_version_wrote_is_refused_by_name(tmp_path):
    path = tmp_path / "start_000.pt"
    save_group(simple_group(), path)
    state = torch.load(path, weights_only=True)
    del state["returning"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"start_000.pt has .*another version.*run the stage 'latents' again"):
        load_group(path)


def test_groups_alike_are_joined_and_others_are_not():
    first, second = simple_group(num_clips=3), simple_group(num_clips=2, seed=9)
    others = [
        simple_group("switch", switch_chunk=1),
        simple_group("switch", frames=range(6), switch_chunk=2),
        simple_group(frames=range(9)),
    ]
    clips = LatentClips([first, *others, second])
    assert [len(group.scenes) for group in clips.groups] == [5, 3, 3, 3]
    assert clips.groups[0].scenes == first.scenes + second.scenes
    assert torch.equal(clips.groups[0].latents, torch.cat([first.latents, second.latents]))
    assert clips.groups[0].near_object.shape == (5, 6, 2, 3)
    assert clips.groups[0].returning.shape == clips.groups[0].overdue.shape == (5, 2)


def test_larger_groups_of_the_kind_are_taken_more_often():
    small = simple_group("far", num_clips=2, frames=(0, 1, 2, 3, 4, 5))
    large = simple_group("far", num_clips=6, frames=(0, 1, 2, 6, 7, 8))
    clips = LatentClips([simple_group("start"), small, large])
    generator = torch.Generator().manual_seed(0)
    picked = [clips.random_group("far", generator) for _ in range(600)]
    assert {group.kind for group in picked} == {"far"}
    assert sum(group.frames == large.frames for group in picked) / 600 == pytest.approx(0.75, abs=0.06)


def test_samples_are_the_frames_asked_for_with_their_own_weights_and_captions():
    group = simple_group(num_clips=4, frames=(0, 1, 2, 30, 31, 32))
    generator = torch.Generator().manual_seed(2)
    picks = torch.randint(4, (50,), generator=generator)
    latents, weights, captions = sample_clips(group, picks, [31, 0, 32, 31], generator)
    assert latents.dtype == torch.float32
    assert latents.shape == (50, 4, 2, 2, 3)
    clips = latents[:, 1, 0, 0, 0].long()
    assert torch.equal(clips, picks)
    expected = clips[:, None] + 0.25 * torch.tensor([31, 0, 32, 31])
    torch.testing.assert_close(latents[:, :, 0, 0, 0], expected)
    assert [parse(text).scene for text in captions] == [group.scenes[clip] for clip in clips.tolist()]
    assert weights.shape == (50, 4, 1, 2, 3)
    assert weights[..., 1, 2].unique(dim=0).flatten().tolist() == [1, 1, 5, 1]  # of these only frame 32 has one
    assert (weights[..., 0, :] == 1).all()
    generator = torch.Generator().manual_seed(2)
    torch.randint(4, (50,), generator=generator)
    again = sample_clips(group, picks, [31, 0, 32, 31], generator)
    assert torch.equal(again[0], latents)
    assert again[2] == captions


def test_captions_of_unnamed_objects_still_tell_the_scene():
    group = simple_group("long", num_clips=30, memory=True)
    _, _, captions = sample_clips(group, torch.arange(200) % 30, [0], torch.Generator().manual_seed(0))
    wishes = [parse(text) for text in captions]
    assert 0.7 < sum(not wish.names_things for wish in wishes) / 200 < 0.9
    known = {scene.names()[-6:] for scene in group.scenes}
    assert {wish.scene.names()[-6:] for wish in wishes} <= known


def test_nothing_depends_on_the_global_random_state():
    random.seed(1)
    torch.manual_seed(1)
    picks = torch.arange(3)
    first = sample_clips(simple_group(), picks, [0], torch.Generator().manual_seed(0))[2]
    random.seed(2)
    torch.manual_seed(2)
    assert sample_clips(simple_group(), picks, [0], torch.Generator().manual_seed(0))[2] == first
