"""What kind of way an object goes, and how fast, from where it is in each frame.

Only frames that show all of the object tell where it is. A window is judged by what its path can show: the direction
of a straight motion, the axis of a bouncing one, size and sense of a circle; that something bounces at all shows only
in the whole clip, where the number of its turns must go with its speed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forcing_kv.tiny.world import FRAMES_PER_SECOND, HEIGHT, SPEEDS, WIDTH

MIN_MOVING = 5.0
"""Pixels per second; less is standing still."""

_LAG = 4  # frames over which a velocity is measured
_MIN_SAMPLES = 8
_MOST = 0.85  # of a window's velocities must go with the motion
_ACROSS = 0.5  # velocity across the motion, as a share of that along it
_DIRECTIONS = {"rightward": (0, 1), "leftward": (0, -1), "downward": (1, 1), "upward": (1, -1)}
_TRACKS = {"sideways": (0, WIDTH - 40.0), "vertically": (1, HEIGHT - 40.0)}
_SENSES = {"clockwise": 1, "counterclockwise": -1}  # of the angle from right to down
_ORBIT_RADII = (12.0, 30.0)  # the drawn one is 20
_MAX_ORBIT_ERROR = 0.2  # as a share of the radius
_SPEED_LIMITS = (0.5 * min(SPEEDS.values()), 1.6 * max(SPEEDS.values()))


@dataclass(frozen=True, kw_only=True)
class Path:
    """Where an object is.

    Attributes:
        centre: float [frames, 2], x and y in pixels.
        known: bool [frames], whether the centre means something.
    """

    centre: Tensor
    known: Tensor

    def part(self, span: slice) -> "Path":
        """Some frames of it."""
        return Path(centre=self.centre[span], known=self.known[span])

    def velocities(self) -> Tensor:
        """float [n, 2] in pixels per second, over quarters of a second in which it is known all the time."""
        velocity, usable = self._all_velocities()
        return velocity[usable]

    def speed(self) -> float:
        """Median speed in pixels per second; 0 if it is never known."""
        velocity = self.velocities()
        return float(velocity.norm(dim=-1).median()) if len(velocity) else 0.0

    def speed_per_second(self) -> Tensor:
        """Median speed [seconds] in each whole second in which it is known half of the time."""
        velocity, usable = self._all_velocities()
        seconds = zip(torch.split(velocity, FRAMES_PER_SECOND), torch.split(usable, FRAMES_PER_SECOND), strict=True)
        parts = [part[fine].norm(dim=-1).median() for part, fine in seconds if int(fine.sum()) >= _MIN_SAMPLES]
        return torch.stack(parts) if parts else torch.zeros(0)

    def _all_velocities(self) -> tuple[Tensor, Tensor]:
        if len(self.known) <= _LAG:
            return torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)
        velocity = (self.centre[_LAG:] - self.centre[:-_LAG]) * (FRAMES_PER_SECOND / _LAG)
        return velocity, self.known.unfold(0, _LAG + 1, 1).all(dim=-1)


def shows_motion(path: Path, motion: str) -> bool:
    """Whether a path of a few seconds goes with one of `MOTIONS`."""
    verb, way = motion.split()
    if verb == "circling":
        return _turns_round(path, _SENSES[way])
    velocity = path.velocities()
    if len(velocity) < _MIN_SAMPLES:
        return False
    axis, sign = _DIRECTIONS[way] if verb == "moving" else (_TRACKS[way][0], 0)
    along, across = velocity[:, axis], velocity[:, 1 - axis].abs()
    fits = across <= (_ACROSS * along.abs()).clamp_min(MIN_MOVING)
    if sign:
        fits &= along * sign >= MIN_MOVING
    return _share(fits) >= _MOST and float(along.abs().median()) >= MIN_MOVING


def turns_fit(path: Path, motion: str) -> bool:
    """Whether a bouncing object turns about as often as its speed says, over the whole path; others need not."""
    verb, way = motion.split()
    if verb != "bouncing":
        return True
    axis, track = _TRACKS[way]
    velocity = path.velocities()[:, axis]
    signs = velocity[velocity.abs() >= MIN_MOVING].sign()
    num_turns = int((signs[1:] != signs[:-1]).sum())
    expected = len(path.known) / FRAMES_PER_SECOND * path.speed() / track
    return math.floor(0.8 * expected) <= num_turns <= math.ceil(1.25 * expected) + 1


def shows_speed(path: Path, speed: str) -> bool:
    """Whether a path of a few seconds is nearest to one of `SPEEDS`, as a ratio."""
    measured = path.speed()
    if not _SPEED_LIMITS[0] <= measured <= _SPEED_LIMITS[1]:
        return False
    return speed == min(SPEEDS, key=lambda name: max(measured / SPEEDS[name], SPEEDS[name] / measured))


def _turns_round(path: Path, sense: int) -> bool:
    """Whether the path lies on a circle about as large as it should be, gone round in one sense."""
    places = path.centre[path.known]
    if len(places) < 3 * _MIN_SAMPLES:
        return False
    # The circle |p|^2 = 2 c p + (r^2 - c^2) that fits best is linear in c and r^2 - c^2.
    middle = places.mean(dim=0)
    points = places - middle
    unknowns = torch.cat([2 * points, torch.ones(len(points), 1)], dim=-1)
    solution = torch.linalg.lstsq(unknowns, points.square().sum(dim=-1, keepdim=True)).solution[:, 0]
    centre = solution[:2]
    radius = float((solution[2] + centre.square().sum()).clamp_min(0).sqrt())
    if not _ORBIT_RADII[0] <= radius <= _ORBIT_RADII[1]:
        return False
    error = (points - centre).norm(dim=-1) - radius
    arms = path.centre - middle - centre
    velocity, usable = path._all_velocities()
    turning = arms[:-_LAG, 0] * velocity[:, 1] - arms[:-_LAG, 1] * velocity[:, 0]
    is_round = float(error.square().mean().sqrt()) <= _MAX_ORBIT_ERROR * radius
    return is_round and _share(turning[usable] * sense > MIN_MOVING * radius / 2) >= _MOST


def _share(flags: Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else 0.0
