import json
import sys

import pytest
import torch

from calibrations import constant_scores, head_map, observations
from forcing_kv.calibration.report import write_report
from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.figure_style import check_figures_available
from forcing_kv.versions import versions


def test_the_report_reads_back_what_was_seen(tmp_path):
    scores = torch.rand(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    seen = observations(scores, standard_errors=torch.full_like(scores, 0.01))
    seen.distance_mass[1, 2, 0] = torch.nan  # a distance that no measured pass had
    roles = head_map(seen, threshold=0.5)
    table = write_report(seen, roles, tmp_path)

    names = ["frame_mass.png", "report.json", "roles.png", "spread.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["format"], report["version"]) == ("forcing-kv-calibration-report", 1)
    assert (report["model"], report["num_layers"], report["num_heads"]) == ("planted", 5, 6)
    assert report["threshold"] == 0.5
    assert report["roles"] == list(roles.roles)
    for name in ("prompts", "seeds", "chunks", "steps", "distances"):
        assert report[name] == list(getattr(seen, name))
    assert report["settings"] == seen.settings
    assert report["versions"] == versions()
    close = {"rtol": 1e-5, "atol": 0, "check_dtype": False}
    torch.testing.assert_close(torch.tensor(report["scores"]), seen.head_scores(), **close)
    torch.testing.assert_close(torch.tensor(report["sink_mass"]), seen.sink_mass, **close)
    assert report["distance_mass"][1][2][0] is None
    assert report["distance_mass"][1][2][1:] == pytest.approx(seen.distance_mass[1, 2, 1:].tolist(), rel=1e-5)
    for name, others in (("prompts", (1, 2)), ("chunks", (0, 2)), ("steps", (0, 1))):
        means = scores.double().mean(dim=others)
        torch.testing.assert_close(torch.tensor(report["standard_deviations"][name]), means.std(dim=0), **close)
        flips = ((means >= 0.5) != (seen.head_scores() >= 0.5)).any(dim=0)
        assert report["flips"][name] == flips.tolist()
        assert report["stability"][name]["num_flips"] == flips.sum()
    assert report["stability"]["largest_sampling_error"] == pytest.approx(0.01 / 24**0.5)
    assert f"{report['stability']['num_static']} of 30" in table.splitlines()[0]


def test_an_axis_with_one_value_has_no_deviations_in_the_report(tmp_path):
    seen = observations(constant_scores([[0.9, 0.1]], steps=1))
    write_report(seen, head_map(seen), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["standard_deviations"]) == set(report["flips"]) == {"prompts", "chunks"}
    assert report["stability"]["steps"] == {"num_values": 1}


def test_without_matplotlib_nothing_is_started(tmp_path, monkeypatch):
    check_figures_available()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"matplotlib.*pip install 'forcing-kv\[figures\]'"):
        check_figures_available()
    seen = observations(constant_scores([[0.9, 0.1]]))
    with pytest.raises(ConfigurationError, match="matplotlib"):
        write_report(seen, head_map(seen), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    seen = observations(constant_scores([[0.9, 0.1]]))
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(seen, head_map(seen), tmp_path / "missing")
