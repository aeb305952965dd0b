"""The stages of the GPU benchmarks as far as a CPU goes: a dry run, the rows it leaves, the summary, and parity."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import measure
import pytest
import rows
import summary
import torch
from breakdown import ATTENTION, COPIES, ELEMENT_WISE, OTHER, PRODUCTS, Kernel, by_kind, idle_us, kind_of, longest
from parity import LIMITS, PLAIN, limit_of, read_tests, relative_difference, ways
from predictions import predict
from rows import ALONE, OURS, OVERLAPPED, Run, Way, stages
from steady_pass import SteadyPass, sharpen

from forcing_kv.bench import random_transformer
from forcing_kv.wan import TransformerConfig

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run_all.sh"
SMALL = TransformerConfig(dim=144, ffn_dim=96, num_layers=3, num_heads=12, text_dim=8, text_len=4, freq_dim=8)


def run_all(*arguments, **environment):
    settings = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([SCRIPT, *arguments], env=settings, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """A folder with the ladder's dry run: one rung goes through on a CPU."""
    out = tmp_path_factory.mktemp("dry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "TOY_SECONDS", 0.5)
        measure.Stage("ladder", out, limit_seconds=500, dry_run=True).measure()
    return out


def test_a_dry_run_fills_the_rows(dry_run):
    document = json.loads((dry_run / "ladder.json").read_text())
    assert document["complete"] is True
    assert document["dry_run"] is True
    assert document["environment"]["versions"]["torch"]
    assert [row["run"] for row in document["rows"]] == [run.name for run in rows.ladder()]
    first, *others = document["rows"]
    assert (first["status"], first["reason"], first["measured"]["attention"]) == ("measured", None, "sdpa")
    assert first["measured"]["chunk_ms"] > 0 < first["measured"]["cache_bytes"]
    assert first["measured_over_predicted"] is None  # the prediction is of another model, and of a GPU
    assert {row["status"] for row in others} == {"skipped"}
    assert all("needs a CUDA GPU" in row["reason"] and row["measured"] is None for row in others)
    assert all(row["prediction"]["chunk_ms"] > 0 for row in document["rows"])
    assert document["runs"][0]["report"]["config"]["model"] == "tiny"


def test_a_dry_run_is_no_measurement(dry_run):
    documents = summary.read_documents(dry_run)
    judged = summary.judged_goals(documents)
    assert {goal["verdict"] for goal in judged} == {"not measured"}
    assert all(goal["predicted"] is not None and goal["measured"] is None for goal in judged)
    lines = summary.missing(documents)
    assert lines[0] == "- ladder: a dry run, which measures nothing"
    assert "- 1080p-fp8: not run" in lines
    assert "dry run: skipped: execution 'cuda-graphs' needs a CUDA GPU" in summary.row_table(documents)[3]


def document(stage, figures, *, dry_run=False):
    """A stage whose rows were measured as told."""
    made = [row for run in stages(Way())[stage] for row in measure.begun_rows(stage, run)]
    for row in made:
        row.update(status="measured", measured=figures(row), measured_over_predicted=1.0)
    return {"benchmark": "gpu-stage", "dry_run": dry_run, "complete": True, "rows": made}


def as_predicted(row):
    return {**row["prediction"], "share_of_ceiling": 0.5}


def test_goals_are_met_or_not():
    documents = {stage: document(stage, as_predicted) for stage in ("480p-bf16", "1080p-bf16", "14b")}
    judged = {goal["goal"]: goal for goal in summary.judged_goals(documents)}
    assert judged["over window-12, 1080p"]["verdict"] == "goal met"
    assert judged["14B, 480p, passes alone, bf16"]["measured"] == pytest.approx(10.86, abs=0.1)
    assert judged["1.3B, 480p, passes alone, fp8 linear layers"]["verdict"] == "not measured"
    for goal in judged.values():
        if goal["measured"] is not None:
            assert goal["measured"] == goal["predicted"]
    line = next(line for line in summary.row_table(documents) if "480p-bf16 | alone | forcing-kv" in line)
    said = predict(stages(Way())["480p-bf16"][0], OURS)
    cells = [cell.strip() for cell in line.split("|")[4:-1]]
    assert cells[:4] == ["chunk_ms", f"{said['chunk_ms']:.1f}", f"{said['chunk_ms']:.1f}", "1.00"]
    assert cells[4:] == [f"{said[name]:.1f}" for name in ("fps", "vae_ms", "fps_end_to_end")] + ["50 %", "measured"]
    slow = {"480p-bf16": document("480p-bf16", lambda row: {**as_predicted(row), "fps": 64.9, "vae_ms": 114.9})}
    judged = {goal["goal"]: goal["verdict"] for goal in summary.judged_goals(slow)}
    assert judged["1.3B, 480p, passes alone, bf16"] == "goal not met"
    assert judged["Wan VAE, 480p, a chunk"] == "goal met"


def test_where_the_time_goes():
    kinds = {kind: {"ms": milliseconds, "launches": 1} for kind, milliseconds in (("gemm", 20.0), ("gaps", None))}
    row = {"policy": OURS, "options": Run(name="").options(), "status": "measured", "kinds": kinds}
    row |= {"pass_ms": 25.0, "launches": 700, "share_of_ceiling": 0.62}
    breakdown = {"benchmark": "gpu-breakdown", "dry_run": False, "rows": [row, {"status": "skipped"}]}
    assert summary.breakdown_table({"breakdown": breakdown}) == [
        "| a steady pass, ms | all | gemm | gaps | launches | of the ceiling |",
        "|---|---|---|---|---|---|",
        "| forcing-kv, 480p, bf16 | 25.00 | 20.00 |  | 700 | 62 % |",
    ]
    assert summary.breakdown_table({"breakdown": {**breakdown, "dry_run": True}}) == []


def test_nothing_counts_where_parity_failed():
    documents = {"480p-bf16": document("480p-bf16", as_predicted)}
    documents["parity"] = {"benchmark": "gpu-parity", "dry_run": False, "passed": False}
    assert {goal["verdict"] for goal in summary.judged_goals(documents)} == {"not measured"}
    assert "- parity: failed; no row counts until it passes" in summary.missing(documents)


@pytest.mark.parametrize(
    ("overlapped", "fps_end_to_end"), [(False, 12e3 / (200 + 100)), (True, 12e3 / 200)], ids=[ALONE, OVERLAPPED]
)
def test_figures_of_a_report(overlapped, fps_end_to_end):
    report = {
        "config": {"chunk_frames": 3, "chunks": 3, "decoder": "vae", "attention": "fa3"},
        "policies": [
            {
                "name": OURS,
                "videos": 2,
                "steady_chunks": [1, 2, 3],  # the last came after the video
                "timed": [
                    {"diffusion_ms": [9, 190, 210], "decode_ms": [9, 100, 100], "encode_ms": [9, 20, 30]},
                    {"diffusion_ms": [9, 200, 200], "decode_ms": [9, 100, 100], "encode_ms": [9, 20, 30]},
                ],
                "steady_chunk_ms": 200.0,
                "steady_chunk_ms_range": [190, 210],
                "frames_read": 5.6,
                "share_of_ceiling": 0.7,
                "fps_end_to_end": 30.0,
                "first_frame_ms": 400.0,
                "compile_ms": 1.0,
                "first_compile_ms": 2.0,
                "steady_cache_bytes": 5,
                "peak_bytes": 6,
            }
        ],
    }
    figures = measure.measured_figures(report, report["policies"][0], overlapped=overlapped)
    assert (figures["fps"], figures["vae_ms"], figures["encode_ms"]) == (60, 100, 25)
    assert figures["fps_end_to_end"] == pytest.approx(fps_end_to_end)
    run = stages(Way())["480p-bf16"][overlapped]
    run = replace(run, policies=(OURS,))
    (row,) = measure.begun_rows("480p-bf16", run)
    assert (row["status"], row["measured"]) == ("not run", None)
    measure.finish_row(row, run, measure.Outcome(status="measured", report=report), comparable=True)
    said = row["prediction"]
    expected = said["fps_end_to_end"] / fps_end_to_end if overlapped else 200 / said["chunk_ms"]
    assert row["measured_over_predicted"] == pytest.approx(expected, rel=1e-2)


def test_a_run_that_fails_says_why():
    run = Run(name="no such policy", policies=("nonsense",)).on_cpu()
    outcome = measure.run_bench(run, repeats=1, device=torch.device("cpu"), timeout=60)
    assert (outcome.status, outcome.report) == ("failed", None)
    assert "unknown policy 'nonsense'" in outcome.reason


def test_repeats_follow_from_the_time():
    slow = Run(name=ALONE, resolution="1080p", policies=("full", "window", OURS), execution="compile+cuda-graphs")
    assert measure.choose_repeats(slow, 60) == 1
    fast = Run(name=ALONE, execution="compile+cuda-graphs")
    chunk_seconds = 1e-3 * (measure.SLOWER * predict(fast, OURS)["chunk_ms"] + 223)
    repeats = measure.choose_repeats(fast, measure.START_SECONDS + 30)
    assert 1 < repeats < 10
    assert 7 * (repeats + 1) * chunk_seconds < 30
    assert measure.choose_repeats(fast, 1e6) == measure.MAX_REPEATS


def test_the_script_names_its_stages(tmp_path):
    result = run_all(str(tmp_path / "out"), "480p")
    assert result.returncode == 2
    assert "unknown stage 480p" in result.stderr
    assert not (tmp_path / "out").exists()
    named = result.stderr.rpartition("stages: ")[2].split()
    assert set(stages(Way())) < set(named)
    assert set(named) - set(stages(Way())) == {"parity", "attention", "breakdown", "memory", "calibration", "summary"}
    assert run_all().returncode == 2


def test_the_script_writes_predictions_and_a_summary(tmp_path):
    result = run_all(str(tmp_path), "summary", DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    said = json.loads((tmp_path / "predictions.json").read_text())
    assert len(said["rows"]) == sum(len(run.policies) for runs in stages(Way()).values() for run in runs)
    assert set(said["assumed"]["provenance"]) > {"linear_tflops", "attention_tflops", "memory_tbytes"}
    page = (tmp_path / "summary.md").read_text()
    assert page.count("| not measured |") == len(summary.GOALS)
    assert page.rstrip() in result.stdout


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_bias_TNT", PRODUCTS),
        (
            "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::Gemm",
            PRODUCTS,
        ),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<...>>>", ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", ATTENTION),
        ("attend_kernel", ATTENTION),
        ("_normed_heads_kernel", ELEMENT_WISE),
        ("triton_per_fused_addmm_native_layer_norm_2", ELEMENT_WISE),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>", ELEMENT_WISE),
        ("void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl<direct_copy_kernel_cuda>>", COPIES),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType<2u>>", COPIES),
        ("Memcpy DtoD (Device -> Device)", COPIES),
        ("spin_kernel", OTHER),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kind_of(name) == kind


def test_kernels_are_added_up():
    kernels = [
        Kernel(name="gemm", start_us=0, taken_us=10),
        Kernel(name="gemm", start_us=12, taken_us=10),
        Kernel(name="flash", start_us=20, taken_us=5),  # begins before the one before it ends
        Kernel(name="spin", start_us=30, taken_us=1),
    ]
    assert idle_us(kernels[::-1]) == 2 + 5
    kinds = by_kind(kernels)
    assert (kinds[PRODUCTS]["ms"], kinds[PRODUCTS]["launches"]) == (pytest.approx(0.02), 2)
    assert [kernel["name"] for kernel in longest(kernels)] == ["gemm", "flash", "spin"]


def test_outcomes_of_tests(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="left_out"><skipped message="no GPU"/></testcase>'
        '<testcase classname="a" name="bad"><failure message="assert 1 == 2"/></testcase></testsuite></testsuites>'
    )
    assert read_tests(path) == [
        {"name": "a::good", "outcome": "passed"},
        {"name": "a::left_out", "outcome": "skipped", "reason": "no GPU"},
        {"name": "a::bad", "outcome": "failed", "reason": "assert 1 == 2"},
    ]


def test_every_way_has_a_limit():
    made = ways()
    assert len({(way.attention, way.execution, way.precision) for way in made}) == len(made) > 12
    assert limit_of(replace(PLAIN, execution="cuda-graphs")) == LIMITS["replayed"]
    assert limit_of(replace(PLAIN, attention="fa3", execution="cuda-graphs")) == LIMITS["other kernels"]
    assert limit_of(replace(PLAIN, precision="fp8")) == LIMITS["fp8"]


def test_a_pass_over_the_same_history_shows_mistakes():
    model = random_transformer(SMALL, device="cpu", dtype=torch.bfloat16)
    sharpen(model)
    settings = {"resolution": "96x64", "attention": "sdpa", "execution": "eager"}
    plain = SteadyPass(model, OURS, **settings)
    expected = plain().clone()
    again = SteadyPass(model, OURS, **settings, filled=plain)
    assert torch.equal(again(), expected)
    other = SteadyPass(model, OURS, **{**settings, "attention": "plain"}, filled=plain)
    assert 0 < relative_difference(other(), expected) < LIMITS["other kernels"]
    tensors, meta = plain.cache.state()
    keys, values = tensors["1.1.0"]
    tensors["1.1.0"] = torch.stack((keys, values[:, :, [1, 0, *range(2, values.shape[2])]]))
    again.cache.load_state(tensors, meta)
    assert relative_difference(again(), expected) > LIMITS["other kernels"]


def test_the_page_names_every_stage_and_every_goal():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert all(f"`{stage}`" in page for stage in stages(Way()))
    assert all(f"| {goal.name} | {goal.wanted()} |" in page for goal in summary.GOALS)
