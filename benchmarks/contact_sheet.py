"""Makes the README's picture: the embedded model on a few prompts, the full cache above forcing-kv, the same noise.

python benchmarks/contact_sheet.py docs/contact_sheet.png
"""

import argparse
from pathlib import Path

import torch

from forcing_kv import VideoPipeline
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.video import ContactSheetRow, contact_sheet

PROMPTS: tuple[str | list[ScheduledPrompt], ...] = (
    "a large red circle moving right slowly at the left on a striped gray background camera panning left",
    "a small blue cross circling clockwise quickly at the center on a checkered white background",
    [
        ScheduledPrompt(text="a large green square passing behind a pillar at the left on a plain brown background"),
        ScheduledPrompt(at_seconds=1, text="an object passing behind a pillar at the left on a plain brown background"),
    ],
    [
        ScheduledPrompt(text="a large yellow triangle bouncing vertically at the left on a black background"),
        ScheduledPrompt(
            at_seconds=5, text="a large green square moving up quickly at the left on a checkered gray background"
        ),
    ],
)
POLICIES = ("full", "forcing-kv")
NUM_COLUMNS = 8


def main() -> None:
    """Generates the videos and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="PNG to write")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pipeline = VideoPipeline.from_pretrained("tiny")
    fps = pipeline.preset.fps
    numbers = torch.linspace(0, args.seconds * fps - 1, NUM_COLUMNS).long()
    rows = []
    for offset, prompt in enumerate(PROMPTS):
        for policy in POLICIES:
            stream = pipeline.stream(prompt, policy=policy, seed=args.seed + offset, num_frames=args.seconds * fps)
            frames = torch.cat([chunk.frames[0] for chunk in stream if chunk.frames is not None])
            text = ", then ".join(each.texts(1)[0] for each in prompt_schedule(prompt))
            label = f"{text}: {policy}, cache {stream.cache.nbytes / 1e6:.2f} MB"
            seconds = tuple(number / fps for number in numbers.tolist())
            rows.append(ContactSheetRow(frames=frames[numbers], label=label, at_seconds=seconds))
    contact_sheet(rows, args.path, num_columns=NUM_COLUMNS)


if __name__ == "__main__":
    main()
