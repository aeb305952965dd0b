import pytest

from comparisons import measured
from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.evaluation.metrics import METRICS, Better, series_of, split_metrics


def test_names_stand_for_what_begins_with_them():
    assert split_metrics("drift, psnr") == ["psnr", "drift-colour", "drift-contrast", "drift-sharpness"]
    assert split_metrics("motion") == ["motion", "motion-ratio"]
    assert split_metrics("drift-colour,drift-colour") == ["drift-colour"]
    assert split_metrics(" all ") == list(METRICS)


def test_what_is_none_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown metric 'beauty'; choose one of: all, world, psnr, .*, drift"):
        split_metrics("psnr,beauty")
    with pytest.raises(UnknownNameError, match="unknown metric 'drift-'"):
        split_metrics("drift-")
    with pytest.raises(ConfigurationError, match="name none"):
        split_metrics(" , ")


def test_every_metric_says_what_it_is():
    for metric in METRICS.values():
        assert metric.title
        assert len(metric.about) > 60
        assert metric.to_json()["better"] == metric.better.value
        assert metric.series or metric.needs_world
        assert metric.against_reference == (
            metric.better is Better.NEAR_ONE or any(series.against_reference for series in metric.series)
        )


def test_every_metric_can_be_computed_and_drawn():
    reference = measured(is_reference=True, rights={"colour": True})
    video = measured(rights={"colour": False, "shape": True, "camera": None}, lpips=0.2)
    for metric in METRICS.values():
        assert metric.compute(video, reference) is not None, metric.name
        if metric.curve is not None:
            size = 12 if metric.curve.over == "place" else 4
            assert metric.curve.finish(metric.curve.of(video, reference)).shape == (size,)
    assert METRICS["world"].compute(video, reference) == 50
    assert METRICS["world"].compute(measured(), reference) is None


def test_a_series_is_measured_once():
    names = [series.name for series in series_of(list(METRICS.values()))]
    assert len(names) == len(set(names))
    assert names.count("flow") == 1
