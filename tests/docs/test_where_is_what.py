"""The table in CONTRIBUTING that says where is what has a row for everything, and none for what is gone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
ROWS: Final = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
_SAID_BY_THEIR_FOLDER: Final = ("__init__.py", "__main__.py")


def described(path: Path) -> bool:
    """Say whether a path, or a folder that it is in, has a row."""
    own = path.relative_to(ROOT)
    return str(own) in ROWS or any(f"{parent}/" in ROWS for parent in own.parents)


def test_rows_are_there() -> None:
    paths = {row for row in ROWS if "/" in row}
    assert len(paths) > 40
    assert not {row for row in paths if not (ROOT / row).exists()}


def test_every_module_has_a_row() -> None:
    modules = [*(ROOT / "kavach_core").rglob("*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
    wanted = [path for path in modules if path.name not in _SAID_BY_THEIR_FOLDER]
    assert len(wanted) > 30
    assert not [str(path.relative_to(ROOT)) for path in wanted if not described(path)]


def test_every_folder_of_tests_has_a_row() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").parts[:1] for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name for parts in folders for name in parts if f"tests/{name}/" not in ROWS}
