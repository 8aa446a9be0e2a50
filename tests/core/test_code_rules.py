"""What holds for the code as a whole: what an import costs, how long a module is, that all of it is described."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "kavach_core").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
HEAVY = {"trio", "attrs", "attr", "cattrs", "stevedore", "opentelemetry"}
MAX_LINES = 500

every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


# --- what an import costs ----------------------------------------------------------------------


def modules_after(code: str, report: Path) -> set[str]:
    """Run ``code`` in a fresh interpreter; return the top-level modules that it has imported by its end."""
    script = """
import sys
before = set(sys.modules)
try:
    exec(sys.argv[1])
except SystemExit as end:
    assert not end.code, end.code
new = sorted(set(sys.modules) - before)
import json
open(sys.argv[2], "w").write(json.dumps(new))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, code, str(report)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(report.read_text())}


@pytest.mark.parametrize(
    "code",
    [
        "import kavach_core",
        "import kavach_core; dir(kavach_core); kavach_core.__all__, kavach_core.__version__",
        "import kavach_core; kavach_core.KavachError",
        "import kavach_core.errors",
        "import kavach_core.cli",
        "import kavach_core.cli; kavach_core.cli.carry_out(['--help'])",
        "import kavach_core.cli; kavach_core.cli.carry_out(['--version'])",
        "import kavach_core.cli; kavach_core.cli.carry_out(['run', '--help'])",
        "import kavach_core.cli; kavach_core.cli.carry_out(['backends', '--help'])",
    ],
)
def test_what_costs_time_is_imported_when_it_is_used(code: str, tmp_path: Path) -> None:
    assert not modules_after(code, tmp_path / "modules") & HEAVY


def test_the_check_above_sees_what_is_imported(tmp_path: Path) -> None:
    found = modules_after("import kavach_core; kavach_core.Sandbox", tmp_path / "modules")
    assert {"trio", "attr"} <= found


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_do_without_the_large_modules_of_the_library(option: str, tmp_path: Path) -> None:
    found = modules_after(f"import kavach_core.cli; kavach_core.cli.carry_out(['{option}'])", tmp_path / "modules")
    assert not found & {"typing", "asyncio", "importlib.metadata", "json", "email", "inspect", "dataclasses", "socket"}


def test_listing_plugins_does_not_import_them(tmp_path: Path) -> None:
    code = "from kavach_core.discovery import BACKENDS, list_plugins; assert list_plugins(BACKENDS)"
    found = modules_after(code, tmp_path / "modules")
    assert not found & {"stevedore", "kavach_oci", "kavach_gvisor", "kavach_guest"}


def test_no_library_code_imports_the_telemetry_sdk() -> None:
    assert not [path for path in SOURCES if "opentelemetry.sdk" in path.read_text()]


# --- the sources -------------------------------------------------------------------------------


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


@every_source
def test_no_module_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@every_source
def test_no_error_is_swallowed_in_silence(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            is_silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not is_silent, f"line {node.lineno}: swallowed in silence"


@every_source
def test_nothing_goes_through_a_shell(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.keyword):
            assert node.arg != "shell", f"line {node.value.lineno}: shell="
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"system", "popen"}, f"line {node.lineno}: os.{node.attr}"


def undescribed(tree: ast.Module) -> Iterator[str]:
    """Yield what is public, here and inside public classes, and has no docstring."""
    if not ast.get_docstring(tree):
        yield "the module"
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"line {node.lineno}: {node.name}"
            if isinstance(node, ast.ClassDef):
                todo.append(node)


@every_source
def test_everything_public_is_described(path: Path) -> None:
    assert list(undescribed(ast.parse(path.read_text()))) == []


@every_source
def test_every_named_attribute_is_described(path: Path) -> None:
    """A class that lists its attributes lists all of the public ones it declares."""
    for node in nodes(path):
        text = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
        if not isinstance(node, ast.ClassDef) or not text or "Attributes:" not in text:
            continue
        declared = {
            line.target.id
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
        missing = {name for name in declared if not name.startswith("_") and f"{name}:" not in text}
        assert not missing, f"{node.name}: {missing}"
