"""Scores one dimension with VBench; run by the interpreter of VBench's environment, of which this package is no part.

It calls VBench as its README does, one dimension per process, so that a crash or a lack of memory takes no other
dimension along. `vbench evaluate` does the same through a shell that passes no failure on. Only what Python 3.8 has is
used here, and nothing of `forcing_kv`.
"""

import argparse
import glob
import json
import os
import platform
import sys
import threading
import time
from importlib import metadata


def main() -> None:
    """Writes NAME_eval_results.json, as VBench does, and about.json into the output folder."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder != here]  # its modules are not meant for VBench
    arguments = _arguments()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    import torch
    from vbench import VBench  # type: ignore[import-not-found]  # lies in the other environment

    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    about = {
        "vbench": metadata.version("vbench"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
    }
    with open(os.path.join(arguments.output, "about.json"), "w", encoding="utf-8") as file:
        json.dump(about, file)
    videos = _static_videos(arguments) if arguments.static_filter else arguments.videos
    VBench(torch.device(device), arguments.suite, arguments.output).evaluate(
        videos_path=videos,
        name=arguments.dimension,
        dimension_list=[arguments.dimension],
        imaging_quality_preprocessing_mode="longer",  # the default of `vbench evaluate`
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--videos", "--suite", "--output", "--dimension", "--device"):
        parser.add_argument(name, required=True)
    parser.add_argument("--static-filter", action="store_true")
    return parser.parse_args()


def _static_videos(arguments: argparse.Namespace) -> str:
    """The folder into which VBench's own filter copies the videos without motion."""
    from vbench.cli import static_filter  # type: ignore[import-not-found]
    from vbench.utils import init_submodules  # type: ignore[import-not-found]

    init_submodules(["dynamic_degree"])  # fetches the optical flow model, which the filter takes for granted
    parser = argparse.ArgumentParser()
    static_filter.register_subparsers(parser.add_subparsers())
    # The filter takes the folder for a pattern.
    folders = ["--videos_path", glob.escape(arguments.videos), "--result_path", arguments.output]
    static_filter.static_filter(parser.parse_args(["static_filter", *folders]))
    found = os.path.join(arguments.output, "filtered_videos")
    if not os.listdir(found):
        sys.exit("none of the videos is static enough for the filter of VBench: make more samples of each prompt")
    return found


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
