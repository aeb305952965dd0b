"""The transformer's training set: drawn clips, encoded once, kept in memory as bf16 latents.

Eight kinds of clips: *first* chunks alone, for there the prompt has to do everything, and such first chunks of a *pair*
of objects, which the others hardly show; the *start* of streams; streams whose prompt *switches*; *memory* scenes until
after the first return; objects that leave the picture and *wrap* around to its other side; the sink and a piece of a
stream *far* from its start; and *long* streams, whole.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F

from forcing_kv.errors import CheckpointError
from forcing_kv.tiny.prompts import varied_caption
from forcing_kv.tiny.scenes import random_clip
from forcing_kv.tiny.training.vae import encode_moments, pixels_of
from forcing_kv.tiny.world import FRAMES_PER_SECOND, MEMORY_MOTIONS, MOTIONS, SHAPES, Clip, Scene, draw, visible

CHUNK_FRAMES = 3
START_CHUNKS = 7
FAR_CHUNKS = 6
LONG_CHUNKS = 80
"""60 s."""
MEMORY_CHUNKS = 16
"""12 s: long enough for the first return of every memory scene."""
SWITCH_CHUNKS = (1, 2, 3, 4, 5, 6, 7)
"""The chunks at which prompts switch in training."""
SWITCHED_CHUNKS = 14
"""Of a clip with a switch: 10 s, so that five or more are seen of what follows."""

_MAX_FAR_CHUNK = 80
_WARMUP_FRAMES = 4  # latent frames encoded before a piece of a stream, and dropped: the VAE remembers little beyond
_OBJECT_WEIGHT = 4.0
_RISE = 0.25
_SHAPES = (*SHAPES, "cross")
"""Crosses are two objects of five: small ones are the hardest to draw."""
_SWITCHED_MOTIONS = (*MOTIONS, *(2 * tuple(motion for motion in MOTIONS if motion.startswith("circling"))))
"""Around a switch circling is half of what is seen: to begin it from any place and motion is the hardest to learn."""
_PAIRS = tuple(zip(MOTIONS[::2], MOTIONS[1::2], strict=True))
_OPPOSITES = {**dict(_PAIRS), **{second: first for first, second in _PAIRS}}
_REVERSED_SHARE = 0.5
"""Of the switches, those to the opposite motion: a model that goes on as it went is right too often otherwise."""
_DELAYED_SHARE = 0.4
"""Of the times when an object is due: a model that once misses one must have seen what to do then."""
_DELAY_CHUNKS = (1, 2, 3, 4)
_MOMENT = 2  # pixel frames
_STRAIGHT = tuple(motion for motion in MOTIONS if motion.startswith("moving"))
_MEMORY_SHARE = {"first": 0.25, "start": 0.25, "far": 0.25}
_OWN_MOTIONS = {
    "switch": _SWITCHED_MOTIONS,
    # Two objects are harder than one; and what returns where it left is unlearned among all that wraps around.
    "memory": (*MEMORY_MOTIONS, "crossing", "leaving and returning"),
    "wrap": _STRAIGHT,
    "pair": ("crossing",),
    # What leaves the picture is what a long stream loses: when it is due is hard to tell among so many old frames.
    "long": (*MOTIONS, *_STRAIGHT, *_STRAIGHT, *MEMORY_MOTIONS),
}
_DELAYED_KINDS = ("memory", "wrap", "long")
_OWN_CHUNKS = {
    "first": 1,
    "pair": 1,
    "switch": SWITCHED_CHUNKS,
    "memory": MEMORY_CHUNKS,
    "wrap": MEMORY_CHUNKS,
    "far": 1,
    "long": LONG_CHUNKS,
}
KINDS = (*_MEMORY_SHARE, *_OWN_MOTIONS)


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """Clips of the same frames.

    Attributes:
        kind: of `KINDS`.
        frames: absolute index of each latent frame, whole chunks.
        switch_chunk: the first chunk that shows `scenes`; what is before it shows something else.
        latents: bf16 [clips, frames, C, h, w], standardised per channel.
        near_object: bool [clips, frames, h, w], where an object is seen or is next to.
        returning: bool [clips, chunks], whether an object comes into sight in a chunk: what old frames tell.
        overdue: bool [clips, chunks], whether an object that is due stays outside in a chunk. Such a chunk is never
            learned, only read as history: what is learned is that the object then comes in, however late it is.
        scenes: what each clip shows.
    """

    kind: str
    frames: tuple[int, ...]
    switch_chunk: int
    latents: Tensor
    near_object: Tensor
    returning: Tensor
    overdue: Tensor
    scenes: tuple[Scene, ...]


class LatentClips:
    """All clips, ready to be sampled."""

    def __init__(self, groups: Sequence[ClipGroup]) -> None:
        alike: dict[tuple[str, tuple[int, ...], int], list[ClipGroup]] = {}
        for group in groups:
            alike.setdefault((group.kind, group.frames, group.switch_chunk), []).append(group)
        self.groups = [_joined(members) for members in alike.values()]

    def random_group(self, kind: str, generator: torch.Generator) -> ClipGroup:
        """A group of a kind, the larger ones more often.

        Raises:
            CheckpointError: if there is none.
        """
        able = [group for group in self.groups if group.kind == kind]
        if not able:
            kinds = ", ".join(sorted({group.kind for group in self.groups}))
            raise CheckpointError(f"the training set has no clips of the kind {kind!r}, only {kinds}; encode some")
        sizes = torch.tensor([len(group.scenes) for group in able], dtype=torch.float32)
        return able[int(torch.multinomial(sizes, 1, generator=generator))]


def sample_clips(
    group: ClipGroup, picks: Tensor, frames: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """Some clips of a group.

    Args:
        group: where from.
        picks: which ones, int64 [samples].
        frames: absolute indices; the group has them.
        generator: of the captions' wording.

    Returns:
        Latents fp32 [samples, frames, C, h, w]; loss weights [samples, frames, 1, h, w], higher near objects and 0
        where one is overdue; captions.
    """
    places = [group.frames.index(frame) for frame in frames]
    latents = group.latents[picks[:, None], places].float()
    weights = 1 + _OBJECT_WEIGHT * group.near_object[picks[:, None], places].float()[:, :, None]
    weights *= ~group.overdue[picks[:, None], [place // CHUNK_FRAMES for place in places]][..., None, None, None]
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    always_named = group.kind in ("first", "pair")  # no history tells what an object is
    return latents, weights, [varied_caption(group.scenes[pick], rng, named=always_named) for pick in picks.tolist()]


@torch.no_grad()
def encode_group(
    vae: AutoencoderKLWan,
    kind: str,
    num_clips: int,
    *,
    seed: int,
    num_chunks: int | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> ClipGroup:
    """Draw and encode random training scenes (never held-out ones).

    Args:
        vae: the trained VAE, its `latents_mean` and `latents_std` set.
        kind: of `KINDS`.
        num_clips: how many.
        seed: of scenes, speeds, and of where and when.
        num_chunks: length of a clip, where it is not the kind's own.
        report: called with the number of clips done.
    """
    rng = random.Random(seed)
    clips = [_random_clip(kind, rng) for _ in range(num_clips)]
    switch_chunk = rng.choice(SWITCH_CHUNKS) if kind == "switch" else 0
    far_chunk = rng.randint(1, _MAX_FAR_CHUNK) if kind == "far" else 0
    num_chunks = num_chunks or _OWN_CHUNKS.get(kind, START_CHUNKS)
    num_frames = CHUNK_FRAMES * num_chunks
    if kind in _DELAYED_KINDS:
        clips = [_delayed(clip, num_chunks, rng) for clip in clips]
    overdue = torch.stack([_overdue(clip, num_chunks + (FAR_CHUNKS if far_chunk else 0)) for clip in clips])
    parts, cells, returning, scenes = [], [], [], []
    for clip in clips:
        after = _switched(clip, switch_chunk, rng) if switch_chunk else None
        latents, shares = _encode(vae, clip, num_frames, after=after, switch_frame=CHUNK_FRAMES * switch_chunk)
        if far_chunk:
            piece, far_shares = _encode_piece(vae, clip, CHUNK_FRAMES * far_chunk, CHUNK_FRAMES * FAR_CHUNKS)
            latents, shares = torch.cat([latents, piece]), torch.cat([shares, far_shares], dim=1)
        parts.append(latents)
        cells.append(_near_object(shares))
        returning.append(_returning(shares))
        scenes.append((after or clip).scene)
        report(len(parts))
    far_frames = range(CHUNK_FRAMES * far_chunk, CHUNK_FRAMES * (far_chunk + FAR_CHUNKS)) if far_chunk else ()
    return ClipGroup(
        kind=kind,
        frames=(*range(num_frames), *far_frames),
        switch_chunk=switch_chunk,
        latents=torch.stack(parts).bfloat16(),
        near_object=torch.stack(cells),
        returning=torch.stack(returning),
        overdue=overdue,
        scenes=tuple(scenes),
    )


def encode_clip_means(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """uint8 [B, 4F-3, H, W, 3] -> latents fp32 [B, F, C, h, w], not standardised; computed in bf16."""
    pixels = pixels_of(clips).contiguous(memory_format=torch.channels_last_3d)
    device = next(vae.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mean, _ = encode_moments(vae, pixels.to(device))
    return mean.float().cpu().transpose(1, 2)


def standardised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Per-channel standardisation of [B, F, C, h, w] by the VAE's config."""
    mean = torch.tensor(vae.config.latents_mean)[:, None, None]
    std = torch.tensor(vae.config.latents_std)[:, None, None]
    return (latents - mean) / std


