import numpy as np
import pytest

from comparisons import compared, measured
from forcing_kv.evaluation import format_table, summarise
from forcing_kv.evaluation.bootstrap import Bootstrap
from forcing_kv.evaluation.report import report_document


def three_policies(folder, num_prompts=8, **settings):
    """The window is worse than the reference in all; `window:window_frames=9` as good, from prompt 5 on better."""
    rng = np.random.default_rng(0)
    rights = {"colour": True, "shape": True, "camera": None}
    wrong = {**rights, "shape": False}
    videos = {
        "full": [measured(is_reference=True, flow=1.0 + 0.1 * i, rights=rights) for i in range(num_prompts)],
        "window": [
            measured(flow=2.0 + 0.1 * i, boundary_flow=3.0 + 0.1 * i, rights=wrong, cosine=0.5 + i / 100, rng=rng)
            for i in range(num_prompts)
        ],
        "window:window_frames=9": [
            measured(flow=1.0 + 0.1 * i, rights=rights, cosine=0.9 - i / 100) for i in range(num_prompts)
        ],
    }
    return compared(videos, folder, **settings)


def test_means_differences_and_verdicts(tmp_path):
    summary = summarise(three_policies(tmp_path))
    full, window, close = summary.policies
    assert (full.is_reference, window.is_reference) == (True, False)
    assert full.metrics["world"].estimate.mean == 100
    assert full.metrics["world"].difference is None
    assert "psnr" not in full.metrics
    assert "motion-ratio" not in full.metrics
    worse = window.metrics["world"]
    assert (worse.estimate.mean, worse.difference.mean, worse.verdict) == (50, -50, "worse")
    assert worse.difference.interval_95 == (-50, -50)
    assert window.metrics["boundary-jump"].verdict == "worse"  # where lower is better
    assert window.metrics["motion"].verdict == "differs"  # where neither is
    assert close.metrics["world"].verdict == ""
    assert close.metrics["motion-ratio"].estimate.mean == 1
    assert close.metrics["psnr"].difference is None
    assert close.metrics["cosine"].values == pytest.approx([0.9 - i / 100 for i in range(8)])
    assert window.shares["shape"]["share"] == 0
    assert window.shares.keys() == {"colour", "shape"}
    assert window.share_differences["shape"]["difference"] == -1
    assert window.cache_bytes == 1_000_000
    assert window.seconds_diffusion == pytest.approx(6.4)


def test_policies_are_compared_with_each_other_too(tmp_path):
    pairs = summarise(three_policies(tmp_path)).pairs
    there, back = pairs["cosine"]["window"], pairs["cosine"]["window:window_frames=9"]
    (first,), (second,) = there.values(), back.values()
    assert first.mean == pytest.approx(-second.mean)
    assert first.mean == pytest.approx(-0.33, abs=0.01)
    assert "full" not in pairs["world"]
    only_two = {"full": [measured(is_reference=True)] * 2, "window": [measured()] * 2}
    assert summarise(compared(only_two, tmp_path)).pairs == {}


def test_curves_are_means_over_prompts(tmp_path):
    videos = {
        "full": [measured(is_reference=True)] * 2,
        "window": [measured(cosine=0.8, **{"squared-error": 10.0}), measured(cosine=0.6, **{"squared-error": 30.0})],
    }
    curves = summarise(compared(videos, tmp_path)).policies[1].curves
    assert curves["cosine"] == pytest.approx([0.7] * 4)
    assert curves["psnr"] == pytest.approx([10 * np.log10(255**2 / 20)] * 4)
    assert len(curves["boundary-jump"]) == 12


