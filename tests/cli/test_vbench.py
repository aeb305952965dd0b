"""`forcing-kv vbench`, from the prompt suite to the report, with a stand-in for the evaluator."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from forcing_kv.cli import cli
from forcing_kv.video import probe
from stand_in_vbench import SUITE, StandIn

VIDEOS = ["A blue square, in the style of Ukiyo-{}.mp4", "In a still frame, a façade.-{}.mp4", "a red circle-{}.mp4"]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return StandIn(tmp_path_factory.mktemp("vbench-env"))


@pytest.fixture
def vbench(tiny_model_folder, stand_in, tmp_path, monkeypatch):
    """Runs `forcing-kv vbench` in an empty folder; `generate` on the small model, 1 s, 2 samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCING_KV_VBENCH_PYTHON", raising=False)
    stand_in.behave()

    def run(step, *arguments):
        settings = []
        if step == "generate":
            settings = ["-o", "vb", "--model", tiny_model_folder, "--device", "cpu", "--resolution", "48x32"]
            settings += ["--seconds", 1, "--samples", 2, "--flickering-samples", 3]
        if "--suite" not in arguments and step != "report":
            settings += ["--vbench-python", stand_in.python]
        return CliRunner().invoke(cli, ["vbench", step, *map(str, [*settings, *arguments])])

    return run


def made(path):
    return json.loads(probe(path).metadata["comment"])


def times():
    return {path.name: path.stat().st_mtime_ns for path in Path("vb/videos").iterdir()}


def test_from_prompts_to_scores(vbench, stand_in):
    result = vbench("generate", "--seed", 5)
    assert result.exit_code == 0, result.output
    assert "3 prompts, 7 videos of 48x32 and 21 frames (1.3 s)\nvb/videos: 7 videos, 0." in result.stdout
    assert sorted(os.listdir("vb")) == ["VBench_full_info.json", "settings.json", "videos"]
    assert sorted(os.listdir("vb/videos")) == [
        *(VIDEOS[0].format(index) for index in range(2)),
        *(VIDEOS[1].format(index) for index in range(3)),
        *(VIDEOS[2].format(index) for index in range(2)),
    ]
    assert [made(f"vb/videos/{VIDEOS[1].format(index)}")["seed"] for index in range(3)] == [5, 6, 7]
    assert made("vb/videos/a red circle-0.mp4")["prompt"] == "a red circle"
    assert json.loads(Path("vb/VBench_full_info.json").read_text()) == SUITE
    settings = json.loads(Path("vb/settings.json").read_text())
    made_with = {"model": "random", "width": 48, "frames": 21, "fps": 16, "seed": 5, "prompts": None}
    assert settings["made_with"].items() >= made_with.items()
    assert settings["made_with"]["policy"].startswith("forcing-kv")

    # the second dimension fails, and takes no other along
    stand_in.behave(temporal_flickering=0.9, aesthetic_quality="raise", color=0.75)
    dimensions = ("--dimensions", "color,aesthetic_quality,temporal_flickering")
    result = vbench("evaluate", "vb", *dimensions)
    assert result.exit_code == 2
    assert "temporal_flickering: 1 of 3, log in vb/evaluation/temporal_flickering/log.txt" in result.stdout
    failure, *log, error = result.stderr.splitlines()
    assert failure.startswith(
        "aesthetic_quality failed with exit code 1; the log is vb/evaluation/aesthetic_quality/log"
    )
    assert failure.endswith("which ends: RuntimeError: CUDA error: out of memory")
    assert log[-1] == "  RuntimeError: CUDA error: out of memory"
    assert error.startswith(
        "forcing-kv: error: 1 of 3 dimensions could not be scored: aesthetic_quality; the logs are in"
    )
    assert sorted(os.listdir("vb/results")) == ["color_eval_results.json", "temporal_flickering_eval_results.json"]
    report = json.loads(Path("vb/report.json").read_text())
    assert report["dimensions"]["color"]["score"] == 0.75
    assert report["dimensions"]["temporal_flickering"]["videos"] == 1  # one of three is static, says the stand-in
    assert (report["totals"]["quality"], report["config"]["seeds"]) == (None, [5, 6])

    # the same command goes on where it failed
    stand_in.behave(aesthetic_quality=0.5, color=0.1)
    result = vbench("evaluate", "vb", *dimensions)
    assert result.exit_code == 0, result.output
    assert "color: scored already" in result.stdout
    assert "aesthetic_quality: 2 of 3" in result.stdout
    assert "missing, and so are the totals that need them: subject_consistency," in result.stdout
    assert "color                        75.00       75.00           2" in result.stdout
    assert vbench("evaluate", "vb", "--dimensions", "color", "--overwrite").exit_code == 0
    result = vbench("report", "vb")
    assert result.exit_code == 0
    assert "color                        10.00       10.00           2" in result.stdout
    assert "2 samples per prompt, not 5" in result.stdout


