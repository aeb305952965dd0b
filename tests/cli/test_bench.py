"""`forcing-kv bench`, from arguments to the report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from forcing_kv.bench import Ceilings
from forcing_kv.cli import bench as bench_module
from forcing_kv.cli import cli
from forcing_kv.models import save_transformer
from forcing_kv.models.folder import read_preset, read_transformer_config

ROW_KEYS = {
    "name",
    "policy",
    "videos",
    "fps_diffusion",
    "fps_end_to_end",
    "chunk_latency_ms",
    "chunk_latency_ms_p95",
    "first_frame_ms",
    "compile_ms",
    "first_compile_ms",
    "steady_chunk_ms",
    "cache_bytes",
    "steady_cache_bytes",
    "peak_bytes",
    "frames_read",
    "flops_per_pass",
    "bytes_per_pass",
    "least_chunk_ms",
    "share_of_ceiling",
    "by_chunk",
    "timed",
}
SMALL = ["--resolution", "48x32", "--seconds", "0.5"]
RANDOM = ["--model", "self-forcing-1.3b", "--random-weights", "--layers", "1", "--resolution", "96x16"]


@pytest.fixture
def bench(tiny_model_folder, tmp_path, monkeypatch):
    """Runs `forcing-kv bench` on the small model, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=tiny_model_folder):
        settings = ["--device", "cpu", "--dtype", "float32"]
        chosen = [] if "--model" in arguments else ["--model", model]
        return CliRunner().invoke(cli, ["bench", *map(str, [*chosen, *settings, *arguments])])

    return run


@pytest.fixture
def known_ceilings(monkeypatch):
    """Saves the second that measuring them takes."""
    ceilings = Ceilings(matmul_flops_per_second=1e15, copy_bytes_per_second=1e15)
    monkeypatch.setattr(bench_module, "measure_ceilings", lambda *_: ceilings)


def last_document(result):
    return json.loads(result.stdout.splitlines()[-1])


def test_the_embedded_model_ends_with_one_document(bench):
    result = bench("--model", "tiny", *SMALL, "--repeats", 1, "--json", "r.json", "--figure", "f.png")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir()) == ["f.png", "r.json"]
    document = last_document(result)
    assert json.loads(Path("r.json").read_text()) == document
    assert document["complete"]
    assert document["left_out"].keys() <= {"peak_bytes"}
    assert document["config"]["model"] == "tiny"
    assert [row["name"] for row in document["policies"]] == ["full", "window", "forcing-kv"]
    for row in document["policies"]:
        assert row.keys() >= ROW_KEYS
        assert min(row["fps_diffusion"], row["fps_end_to_end"], row["steady_chunk_ms"], row["cache_bytes"]) > 0
        assert row["chunk_latency_ms"] <= row["chunk_latency_ms_p95"]
        assert 0 < row["share_of_ceiling"] < 1
    full, window, ours = document["policies"]
    assert ours["frames_read"] < window["frames_read"] == 12 < full["frames_read"] == 21
    assert ours["steady_cache_bytes"] < window["steady_cache_bytes"] / 2 < full["steady_cache_bytes"] / 4
    lines = result.stdout.splitlines()
    assert lines[0].startswith("tiny, ")
    assert "TFLOP/s in a matrix product" in lines[1]  # told before anything is measured
    assert lines[-2].startswith("forcing-kv is ")
    with Image.open("f.png") as picture:
        assert picture.width == 1600


def test_random_weights_of_a_released_model(bench, known_ceilings):
    settings = "window:window_frames=6,sink_frames=1,forcing-kv:dense_layers=none"
    result = bench(*RANDOM, "--seconds", 0.1, "--repeats", 1, "--policies", settings)
    assert result.exit_code == 0, result.output
    document = last_document(result)
    window, ours = document["policies"]
    assert (window["name"], ours["name"]) == ("window:window_frames=6,sink_frames=1", "forcing-kv:dense_layers=none")
    assert document["ratios"]["against"] == "forcing-kv:dense_layers=none"
    assert document["config"]["num_layers"] == 1
    assert document["config"]["head_map"].endswith("first 1 layers")
    assert document["config"]["weights"] == "random"
    assert document["config"]["attention"] == "sdpa"
    assert "; attention by sdpa\n" in result.stdout
    assert (document["config"]["execution"], document["config"]["precision"]) == ("eager", None)
    for row in document["policies"]:
        assert row["compile_ms"] == row["first_compile_ms"] == 0
        assert row["fps_diffusion"] > 0
        assert row["fps_end_to_end"] is row["fps_end_to_end_range"] is None
        assert row["timed"][0]["decode_ms"] == row["timed"][0]["encode_ms"] == [0]
        linear = 2 * 18 * (6 * 1536**2 + 2 * 1536 * 8960)  # a chunk of 18 tokens through one block of the true sizes
        assert linear < row["flops_per_pass"] < 1.1 * linear
    assert "CPU" in document["left_out"]["fps_end_to_end"]
    assert "left out: fps_end_to_end: " in result.stdout
    assert not os.listdir()


def test_one_storage_and_one_step_cache_for_all_policies(bench, known_ceilings):
    settings = ["--kv-dtype", "int8", "--step-cache", 1000, "--policies", "window,forcing-kv", "--repeats", 1]
    result = bench(*SMALL, *settings)
    assert result.exit_code == 0, result.output
    config = last_document(result)["config"]
    assert (config["kv_dtype"], config["step_cache"]) == ("int8", 1000)
    assert (config["steps_skipped"], config["passes_per_chunk"]) == (3, 2)
    assert "float32 on cpu, int8 cache: 1 x " in result.stdout
    assert "2 passes (step cache: 3 of 4 steps left out)" in result.stdout


