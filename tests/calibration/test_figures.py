import sys

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from calibrations import constant_scores, head_map, observations
from forcing_kv.calibration.figures import write_figures
from forcing_kv.calibration.stability import measure_stability
from forcing_kv.figure_style import WIDTH_PIXELS

NAMES = ["roles.png", "frame_mass.png", "spread.png"]


def draw(seen, folder):
    return write_figures(seen, measure_stability(seen, head_map(seen)), model="planted", folder=folder)


def random_scores(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "settings", "roles_height"),
    [
        ((3, 2, 4, 30, 12), {}, 664),
        ((2, 2, 1, 40, 40), {"sink_frames": 0}, 1424),
        ((1, 1, 1, 1, 1), {"sink_frames": 1, "chunk_frames": 1}, 512),
        ((2, 1, 2, 90, 2), {}, 512),
    ],
)
def test_every_size_of_model_has_its_pictures(tmp_path, shape, settings, roles_height):
    paths = draw(observations(random_scores(*shape), **settings), tmp_path)
    assert [path.name for path in paths] == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for path, height in zip(paths, (roles_height, 832, 1376), strict=True):
        with Image.open(path) as picture:
            assert picture.size == (WIDTH_PIXELS, height)
            assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 50


@pytest.mark.parametrize("score", [0.95, 0.05])
def test_heads_of_one_role_and_masses_that_were_never_seen(tmp_path, score):
    seen = observations(constant_scores([[score] * 3] * 2))
    seen.distance_mass[..., 0] = torch.nan
    seen.sink_mass.zero_()
    assert len(draw(seen, tmp_path)) == 3


def test_the_users_own_settings_are_neither_used_nor_changed(tmp_path):
    seen = observations(random_scores(2, 2, 2, 3, 4))
    (tmp_path / "plain").mkdir()
    (tmp_path / "red").mkdir()
    plain = draw(seen, tmp_path / "plain")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 10}):
        before = dict(matplotlib.rcParams)
        red = draw(seen, tmp_path / "red")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in red]


def test_pyplot_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw(observations(random_scores(2, 2, 2, 3, 4)), tmp_path)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_drawing_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    seen = observations(random_scores(2, 2, 2, 3, 4))
    (tmp_path / "roles.png").write_bytes(b"of the last run")

    def fail(figure, path, **settings):
        path.write_bytes(b"half")
        raise RuntimeError("no font")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="no font"):
        draw(seen, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["roles.png"]
    assert (tmp_path / "roles.png").read_bytes() == b"of the last run"
