"""The figure of a benchmark."""

import pytest
from PIL import Image

from forcing_kv.bench import Ceilings, write_figure
from forcing_kv.bench.figure import benchmark_figure
from forcing_kv.bench.report import benchmark_report
from forcing_kv.figure_style import WIDTH_PIXELS
from measurements import measured, small_plan

CEILINGS = Ceilings(matmul_flops_per_second=1e9, copy_bytes_per_second=1e9)
MANY = [f"window:window_frames={frames}" for frames in range(6, 15)]


def document(folder, policies, num_chunks):
    plan = small_plan(folder, policies, num_frames=12 * num_chunks - 3, repeats=1)
    times = [[[100.0 + index] * policy.num_chunks] for index, policy in enumerate(plan.policies)]
    return benchmark_report(plan, measured(plan, times), ceilings=CEILINGS, environment={})


@pytest.mark.parametrize(
    ("policies", "num_chunks"), [(["full", "window", "forcing-kv"], 12), (["full"], 1), (MANY, 50)]
)
def test_every_policy_is_drawn(tiny_model_folder, tmp_path, policies, num_chunks):
    data = document(tiny_model_folder, policies, num_chunks)
    write_figure(data, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width == WIDTH_PIXELS
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 50
    speed, memory = benchmark_figure(data).axes
    lines = [line for line in speed.lines if line.get_label() != "real time"]
    assert [line.get_label() for line in lines] == policies
    assert lines[0].get_ydata()[-1] == pytest.approx(12 / 0.1 if num_chunks > 1 else 9 / 0.1)
    assert list(memory.lines[0].get_ydata()) == [pytest.approx((index + 1) / 1000) for index in range(num_chunks)]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(policies)
