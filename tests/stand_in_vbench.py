"""A stand-in for VBench and its environment: the interface, the file layout and the quirks, and scores at will.

It is written into a folder as files, for it is run by another interpreter: a script that starts ours with the folder on
its path. A torch that can be imported in no time lies there too.
"""

import json
import sys
from pathlib import Path

SUITE = [
    {"prompt_en": "a red circle", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": "A blue square, in the style of Ukiyo", "dimension": ["appearance_style"]},
    {"prompt_en": "In a still frame, a façade.", "dimension": ["temporal_flickering"]},
    {
        "prompt_en": "A blue square, in the style of Ukiyo",
        "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"],
    },
]

TORCH = """
from types import SimpleNamespace
__version__ = "2.5.1"
device = str
cuda = SimpleNamespace(is_available=lambda: False)
"""

PACKAGE = """
import json, os, signal, time
from pathlib import Path

HERE = Path(__file__).parent


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.full_info_dir, self.output_path = full_info_dir, output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        behaviour = json.loads((HERE / "behaviour.json").read_text())
        (dimension,) = dimension_list
        (HERE / "pid.new").write_text(str(os.getpid()))
        os.replace(HERE / "pid.new", HERE / "pid")  # never there and empty
        print(f"loading the models of {dimension}")
        what = behaviour.get(dimension, 0.5)
        if what == "raise":
            raise RuntimeError("CUDA error: out of memory")
        if what == "hang":
            time.sleep(60)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "nothing":
            return
        present = os.listdir(videos_path)
        ending = Path(present[0]).suffix  # the first file decides for all
        found = []
        for entry in json.loads(Path(self.full_info_dir).read_text(encoding="utf-8")):
            if dimension in entry["dimension"]:
                for index in range(5):
                    file = f"{entry['prompt_en']}-{index}{ending}"
                    if file in present:
                        found.append({"video_path": os.path.join(videos_path, file), "video_results": what})
                    else:
                        print(f"WARNING!!! This required video is not found! {file}")
        print("\\r 50%|#####     |\\r100%|##########|")
        output = Path(self.output_path) / f"{name}_eval_results.json"
        output.write_text("{" if what == "garbage" else json.dumps({dimension: [what, found]}))
"""

UTILS = """
from pathlib import Path

MODEL = Path(__file__).parent / "raft.pth"


def init_submodules(dimensions, local=False, read_frame=False):
    if "dynamic_degree" in dimensions:
        MODEL.touch()
"""

STATIC_FILTER = """
import glob, json, os, shutil
from pathlib import Path
from vbench.utils import MODEL


def register_subparsers(subparsers):
    parser = subparsers.add_parser("static_filter")
    parser.add_argument("--videos_path", required=True)
    parser.add_argument("--result_path", required=True)
    parser.set_defaults(func=static_filter)


def static_filter(args):
    assert MODEL.is_file(), "the flow model is not there"
    target = os.path.join(args.result_path, "filtered_videos")
    os.makedirs(target, exist_ok=True)
    behaviour = json.loads((Path(__file__).parent.parent / "behaviour.json").read_text())
    kept = 0
    for path in sorted(glob.glob(os.path.join(args.videos_path, "*.mp4"))):
        prompt, _, index = Path(path).stem.rpartition("-")
        if prompt.startswith("In a still frame") and int(index) % 2 and not behaviour.get("all move"):
            shutil.copy(path, os.path.join(target, f"{prompt}-{kept}.mp4"))
            kept += 1
"""


class StandIn:
    """The environment; `behave` says what becomes of each dimension."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.package = self.site / "vbench"
        (self.package / "cli").mkdir(parents=True)
        (self.site / "torch.py").write_text(TORCH)
        (self.package / "__init__.py").write_text(PACKAGE)
        (self.package / "utils.py").write_text(UTILS)
        (self.package / "cli" / "__init__.py").touch()
        (self.package / "cli" / "static_filter.py").write_text(STATIC_FILTER)
        self.suite = self.package / "VBench_full_info.json"
        self.suite.write_text(json.dumps(SUITE))
        metadata = self.site / "vbench-0.1.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
        self.python = write_interpreter(folder / "bin", self.site)
        self.behave()

    def behave(self, **by_dimension: object) -> None:
        """A score by dimension, or `raise`, `hang`, `kill`, `nothing`, `garbage`."""
        (self.package / "behaviour.json").write_text(json.dumps(by_dimension))

    @property
    def pid(self) -> int:
        """Of the newest evaluation."""
        return int((self.package / "pid").read_text())


def write_interpreter(folder: Path, site: Path) -> Path:
    """An interpreter that finds what lies in `site`."""
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python
