"""The report of a benchmark: medians, spread and ratios of numbers that are known."""

import json
from dataclasses import replace

import pytest

from forcing_kv.bench import Ceilings, environment
from forcing_kv.bench.report import benchmark_report, ratios, write_report
from forcing_kv.bench.table import describe_limits, describe_results
from forcing_kv.errors import OutputError
from forcing_kv.stream_options import StreamOptions
from measurements import measured, small_plan

CEILINGS = Ceilings(matmul_flops_per_second=1e9, copy_bytes_per_second=1e30)


@pytest.fixture
def plan(tiny_model_folder):
    """Two chunks per video, 21 frames; the steady state is reached behind their end."""
    return small_plan(tiny_model_folder)


FULL = [[100.0, 200.0, 1.0, 1.0, 1.0, 1.0, 600.0], [110.0, 220.0, 1.0, 1.0, 1.0, 1.0, 640.0]]
WINDOW = [[100.0, 200.0, 1.0, 450.0], [300.0, 400.0, 1.0, 480.0]]
OURS = [[100.0, 100.0, 1.0, 310.0], [100.0, 110.0, 1.0, 300.0]]


def report(plan, times=(FULL, WINDOW, OURS), **settings):
    return benchmark_report(plan, measured(plan, times, **settings), ceilings=CEILINGS, environment=environment())


def test_medians_and_spread(plan):
    document = report(plan)
    assert document["complete"] is True
    assert [row["name"] for row in document["policies"]] == ["full", "window", "forcing-kv"]
    full, window, ours = document["policies"]
    assert full["fps_diffusion"] == pytest.approx((21 / 0.300 + 21 / 0.330) / 2, rel=1e-5)
    assert full["fps_diffusion_range"] == pytest.approx([21 / 0.330, 21 / 0.300], rel=1e-5)
    assert full["fps_end_to_end"] == 42.0  # 21 frames in half a second, by the clock on the wall
    assert [row["steady_chunk_ms"] for row in document["policies"]] == [620, 465, 305]
    assert ours["steady_chunk_ms_range"] == [300, 310]
    assert [row["steady_chunks"] for row in document["policies"]] == [[6], [3], [3]]
    # Chunks take 135, 230 and 145, 250 ms with text, decode and encode; 5 % of the way down from the top.
    assert full["chunk_latency_ms"] == pytest.approx((145 + 230) / 2)
    assert full["chunk_latency_ms_p95"] == pytest.approx(230 + 0.85 * (250 - 230))
    assert window["first_frame_ms"] == 300
    assert window["first_frame_ms_range"] == [200, 400]
    assert full["cache_bytes"] == 2000  # at the end of the video
    assert full["steady_cache_bytes"] == 7000
    assert full["peak_bytes"] == 7_000_000
    assert window["by_chunk"]["end_seconds"] == [9 / 16, 21 / 16]
    assert window["by_chunk"]["fps_diffusion"] == pytest.approx([(90 + 30) / 2, (60 + 30) / 2])
    assert window["by_chunk"]["cache_bytes"] == [1000, 2000]
    assert window["timed"][1]["diffusion_ms"] == [300, 400]
    assert window["timed"][1]["steady_ms"] == [480]


def test_the_arithmetic_stands_beside_the_times(plan):
    document = report(plan)
    row, policy = document["policies"][0], plan.policies[0]
    work = plan.pass_work(policy.steady.history_tokens)
    assert (row["flops_per_pass"], row["bytes_per_pass"], row["frames_read"]) == (work.flops, work.bytes, 21)
    assert row["least_chunk_ms"] == pytest.approx(5 * work.flops / 1e6, rel=1e-5)
    assert row["share_of_ceiling"] == pytest.approx(5 * work.flops / 1e6 / 620, rel=1e-5)
    assert document["ceilings"] == {"matmul_tflops_per_second": 0.001, "copy_gbytes_per_second": 1e21}


def test_steps_left_out_are_no_arithmetic(plan):
    """Two of four: three passes count, and the figures of one pass stay as they are."""
    before = report(plan)["policies"][0]
    plan = replace(plan, options=StreamOptions(step_cache=0.2, kv_dtype="fp8"), steps_skipped=2)
    document = report(plan)
    row = document["policies"][0]
    assert row["flops_per_pass"] == before["flops_per_pass"]
    assert row["bytes_per_pass"] < before["bytes_per_pass"]
    assert row["least_chunk_ms"] == pytest.approx(3 / 5 * before["least_chunk_ms"], rel=1e-5)
    config = document["config"]
    assert (config["kv_dtype"], config["step_cache"], config["passes_per_chunk"]) == ("fp8", 0.2, 3)
    limits = describe_limits(plan, CEILINGS).splitlines()
    assert "float32 on cpu, fp8 cache: " in limits[0]
    assert "a chunk of 3 passes (step cache: 2 of 4 steps left out) takes at least" in limits[1]