def test_resume_keeps_what_is_finished_and_refuses_what_was_made_otherwise(vbench):
    only = ("--dimensions", "color")
    assert vbench("generate", *only).exit_code == 0
    first = times()
    assert sorted(first) == ["a red circle-0.mp4", "a red circle-1.mp4"]

    refused = vbench("generate", *only)
    assert refused.exit_code == 2
    assert "vb exists: go on with an unfinished run with --resume, replace it with --overwrite" in refused.stderr
    for other, message in (
        (("--seed", 1), "vb was made with seed 0, not 1"),
        (("--kv-dtype", "int8"), "vb was made with kv_dtype None, not 'int8'"),
        (("--step-cache", "0.2"), "vb was made with step_cache None, not 0.2"),
        (("--policy", "full"), "vb was made with policy 'forcing-kv"),
        (("--resolution", "96x64"), "vb was made with width 48, not 96"),
        (("--samples", 1), "vb was made with samples 2, not 1"),
    ):
        refused = vbench("generate", *only, "--resume", *other)
        assert refused.exit_code == 2
        assert message in refused.stderr
    assert times() == first

    Path("vb/videos/a red circle-1.mp4").unlink()
    result = vbench("generate", "--resume", "--dimensions", "color,imaging_quality", "--samples", 3)
    assert result.exit_code == 0, result.output
    assert times()["a red circle-0.mp4"] == first["a red circle-0.mp4"]
    assert len(times()) == 6
    assert json.loads(Path("vb/settings.json").read_text())["plan"]["dimensions"] == ["imaging_quality", "color"]

    Path("vb/videos/a red circle-1.mp4").write_bytes(Path("vb/videos/a red circle-0.mp4").read_bytes())
    refused = vbench("generate", "--resume", *only, "--samples", 3)
    assert refused.exit_code == 2
    assert "a red circle-1.mp4 is there and is not the video of this prompt and seed 1" in refused.stderr

    Path("vb/videos/mine.txt").touch()
    Path("vb/results").mkdir()
    Path("vb/results/color_eval_results.json").touch()
    assert vbench("generate", "--overwrite", *only, "--seed", 1).exit_code == 0
    assert sorted(times()) == ["a red circle-0.mp4", "a red circle-1.mp4", "mine.txt"]
    assert os.listdir("vb/results") == []
    assert made("vb/videos/a red circle-1.mp4")["seed"] == 2


def test_storage_and_step_cache_are_those_of_all_videos(vbench):
    settings = ("--dimensions", "color", "--kv-dtype", "int8", "--step-cache", 0.2)
    assert vbench("generate", *settings).exit_code == 0
    for path in Path("vb/videos").iterdir():
        assert (made(path)["kv_dtype"], made(path)["step_cache"]) == ("int8", 0.2)
    made_with = json.loads(Path("vb/settings.json").read_text())["made_with"]
    assert (made_with["kv_dtype"], made_with["step_cache"]) == ("int8", 0.2)
    first = times()
    assert vbench("generate", *settings, "--resume").exit_code == 0
    assert times() == first
    refused = vbench("generate", *settings[:4], "--resume")
    assert "vb was made with step_cache 0.2, not None" in refused.stderr


def test_an_interrupted_video_is_dropped_and_made_again(vbench, monkeypatch):
    from forcing_kv.generation import run as generation

    store = generation._Run._store
    monkeypatch.setattr(generation._Run, "_store", interrupted_after(store, num_chunks=3))
    result = vbench("generate", "--dimensions", "color")
    assert result.exit_code == 130
    assert os.listdir("vb/videos") == ["a red circle-0.mp4"]  # two chunks; the second video ended after one of them
    monkeypatch.setattr(generation._Run, "_store", store)
    result = vbench("generate", "--dimensions", "color", "--resume")
    assert result.exit_code == 0, result.output
    assert [probe(path).num_frames for path in Path("vb/videos").iterdir()] == [21, 21]


def interrupted_after(store, num_chunks):
    """`store`, and Ctrl-C when it has been called so often."""
    calls = []

    def wrapper(self, decoded):
        stored = store(self, decoded)
        calls.append(decoded)
        if len(calls) == num_chunks:
            raise KeyboardInterrupt
        return stored

    return wrapper


def test_longer_prompts_and_shards(vbench, stand_in):
    Path("long.json").write_text(json.dumps({"a red circle": "a large red circle bouncing sideways"}))
    arguments = ("--suite", stand_in.package.parent, "--prompts", "long.json", "--dimensions", "color", "--resume")
    for part, files in (("2/2", ["a red circle-1.mp4"]), ("1/2", ["a red circle-0.mp4", "a red circle-1.mp4"])):
        result = vbench("generate", *arguments, "--shard", part)
        assert result.exit_code == 0, result.output
        assert "1 prompts, 2 videos of 48x32 and 21 frames (1.3 s), 1 of them in this part" in result.stdout
        assert sorted(os.listdir("vb/videos")) == files
    assert made("vb/videos/a red circle-0.mp4")["prompt"] == "a large red circle bouncing sideways"
    assert json.loads(Path("vb/settings.json").read_text())["made_with"]["prompts"]["name"] == "long.json"
    refused = vbench("generate", *arguments[:2], *arguments[4:])
    assert refused.exit_code == 2
    assert "was made with prompts {'name': 'long.json'" in refused.stderr


