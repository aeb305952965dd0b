"""The README's example does what it says, on the embedded model."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_python_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace = {"__name__": "example"}
    exec(compile(code, "README.md", "exec"), namespace)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [str(index) for index in range(8)]
    assert all("torch.Size([1, 12, 96, 160, 3])" in line for line in lines[1:-1])
    held, full = (int(number) for number in re.findall(r"\d+", lines[-1]))
    assert 0 < held < full / 3


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
