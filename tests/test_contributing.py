"""The policy that CONTRIBUTING.md shows is a policy that works."""

import re
import textwrap
from pathlib import Path

from forcing_kv import FrameGeometry, StreamCache


def test_the_example_policy():
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    namespace = {"__name__": "example"}
    exec(compile(textwrap.dedent(code), "CONTRIBUTING.md", "exec"), namespace)
    geometry = FrameGeometry(num_layers=2, num_heads=2, head_dim=4, frame_rows=1, frame_cols=1)
    cache = StreamCache(geometry, namespace["FirstAndLast"](sink_frames=2))
    assert cache.nbytes == (2 + 1 + 3) * geometry.kv_bytes(1, bytes_per_value=4)