def test_incomplete_dimensions_are_left_out(vbench, stand_in):
    assert vbench("generate", "--dimensions", "color,imaging_quality").exit_code == 0
    Path("vb/videos/a red circle-1.mp4").unlink()
    stand_in.behave(imaging_quality="raise")
    result = vbench("evaluate", "vb")
    assert "color: left out, 1 of its videos are missing\nimaging_quality: 1 of 1" in result.stdout
    assert result.exit_code == 2
    refused = vbench("evaluate", "vb", "--dimensions", "color")
    assert refused.exit_code == 2
    assert "1 of the videos for color are missing in vb/videos" in refused.stderr


def test_two_failures_are_one_error(vbench, stand_in):
    assert vbench("generate", "--dimensions", "imaging_quality,overall_consistency").exit_code == 0
    stand_in.behave(imaging_quality="raise", overall_consistency="nothing")
    result = vbench("evaluate", "vb")
    assert result.exit_code == 2
    assert "imaging_quality failed with exit code 1" in result.stderr
    assert "error: 2 of 2 dimensions could not be scored: imaging_quality, overall_consistency" in result.stderr


def test_file_systems_that_refuse_the_names(vbench, monkeypatch, stand_in):
    monkeypatch.setattr(os, "pathconf", lambda path, name: 40)
    refused = vbench("generate")
    assert refused.exit_code == 2
    assert (
        "takes names of 40 bytes, and VBench's naming needs 50 for 'A blue square, in the style of Uk" in refused.stderr
    )


def test_file_systems_that_do_not_tell_case_apart(vbench, monkeypatch):
    texts = ["a red circle", "A red circle"]
    Path("suite.json").write_text(json.dumps([{"prompt_en": text, "dimension": ["color"]} for text in texts]))
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path) or path.name == "SETTINGS.JSON")
    refused = vbench("generate", "--suite", "suite.json")
    assert refused.exit_code == 2
    assert "takes 'a red circle-0.mp4' and 'A red circle-0.mp4' for one name, and VBench wants both" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "--dimensions", "colour"],
            "unknown dimension of VBench 'colour'; choose one of: subject_consist",
        ),
        (["generate", "--dimensions", "scene"], "the prompt suite has no prompt for scene"),
        (["generate", "--suite", "none.json"], "the prompt suite none.json cannot be read: No such file"),
        (["generate", "--prompts", "none.txt"], "the prompts none.txt cannot be read"),
        (["generate", "--samples", "9"], "9 samples per prompt: VBench reads 1 to 5"),
        (["generate", "--shard", "3/2"], "shard '3/2' is no part of a whole"),
        (["generate", "--shard", "half"], "shard 'half' is no part of a whole"),
        (["generate", "--seconds", "0"], "0.0 is not in the range"),
        (["generate", "--kv-dtype", "int3"], "unknown kv_dtype 'int3'; choose one of: int8, fp8"),
        (["generate", "--kv-dtype", "int8", "--positions", "relative"], "does not go with relative positions"),
        (["generate", "--step-cache", "-1"], "step cache threshold -1 must be at least 0"),
        (["generate", "--policy", "nonsense"], "unknown policy 'nonsense'"),
        (["generate", "--resolution", "50x32"], "must be multiples of 16"),
        (["generate", "--vbench-python", "none"], "is no Python interpreter that runs"),
        (["evaluate", "vb"], "vb holds no videos of VBench's prompts"),
        (["report", "vb"], "vb holds no videos of VBench's prompts"),
        (["evaluate", "vb", "--device"], "'--device' requires an argument"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_bad_calls(vbench, arguments, message):
    refused = vbench(*arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert os.listdir() == []


def test_without_an_evaluator_it_says_what_to_install(vbench, stand_in, monkeypatch):
    assert vbench("generate", "--suite", stand_in.suite, "--dimensions", "color", "--samples", 1).exit_code == 0
    refused = CliRunner().invoke(cli, ["vbench", "evaluate", "vb"])
    assert refused.exit_code == 2
    assert "error: VBench's evaluator needs an environment of its own, and none is given: make" in refused.stderr
    assert "python3.11 -m venv vbench-env && vbench-env/bin/pip install torch==" in refused.stderr
    stand_in.behave(color=0.5)
    monkeypatch.setenv("FORCING_KV_VBENCH_PYTHON", str(stand_in.python))
    assert CliRunner().invoke(cli, ["vbench", "evaluate", "vb"]).exit_code == 0
    shown = CliRunner().invoke(cli, ["vbench", "evaluate", "--help"]).stdout
    assert "vbench-env/bin/pip install vbench==0.1.5" in shown