def pixel_frames(latent_frames: int) -> int:
    """Pixel frames before latent frame number `latent_frames`, from the start of a stream."""
    return max(0, 4 * latent_frames - 3)


def save_group(group: ClipGroup, path: Path) -> None:
    """Write a group; loaded back without pickled code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    scenes = [scene.record() for scene in group.scenes]
    torch.save({**vars(group), "frames": list(group.frames), "scenes": scenes}, partial)
    partial.replace(path)


def load_group(path: Path) -> ClipGroup:
    """Read what `save_group` wrote.

    Raises:
        CheckpointError: if another version did.
    """
    state = torch.load(path, weights_only=True)
    expected = {field.name for field in fields(ClipGroup)}
    if set(state) != expected:
        raise CheckpointError(
            f"{path} has {sorted(state)} and not {sorted(expected)}: another version encoded it; "
            "delete the folder it is in and run the stage 'latents' again"
        )
    scenes = tuple(Scene.from_record(record) for record in state.pop("scenes"))
    return ClipGroup(**{**state, "frames": tuple(state["frames"]), "scenes": scenes})


def _random_clip(kind: str, rng: random.Random) -> Clip:
    if kind in _OWN_MOTIONS:
        return random_clip(rng, motions=_OWN_MOTIONS[kind], shapes=_SHAPES)
    return random_clip(rng, memory=rng.random() < _MEMORY_SHARE[kind], shapes=_SHAPES)


def _switched(clip: Clip, switch_chunk: int, rng: random.Random) -> Clip:
    """The clip after a switch to another training scene."""
    reversed_motion = _OPPOSITES[clip.scene.motion]
    motions = (reversed_motion,) if rng.random() < _REVERSED_SHARE else _SWITCHED_MOTIONS
    scene = random_clip(rng, motions=motions, shapes=_SHAPES).scene
    return clip.switched(scene, pixel_frames(CHUNK_FRAMES * switch_chunk))


def _delayed(clip: Clip, num_chunks: int, rng: random.Random) -> Clip:
    """The clip, its object late at some of the times when it is due; it then comes in as a chunk begins."""
    if not clip.scene.motion.startswith(("moving", "leaving")):
        return clip
    starts = [pixel_frames(CHUNK_FRAMES * chunk) / FRAMES_PER_SECOND for chunk in range(num_chunks)]
    while True:
        due = clip.entries(len(clip.delays) + 1)[-1]
        chunk = bisect_right(starts, due) - 1 + rng.choice(_DELAY_CHUNKS)
        if chunk >= num_chunks:
            return clip
        delay = starts[chunk] - due if rng.random() < _DELAYED_SHARE else 0.0
        clip = replace(clip, delays=(*clip.delays, delay))


def _overdue(clip: Clip, num_chunks: int) -> Tensor:
    """The chunks [chunks] of which an object that is due stays outside for more than a moment."""
    overdue = torch.zeros(num_chunks, dtype=torch.bool)
    for due, delay in zip(clip.entries(len(clip.delays)), clip.delays, strict=True):
        for chunk in range(num_chunks):
            start, stop = (pixel_frames(CHUNK_FRAMES * edge) for edge in (chunk, chunk + 1))
            waits = min(stop, (due + delay) * FRAMES_PER_SECOND) - max(start, due * FRAMES_PER_SECOND)
            overdue[chunk] |= waits > _MOMENT
    return overdue


def _encode(
    vae: AutoencoderKLWan, clip: Clip, num_frames: int, *, after: Clip | None, switch_frame: int
) -> tuple[Tensor, Tensor]:
    """Latents [frames, C, h, w] and what is seen of objects [things, 4 frames, H, W], over a switch."""
    num_pixels = pixel_frames(num_frames)
    if after is None:
        return _encoded(vae, draw([clip], num_pixels)), _with_copies(visible(clip, num_pixels))
    before = pixel_frames(switch_frame)
    pixels = torch.cat([draw([clip], before), draw([after], num_pixels - before)], dim=1)
    shares = torch.cat([visible(clip, before), visible(after, num_pixels - before)], dim=1)
    return _encoded(vae, pixels), _with_copies(shares)


def _encode_piece(vae: AutoencoderKLWan, clip: Clip, first: int, num_frames: int) -> tuple[Tensor, Tensor]:
    """Of latent frames `first` and on, of a stream that began at 0: likewise."""
    warmup = min(_WARMUP_FRAMES, first)
    start = 4 * (first - warmup)  # the pixel frame that ends latent frame first - warmup
    num_pixels = pixel_frames(num_frames + warmup)
    latents = _encoded(vae, draw([clip], num_pixels, first_frame=start))
    return latents[warmup:], _with_copies(visible(clip, num_pixels, first_frame=start))[:, 4 * warmup :]


def _encoded(vae: AutoencoderKLWan, pixels: Tensor) -> Tensor:
    return standardised(vae, encode_clip_means(vae, pixels))[0]


def _with_copies(shares: Tensor) -> Tensor:
    """[things, 4F-3, H, W] -> [things, 4F, H, W]: four of the first frame, as every latent frame spans four."""
    return torch.cat([shares[:, :1].expand(-1, 3, -1, -1), shares], dim=1)


def _near_object(shares: Tensor) -> Tensor:
    """What is seen of objects [things, 4F, H, W] -> bool [F, H/8, W/8]: cells with one in them or in a neighbour."""
    cells = F.max_pool3d(shares.amax(0)[None], (4, 8, 8))
    return F.max_pool3d(cells, (1, 3, 3), stride=1, padding=(0, 1, 1))[0] > 0


def _returning(shares: Tensor) -> Tensor:
    """What is seen of objects [things, 4F, H, W] -> bool [chunks]: whether a quarter of one comes into sight there.

    Seen from anywhere in the chunk before, so an object that comes in slowly is returning in more than one chunk.
    """
    areas = shares.sum(dim=(2, 3))
    seen = areas / areas.amax(dim=1, keepdim=True).clamp(min=1)
    chunks = seen.unflatten(1, (-1, 4 * CHUNK_FRAMES))
    least = torch.stack([chunks[:, :-1].amin(-1), chunks[:, 1:].amin(-1)]).amin(0)
    risen = chunks[:, 1:, -1] - least >= _RISE
    return torch.cat([torch.zeros(1, dtype=torch.bool), risen.any(0)])


def _joined(groups: Sequence[ClipGroup]) -> ClipGroup:
    return ClipGroup(
        kind=groups[0].kind,
        frames=groups[0].frames,
        switch_chunk=groups[0].switch_chunk,
        latents=torch.cat([group.latents for group in groups]),
        near_object=torch.cat([group.near_object for group in groups]),
        returning=torch.cat([group.returning for group in groups]),
        overdue=torch.cat([group.overdue for group in groups]),
        scenes=tuple(scene for group in groups for scene in group.scenes),
    )
