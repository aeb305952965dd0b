"""Arrows point down: the order of CONTRIBUTING.md is the order of the imports."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "forcing_kv"


def levels() -> dict[str, int]:
    """Module or folder of the package -> its row in the table, counted from the top."""
    rows = [
        line.split("|")[1] for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")
    ]
    return {
        name.strip("/").removesuffix(".py"): row
        for row, cell in enumerate(rows)
        for name in re.findall(r"`([\w./]+)`", cell)
    }


def imported(path: Path) -> set[str]:
    """Modules and folders of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "forcing_kv":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forcing_kv."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {"__init__", "__main__"} == set(levels())


def test_nothing_imports_what_stands_above_it():
    level = levels()
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (own := path.relative_to(PACKAGE).parts[0].removesuffix(".py")) in level
        for name in imported(path) & set(level)
        if level[name] < level[own]
    ]
    assert upward == []