def test_ratios_are_multiples_of_ours(plan):
    document = report(plan)
    full, _, ours = document["policies"]
    assert document["ratios"]["against"] == "forcing-kv"
    assert set(document["ratios"]["policies"]) == {"full", "window"}
    ratio = document["ratios"]["policies"]["full"]
    assert ratio["steady_chunk_ms"] == pytest.approx(620 / 305, rel=1e-5)
    assert ratio["flops_per_pass"] == pytest.approx(full["flops_per_pass"] / ours["flops_per_pass"], rel=1e-5)
    assert ratio["bytes_per_pass"] == pytest.approx(full["bytes_per_pass"] / ours["bytes_per_pass"], rel=1e-5)
    assert ratio["steady_cache_bytes"] == 1.75


def test_ratios_without_ours_are_multiples_of_the_first(tiny_model_folder):
    plan = small_plan(tiny_model_folder, ("window", "full"))
    document = report(plan, (WINDOW, FULL))
    assert document["ratios"]["against"] == "window"
    assert document["ratios"]["policies"]["full"]["steady_chunk_ms"] == pytest.approx(620 / 465, rel=1e-5)
    assert ratios([], against="full") == {"against": "full", "policies": {}}


def test_an_unfinished_benchmark_has_the_rows_that_are_finished(plan):
    document = report(plan, (FULL, WINDOW[:1], []))
    assert document["complete"] is False
    assert [(row["name"], row["videos"]) for row in document["policies"]] == [("full", 2), ("window", 1)]
    assert document["ratios"] == {"against": "forcing-kv", "policies": {}}
    assert "window" in describe_results(document)


def test_config_and_environment_say_how_to_do_it_again(plan):
    document = report(plan)
    assert (document["format"], document["version"]) == ("forcing-kv-benchmark", 1)
    config = document["config"]
    assert (config["model"], config["resolution"], config["num_layers"]) == ("random", [96, 64], 3)
    assert (config["frames"], config["chunks"], config["seconds"], config["repeats"]) == (21, 2, 21 / 16, 2)
    assert (config["device"], config["dtype"], config["seed"]) == ("cpu", "float32", 0)
    assert config["policies"] == ["full", "window", "forcing-kv"]
    assert (config["kv_dtype"], config["step_cache"], config["steps_skipped"]) == (None, None, 0)
    assert config["passes_per_chunk"] == 5
    assert document["environment"].keys() >= {"commit", "versions", "processor", "threads", "measured"}


def test_a_device_that_does_not_tell_its_peak(plan):
    document = report(plan, peak_bytes=None)
    assert [row["peak_bytes"] for row in document["policies"]] == [None] * 3
    assert document["left_out"]["peak_bytes"] == "this system does not tell what a program takes of cpu"
    assert describe_results(document).splitlines()[2].endswith(" -")


def test_the_file_reads_back_whatever_is_in_it(plan, tmp_path):
    document = report(plan)
    document["config"]["prompt"] = 'a [ 3,\n 4 ] "circle" é'
    path = tmp_path / "r.json"
    write_report(document, path)
    assert json.loads(path.read_text(encoding="utf-8")) == document
    assert '"diffusion_ms": [300.0, 400.0]' in path.read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(document, tmp_path / "missing" / "r.json")


def test_the_limits_are_told_before_and_the_results_after(plan):
    limits = describe_limits(plan, CEILINGS)
    assert "random, 3 layers, 96x64, float32 on cpu: 2 x 21 frames (2 chunks) timed per policy" in limits
    assert "0.001 TFLOP/s in a matrix product" in limits
    assert [line.split()[:2] for line in limits.splitlines()[-3:]] == [
        ["full", "21.00"],
        ["window", "12.00"],
        ["forcing-kv", f"{(4 * 5 + 2 * 5 + 2 * 6 + 5 + 3 * 6) / 12:.2f}"],
    ]
    results = describe_results(report(plan)).splitlines()
    assert results[2].split()[:6] == ["full", "66.8", "42", "620", "(600", "to"]
    assert results[-2].startswith("forcing-kv is 2.03x as fast as full in the steady state (arithmetic: ")
    assert results[-2].endswith("and holds 1/1.75 of its bytes")
