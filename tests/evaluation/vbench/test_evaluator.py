"""The evaluator up to its boundary: a stand-in that scores, fails, hangs, is killed, and writes nonsense."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.evaluation.vbench import evaluator as module
from forcing_kv.evaluation.vbench.evaluator import (
    EvaluatorError,
    evaluate,
    find_evaluator,
    is_evaluated,
    last_lines,
    read_about,
    ready_dimensions,
)
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder, FolderSettings
from forcing_kv.evaluation.vbench.plan import SamplePlan
from forcing_kv.evaluation.vbench.results import DimensionResult, read_results
from forcing_kv.evaluation.vbench.suite import parse_suite
from stand_in_vbench import SUITE, StandIn, write_interpreter

DIMENSIONS = ("temporal_flickering", "imaging_quality", "color")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return StandIn(tmp_path_factory.mktemp("vbench-env"))


@pytest.fixture
def evaluator(stand_in):
    stand_in.behave()
    return find_evaluator(stand_in.python)


@pytest.fixture
def folder(tmp_path):
    """A folder whose videos are there by name; the stand-in looks at no more."""
    return made_folder(tmp_path / "vb[1]", samples=2, flickering_samples=4)  # a pattern, to who takes names for such


def made_folder(root, **plan):
    folder = BenchmarkFolder(root)
    suite = parse_suite(json.dumps(SUITE).encode(), where="-")
    settings = FolderSettings(made_with={"seed": 0}, plan=SamplePlan(dimensions=DIMENSIONS, **plan), environment={})
    folder.begin(suite, settings, overwrite=False)
    for prompt, index in settings.plan.videos(suite):
        folder.video_path(prompt.text, index).touch()
    return folder


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_evaluated_dimension(stand_in, evaluator, folder):
    stand_in.behave(imaging_quality=0.625)
    lines = []
    assert not is_evaluated(folder, "imaging_quality")
    evaluate(evaluator, folder, "imaging_quality", on_line=lines.append)
    assert read_results(folder.results) == {"imaging_quality": DimensionResult(score=0.625, num_videos=2)}
    assert json.loads(folder.result_path("imaging_quality").read_text())["imaging_quality"][0] == 0.625
    about = read_about(folder, "imaging_quality")
    assert about.pop("seconds") > 0
    assert (about["vbench"], about["torch"], about["samples"], about["static_filter"]) == ("0.1.5", "2.5.1", 2, None)
    assert sorted(os.listdir(folder.evaluation("imaging_quality"))) == ["about.json", "log.txt"]
    log = last_lines(folder.evaluation("imaging_quality") / "log.txt")
    assert log[0] == "loading the models of imaging_quality"
    assert log[-2:] == ["50%|##### |", "100%|##########|"]
    assert lines[-1] in log
    assert is_evaluated(folder, "imaging_quality")


def test_only_static_videos_count_for_flickering(stand_in, evaluator, folder):
    stand_in.behave(temporal_flickering=0.9)
    evaluate(evaluator, folder, "temporal_flickering")
    assert read_results(folder.results)["temporal_flickering"].num_videos == 2  # samples 1 and 3, says the stand-in
    assert read_about(folder, "temporal_flickering")["static_filter"] is True
    assert is_evaluated(folder, "temporal_flickering")
    assert not is_evaluated(folder, "temporal_flickering", static_filter=False)
    evaluate(evaluator, folder, "temporal_flickering", static_filter=False)
    assert read_results(folder.results)["temporal_flickering"].num_videos == 4
    stand_in.behave(**{"all move": True})
    with pytest.raises(EvaluatorError, match=r"exit code 1; .* none of the videos is static enough"):
        evaluate(evaluator, folder, "temporal_flickering")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raise", r"color failed with exit code 1; .*log\.txt, which ends: .*RuntimeError: CUDA error: out of memory"),
        ("kill", r"color was ended by SIGKILL \(out of memory\?\); .*ends: loading the models of color"),
        ("nothing", r"color was evaluated without a usable result: .* cannot be read: No such file"),
        ("garbage", r"color was evaluated without a usable result: .* is not valid JSON"),
        (float("nan"), r"usable result: .* gives color the score nan: VBench could score none of its videos"),
        ("high", r"usable result: .* holds no \[score, videos\] for color"),
    ],
)
def test_a_failure_keeps_what_was_there(stand_in, evaluator, folder, behaviour, message):
    stand_in.behave(color=0.25)
    evaluate(evaluator, folder, "color")
    stand_in.behave(color=behaviour)
    with pytest.raises(EvaluatorError, match=message) as caught:
        evaluate(evaluator, folder, "color")
    assert caught.value.dimension == "color"
    assert caught.value.log == folder.evaluation("color") / "log.txt"
    assert read_results(folder.results)["color"].score == 0.25
    stand_in.behave(color=0.75)
    evaluate(evaluator, folder, "color")
    assert read_results(folder.results)["color"].score == 0.75


def test_one_that_hangs_is_ended(stand_in, evaluator, folder):
    stand_in.behave(color="hang")
    with pytest.raises(EvaluatorError, match=r"color said nothing for 1 s and was ended; .*ends: loading the models"):
        evaluate(evaluator, folder, "color", max_silence_s=1.0)
    assert not is_running(stand_in.pid)


def test_an_interrupt_ends_it(stand_in, evaluator, folder):
    stand_in.behave(color="hang")

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluator, folder, "color", on_line=interrupt)
    assert not is_running(stand_in.pid)
    assert read_results(folder.results) == {}


def test_it_ends_with_the_process_that_started_it(stand_in, folder, tmp_path):
    stand_in.behave(color="hang")
    (stand_in.package / "pid").unlink(missing_ok=True)
    arguments = ["--videos", folder.videos, "--suite", folder.suite_path, "--output", tmp_path, "--dimension", "color"]
    command = [str(part) for part in (stand_in.python, module._SCRIPT, *arguments, "--device", "cpu")]
    starter = f"import subprocess, time; subprocess.Popen({command!r}, start_new_session=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 30
        while not (stand_in.package / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.kill()
    while is_running(stand_in.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(stand_in.pid)


def test_more_samples_are_evaluated_again(stand_in, evaluator, folder):
    stand_in.behave(color=0.25)
    evaluate(evaluator, folder, "color")
    assert is_evaluated(folder, "color")
    more = made_folder(folder.root, samples=3, flickering_samples=4)
    assert not is_evaluated(more, "color")


def test_what_can_be_scored(folder):
    assert ready_dimensions(folder) == (DIMENSIONS, {})
    folder.video_path("a red circle", 1).unlink()
    assert ready_dimensions(folder) == (DIMENSIONS[:2], {"color": 1})
    with pytest.raises(OutputError, match=r"1 of the videos for color are missing .* 'a red circle-1.mp4': make them"):
        ready_dimensions(folder, ("color",))
    for path in folder.videos.iterdir():
        path.unlink()
    with pytest.raises(OutputError, match="4 of the videos for temporal_flickering are missing"):
        ready_dimensions(folder)


def test_nothing_but_videos_may_lie_among_the_videos(folder):
    folder.check_videos_alone()
    (folder.videos / ".DS_Store").touch()
    with pytest.raises(OutputError, match=r"\.DS_Store is no video, .*: move it away"):
        folder.check_videos_alone()
    (folder.videos / ".DS_Store").unlink()
    (folder.videos / "a-0.mp4.partial").mkdir()
    with pytest.raises(OutputError, match=r"a-0\.mp4\.partial is an unfinished video: finish it"):
        folder.check_videos_alone()


def test_where_vbench_is(stand_in, evaluator, tmp_path):
    assert (evaluator.python, evaluator.package) == (stand_in.python, stand_in.package)
    assert evaluator.suite_path == stand_in.suite
    install = r"python3\.11 -m venv vbench-env && .*pip install torch==2\.5\.1 .* && .*vbench==0\.1\.5 .*detectron2"
    with pytest.raises(ConfigurationError, match=f"needs an environment of its own, and none is given: .*{install}"):
        find_evaluator(None)
    with pytest.raises(
        ConfigurationError, match=f"nowhere is no Python interpreter that runs .*No such file.*{install}"
    ):
        find_evaluator(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=f"no Python interpreter that runs .*{install}"):
        find_evaluator(tmp_path)
    empty = write_interpreter(tmp_path / "bin", tmp_path)
    with pytest.raises(ConfigurationError, match=f"python has no package vbench: .*{install}"):
        find_evaluator(empty)
