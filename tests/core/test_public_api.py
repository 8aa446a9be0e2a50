"""What callers may import: frozen here, importable, and visible to a type checker outside the project."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import kavach_core
import kavach_core.abc
from kavach_core.errors import KavachError

# Taking a name away breaks somebody; adding one is a promise. Both are decided here, not by accident.
API = [
    "Bound",
    "CleanupError",
    "ConfigError",
    "CreateError",
    "DiscoveryError",
    "ExecError",
    "ExecResult",
    "ExecTimeout",
    "FieldProblem",
    "FileKind",
    "FileOperationFailed",
    "FileStat",
    "FileTimeout",
    "FileTooLarge",
    "GuestExit",
    "KavachError",
    "LimitExceeded",
    "Limits",
    "NoBackendAvailable",
    "NonzeroExit",
    "NotRegularFile",
    "Outcome",
    "Output",
    "Pool",
    "PoolClosed",
    "PoolStats",
    "Process",
    "ProcessInfo",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxFiles",
    "SandboxGone",
    "SandboxPolicy",
    "Score",
    "StartFailed",
    "State",
    "Stream",
    "TerminalSize",
    "Transferred",
    "UnsupportedPolicy",
    "Usage",
    "User",
    "WrongLoop",
    "create_sandbox",
    "load_config",
    "open_pool",
    "open_sandbox",
]

# The contract of plugins and the few values that go with it.
CONTRACT = {
    "abc": [
        "API_VERSION",
        "Backend",
        "GuestProcess",
        "GuestStartError",
        "HostToolchain",
        "ImageProvider",
        "MountedImage",
        "RootDirectory",
        "RootSource",
        "SandboxSpec",
        "Session",
    ],
    "types": [
        "ExecRequest",
        "ExecResult",
        "GuestExit",
        "Outcome",
        "Output",
        "ProbeReport",
        "Reason",
        "StartFailure",
        "Stream",
        "Usage",
        "User",
    ],
}

CONSUMER = '''
"""A caller outside the project, checked with mypy --strict."""

from pathlib import Path

import kavach_core as kavach
import trio
from kavach_core import (
%(names)s
)
from kavach_core import Process
from kavach_core.abc import Backend, HostToolchain, SandboxSpec, Session
from kavach_core.types import ProbeReport
from typing_extensions import assert_type


async def main() -> int:
    async with kavach.open_sandbox(backend="runc", policy="strict", limits=Limits(pids=5), rootfs="/") as sandbox:
        assert_type(sandbox, Sandbox)
        assert_type(sandbox.state, State)
        assert_type(sandbox.score, Score)
        result = await sandbox.exec("true", timeout=5, input=b"x", check=True)
        assert_type(result, ExecResult)
        assert_type(result.stdout, str)
        assert_type(result.outcome, Outcome)
        assert_type(await sandbox.shell("true"), ExecResult)
        process = await sandbox.spawn("cat", stdin=True)
        assert_type(process, Process)
        assert_type(await process.stdout.receive_some(), bytes | bytearray)
        assert_type(await sandbox.usage(), Usage)
    try:
        config = load_config(Path("x.toml"))
    except ConfigError as error:
        assert_type(error.problems, tuple[FieldProblem, ...])
        raise
    assert_type(config, SandboxConfig)
    async with kavach.open_sandbox(config):
        return result.exit_code


class Mine:
    """A backend of a third party."""

    name = "mine"
    api_version = (1, 0)
    capabilities: frozenset[str] = frozenset()
    base_score = 10

    async def probe(self) -> ProbeReport:
        return ProbeReport(usable=False)

    async def open(self, spec: SandboxSpec) -> Session:
        assert isinstance(spec.root, HostToolchain)
        raise kavach.CreateError("no")


trio.run(main)
backend: Backend = Mine()
'''

WRONG = '''
"""What mypy has to find: each line has one mistake."""

import kavach_core as kavach


async def main() -> None:
    async with kavach.open_sandbox(bakend="runc") as sandbox:
        await sandbox.exec("true", timeout="5")
        await sandbox.exec(["true"])
        await sandbox.exec("true", tineout=5)
        kavach.Limits(memory="512M")
        kavach.SandboxConfig("runc")
        sandbox.score.total = 5
'''
WRONG_LINES = 7


def test_the_public_names_are_frozen() -> None:
    assert sorted(kavach_core.__all__) == API


@pytest.mark.parametrize("name", API)
def test_every_name_can_be_imported(name: str) -> None:
    value = getattr(kavach_core, name)
    assert value.__module__.startswith("kavach_core.")
    assert getattr(value, "__name__", name) == name


def test_dir_has_every_public_name_and_the_version() -> None:
    shown = {name for name in dir(kavach_core) if not name.startswith("_")}
    # Beside the public names only what the module itself imports, and its own submodules.
    assert set(API) <= shown
    own_imports = {"annotations", "importlib", "TYPE_CHECKING"}
    submodules = {path.stem for path in Path(kavach_core.__file__).parent.iterdir()}
    assert shown - set(API) <= own_imports | submodules
    assert kavach_core.__version__ == "0.1.0"


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from kavach_core import *", names)
    assert set(names) - {"__builtins__"} == set(API)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Sandbocks'"):
        kavach_core.Sandbocks  # noqa: B018 - looking is the test


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in CONTRACT.items() for name in names])
def test_the_contract_of_plugins_keeps_its_names(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"kavach_core.{module}"), name)


def test_the_version_of_the_contract() -> None:
    assert kavach_core.abc.API_VERSION == (1, 0)


def test_all_public_errors_are_kavach_errors() -> None:
    ends = ("Error", "Gone", "Failed", "Exit", "Timeout")
    errors = [getattr(kavach_core, name) for name in API if name.endswith(ends) and name != "GuestExit"]
    assert len(errors) >= 10
    assert all(issubclass(error, KavachError) for error in errors)


# --- as a type checker sees it -----------------------------------------------------------------


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the checks of this module share."""
    return tmp_path_factory.mktemp("mypy")


def run_mypy(code: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Check ``code`` from a folder outside the project, with nothing of the project's settings."""
    (folder / "consumer.py").write_text(code)
    arguments = ["--strict", "--config-file=", f"--cache-dir={cache}", "--no-error-summary", "consumer.py"]
    command = [sys.executable, "-m", "mypy", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_mypy_strict_accepts_a_caller(tmp_path: Path, mypy_cache: Path) -> None:
    pytest.importorskip("mypy")
    names = "\n".join(f"    {name}," for name in API)
    checked = run_mypy(CONSUMER % {"names": names}, tmp_path, mypy_cache)
    assert checked.stdout == ""
    assert checked.returncode == 0, checked.stderr


def test_mypy_finds_a_caller_s_mistakes(tmp_path: Path, mypy_cache: Path) -> None:
    pytest.importorskip("mypy")
    checked = run_mypy(WRONG, tmp_path, mypy_cache)
    found = {int(line.split(":")[1]) for line in checked.stdout.splitlines() if ": error:" in line}
    first = WRONG.splitlines().index("async def main() -> None:") + 2
    assert found == set(range(first, first + WRONG_LINES))


def test_mypy_finds_a_name_that_is_not_there(tmp_path: Path, mypy_cache: Path) -> None:
    pytest.importorskip("mypy")
    checked = run_mypy("import kavach_core\n\nkavach_core.Sandbocks\n", tmp_path, mypy_cache)
    assert "consumer.py:3: error:" in checked.stdout