def test_files_that_exist_are_refused_and_replaced(bench, known_ceilings):
    Path("r.json").write_text("precious")
    refused = bench("--json", "r.json")
    assert refused.exit_code == 2
    assert "r.json exists: " in refused.stderr
    assert Path("r.json").read_text() == "precious"
    arguments = (
        "--policies",
        "window",
        *SMALL,
        "--repeats",
        1,
        "--json",
        "r.json",
        "--overwrite",
        "--attention",
        "plain",
    )
    assert bench(*arguments).exit_code == 0
    document = json.loads(Path("r.json").read_text())
    assert document["complete"]
    assert document["config"]["attention"] == "plain"


def test_killed_it_keeps_what_is_finished(tiny_model_folder, tmp_path):
    """By a signal that leaves no time to tidy up."""
    start = [sys.executable, "-c", "from forcing_kv.cli import main; main()", "bench", "--model", tiny_model_folder]
    arguments = ["--device", "cpu", *SMALL, "--repeats", 100_000, "--json", tmp_path / "r.json"]
    arguments += ["--policies", "window,forcing-kv"]
    with subprocess.Popen([*map(str, [*start, *arguments])], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "r.json").exists():
            assert process.poll() is None, "the program ended before it was expected to"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["complete"] is False
    assert document["policies"][0]["name"] == "window"
    assert document["policies"][0]["videos"] >= 1
    assert document["policies"][0]["fps_diffusion"] > 0


def test_interrupted_it_tells_what_is_finished(bench, known_ceilings, monkeypatch):
    def interrupted(*arguments, **settings):
        yield next(run_benchmark(*arguments, **settings))
        raise KeyboardInterrupt

    run_benchmark = bench_module.run_benchmark
    monkeypatch.setattr(bench_module, "run_benchmark", interrupted)
    result = bench(*SMALL, "--repeats", 1, "--policies", "window,forcing-kv")
    assert result.exit_code == 130
    document = last_document(result)
    assert document["complete"] is False
    assert [row["name"] for row in document["policies"]] == ["window"]


BAD_CALLS = [
    (["--policies", "full,nonsense"], "unknown policy 'nonsense'; choose one of: .*full"),
    (["--policies", "full,full"], "'full' is there twice"),
    (["--policies", "window:window_frames=many"], "window_frames='many' is not a number"),
    (["--policies", ""], "'' is no policy"),
    (["--model", "nonsense"], "unknown model 'nonsense'; choose one of: tiny"),
    (["--repeats", "0"], "repeats=0 measures nothing; use at least 1"),
    (["--repeats", "many"], "'many' is not a valid integer"),
    (["--seconds", "0"], "0 seconds cannot be made"),
    (["--seconds", "nan"], "nan seconds cannot be made"),
    (["--layers", "2"], "add --random-weights"),
    (["--layers", "4", "--random-weights"], "layers=4: random has 3 layers; use 1 to that many"),
    (["--layers", "0", "--random-weights"], "layers=0: random has 3 layers"),
    (["--random-weights", "--weights", "w.pt"], "leave out --weights"),
    (["--resolution", "8k"], "unknown resolution '8k'"),
    (["--resolution", "100x64"], "multiples of 16; nearest: 96x64"),
    (["--resolution", "80x16"], "segments_per_frame=6 does not divide the 5 tokens"),
    (["--resolution", "15360x15360", "--seconds", "300"], "with policy full needs .* GB"),
    (["--prompt", " "], "prompt is empty"),
    (["--device", "abacus"], "unknown device 'abacus'"),
    (["--dtype", "int3"], "unknown dtype 'int3'"),
    (["--head-map", "missing.json"], "cannot read head map"),
    (["--attention", "sage"], r"unknown attention back end 'sage'; choose one of: auto, sdpa, .*cudnn \(not here: "),
    (["--attention", "cudnn"], "'cudnn' cannot be had on cpu in .* with 12 values per head: needs an NVIDIA GPU"),
    (["--json", "there.json"], "there.json exists: .*--overwrite"),
    (["--json", "missing/r.json"], "missing does not exist"),
    (["--figure", "there.json"], "there.json exists"),
    (["--kv-dtype", "int3"], "unknown kv_dtype 'int3'; choose one of: int8, fp8"),
    (["--step-cache", "-1"], "step cache threshold -1 must be at least 0"),
    (["--step-cache", "0.2", "--random-weights"], "step_cache=0.2 says nothing with random weights"),
    (["--nonsense"], "No such option"),
    (["--model", "no_map"], "policy 'forcing-kv' needs a head map, and this model has none"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[" ".join(call[0][:4]) for call in BAD_CALLS])
def test_what_cannot_work_is_told_before_any_work(bench, tiny_model_folder, monkeypatch, arguments, message):
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(bench_module, "load_pipeline", work)
    monkeypatch.setattr(bench_module, "measure_ceilings", work)
    Path("there.json").write_text("precious")
    save_transformer(
        Path("no_map"),
        preset=read_preset(tiny_model_folder),
        config=read_transformer_config(tiny_model_folder),
        weights={},
    )
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_without_matplotlib_no_figure_is_promised(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = bench("--figure", "f.png")
    assert result.exit_code == 2
    assert "pip install 'forcing-kv[figures]'" in result.stderr
