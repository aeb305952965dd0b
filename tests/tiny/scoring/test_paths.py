import pytest
import torch

from forcing_kv.tiny.scoring.paths import Path, shows_motion, shows_speed, turns_fit
from forcing_kv.tiny.world import MOTIONS, SPEEDS, Clip, Scene, Thing

KNOWN = torch.ones(80, dtype=torch.bool)


def path_of(motion, *, speed="quickly", num_frames=80, margin=20.0):
    scene = Scene(things=(Thing(colour="red", shape="circle"),), motion=motion, speed=speed)
    centre = Clip(scene=scene).centres(num_frames)[0]
    size = torch.tensor([160.0, 96.0])
    return Path(centre=centre, known=((centre >= margin) & (centre <= size - margin)).all(dim=-1))


def straight(velocity):
    return Path(centre=torch.arange(80)[:, None] / 16 * torch.tensor(velocity), known=KNOWN)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_path_shows_its_own_motion_and_no_other(motion):
    path = path_of(motion, margin=0.0)
    shown = {other for other in MOTIONS if shows_motion(path, other) and turns_fit(path, other)}
    assert shown == {motion}


def test_degenerate_paths_show_nothing():
    still = Path(centre=torch.full((80, 2), 40.0), known=KNOWN)
    unknown = Path(centre=torch.zeros(80, 2), known=~KNOWN)
    short = Path(centre=torch.zeros(3, 2), known=KNOWN[:3])
    diagonal = straight([30.0, 30.0])
    for path in (still, unknown, short, diagonal):
        assert not any(shows_motion(path, motion) for motion in MOTIONS)
    for path in (still, unknown, short):
        assert path.speed() == 0
        assert not any(shows_speed(path, speed) for speed in SPEEDS)


def test_a_circle_of_another_size_is_not_the_worlds():
    angle = torch.arange(80) / 10
    for radius in (8.0, 40.0):
        path = Path(centre=radius * torch.stack([angle.cos(), angle.sin()], dim=-1), known=KNOWN)
        assert not shows_motion(path, "circling clockwise")


@pytest.mark.parametrize(
    ("pixels_per_second", "name"),
    [(5, None), (16, "slowly"), (26, "slowly"), (34, "quickly"), (60, "quickly"), (90, None)],
)
def test_speed_is_the_nearest_one_within_reason(pixels_per_second, name):
    path = straight([float(pixels_per_second), 0.0])
    assert path.speed() == pytest.approx(pixels_per_second, rel=1e-4)
    assert {speed for speed in SPEEDS if shows_speed(path, speed)} == ({name} if name else set())


def test_velocity_is_not_measured_over_frames_that_are_not_known():
    path = straight([20.0, 0.0])
    path.centre[40:] += 1000
    known = KNOWN.clone()
    known[36:44] = False
    gap = Path(centre=path.centre, known=known)
    assert float(gap.velocities()[:, 0].max()) == pytest.approx(20)
    assert len(gap.speed_per_second()) == 4  # too little is known of the third second
