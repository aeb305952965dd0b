"""Drawn clips of the tiny world for the tests of its scorers."""

from dataclasses import replace
from itertools import islice

import torch

from forcing_kv.tiny.scenes import random_scenes
from forcing_kv.tiny.scoring.outlines import blurred
from forcing_kv.tiny.world import Clip, Scene, Thing, draw

SQUARE = Thing(colour="red", shape="square")
SCENE = Scene(things=(SQUARE,), speed="quickly", texture="striped", camera="panning left")


def scene_with(scene=SCENE, **fields):
    """A scene with other values; colour, shape and size are those of its first thing."""
    thing = {name: fields.pop(name) for name in ("colour", "shape", "size") if name in fields}
    return replace(scene, things=(replace(scene.things[0], **thing), *scene.things[1:]), **fields)


def held_out(num, *, memory=False, seed=5):
    return list(islice(random_scenes(seed, memory=memory, held_out=True), num))


def drawn(scene, num_frames=320, *, speed_factor=1.0, first_frame=0, start=None):
    clip = Clip(scene=scene, speed_factor=speed_factor, start=start)
    return draw([clip], num_frames, first_frame=first_frame)[0]


def worn(video):
    """As a mediocre VAE leaves it: blurred and noisy."""
    planes = video.float().permute(0, 3, 1, 2).flatten(0, 1)
    soft = blurred(planes, 1.2).unflatten(0, (-1, 3)).permute(0, 2, 3, 1)
    noise = 5 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
    return (soft + noise).round().clamp(0, 255).to(torch.uint8)
