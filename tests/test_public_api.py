"""The public names are few, and a change of them is a decision."""

import subprocess
import sys

import forcing_kv


def test_public_names():
    assert forcing_kv.__all__ == [
        "CachePolicy",
        "CheckpointError",
        "Chunk",
        "ConfigurationError",
        "DecoderOptions",
        "DummyForcing",
        "ForcingKV",
        "ForcingKVError",
        "FrameGeometry",
        "Full",
        "HeadMap",
        "HeadMapError",
        "MemoryLimitError",
        "MemoryNeed",
        "OutputError",
        "PromptError",
        "ScheduledPrompt",
        "SnapshotError",
        "StreamCache",
        "StreamOptions",
        "StreamSnapshot",
        "UnknownNameError",
        "VideoPipeline",
        "VideoStream",
        "Window",
        "attend",
        "calibrate",
        "parse_policy",
    ]
    for name in forcing_kv.__all__:
        assert getattr(forcing_kv, name).__doc__


def test_importing_the_package_loads_nothing_heavy():
    code = "import forcing_kv, sys; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