def test_shown_prompts_are_the_best_the_median_and_the_worst(tmp_path):
    """By the world score, which is the same for all of them, and then by PSNR, from high to low."""
    videos = {
        "full": [measured(is_reference=True, rights={"colour": True})] * 5,
        "window": [
            measured(rights={"colour": True}, **{"squared-error": error}) for error in (3.0, 1.0, 5.0, 2.0, 4.0)
        ],
    }
    summary = summarise(compared(videos, tmp_path))
    assert [(shown.role, shown.index) for shown in summary.shown] == [("best", 1), ("median", 0), ("worst", 2)]
    assert summary.shown_by == "by World score less the reference's, mean over the policies; ties by PSNR"
    videos["full"][1] = measured(is_reference=True, rights={"colour": False})
    videos["window"][4] = measured(rights={"colour": False})
    summary = summarise(compared(videos, tmp_path))
    assert [shown.index for shown in summary.shown] == [1, 0, 4]
    for num_prompts, roles in ((1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])):
        few = {policy: each[:num_prompts] for policy, each in videos.items()}
        assert [shown.role for shown in summarise(compared(few, tmp_path)).shown] == roles
    undirected = summarise(compared(videos, tmp_path, metrics=["motion"]))
    assert undirected.shown_by == "in the order of the prompt file"


def test_prompts_that_nothing_judges_count_in_the_other_metrics_only(tmp_path):
    videos = {
        "full": [measured(is_reference=True, rights={"colour": True}), measured(is_reference=True)],
        "window": [measured(rights={"colour": False}), measured()],
    }
    window = summarise(compared(videos, tmp_path, not_judged={1: "why"})).policies[1]
    assert window.metrics["world"].values == (0, None)
    assert window.metrics["world"].estimate.num_prompts == 1
    assert window.metrics["world"].difference.mean == -100
    assert window.metrics["psnr"].estimate.num_prompts == 2
    assert window.rights == ({"colour": False}, None)


def test_the_document_holds_every_figure(tmp_path):
    document = report_document(summarise(three_policies(tmp_path, not_judged={2: "no word of it"}), Bootstrap(seed=3)))
    assert (document["format"], document["version"]) == ("forcing-kv-comparison", 1)
    assert document["environment"]["versions"]["scikit-image"]
    config = document["config"]
    assert (config["num_prompts"], config["frames"], config["seed"], config["seconds"]) == (8, 45, 7, 2.8125)
    assert config["policies"] == ["full", "window", "window:window_frames=9"]
    assert config["intervals"] == {
        "level": 0.95,
        "method": "percentile",
        "over": "prompts",
        "resamples": 2000,
        "seed": 3,
    }
    assert document["prompts"][2] == {"prompt": "prompt <2> & more", "seed": 9}
    assert document["not_judged"] == [{"prompt": "prompt <2> & more", "reason": "no word of it"}]
    assert document["left_out"] == {"lpips": "LPIPS needs lpips"}
    window = document["policies"][1]
    assert (window["name"], window["cache_bytes"]) == ("window", 1_000_000)
    world = window["metrics"]["world"]
    assert world["mean"] == 50
    assert world["values"] == [50] * 8
    assert world["difference"] == {"mean": -50, "interval_95": [-50, -50], "num_prompts": 8, "verdict": "worse"}
    assert window["metrics"]["psnr"]["difference"] is None
    assert window["world"]["rights"][0] == {"colour": True, "shape": False, "camera": None}
    assert document["metrics"]["motion"]["flow"] == "DIS (OpenCV)"
    assert "flow" not in document["metrics"]["psnr"]
    assert len(window["curves"]["ssim"]) == 4


def test_the_table(tmp_path):
    lines = format_table(summarise(three_policies(tmp_path, metrics=["world", "psnr", "motion"]))).splitlines()
    assert [head.strip() for head in lines[0].split("  ") if head.strip()] == [
        "policy",
        "cache",
        "world ↑",
        "psnr ↑",
        "motion",
    ]
    assert lines[1].startswith("full (reference)")
    assert "50.0 ±0.0-" in lines[2]
    assert "*" in lines[2]
    assert "1.00 MB" in lines[3]
    assert lines[-2] == "Optical flow: DIS (OpenCV)."
    assert lines[-1] == "lpips: left out, LPIPS needs lpips"
