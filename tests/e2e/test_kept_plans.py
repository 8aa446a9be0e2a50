"""A run like an earlier one takes a kept plan: it does the same, and whatever is in doubt goes the long way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kavach_core.cli import kept_plans

if TYPE_CHECKING:
    from tests.conftest import Runner

LONG_WAY = {kept_plans.SWITCH: "0"}

COMMANDS: tuple[tuple[str, tuple[str, ...], bytes], ...] = (
    ("status", ("sh", "-c", "echo out; echo err >&2; exit 7"), b""),
    ("signal", ("sh", "-c", "kill -9 $$"), b""),
    ("input", ("cat",), bytes(range(256)) * 3000),
    ("unread input", ("true",), b"x" * 3_000_000),
    ("no such program", ("/no/such",), b""),
    ("not executable", ("/etc/passwd",), b""),
    ("much output", ("head", "-c", "3000000", "/dev/zero"), b""),
    ("who", ("id",), b""),
    ("environment", ("env",), b""),
    ("odd arguments", ("printf", "%s|", "", "a\nb", "\udcff"), b""),
)


@pytest.mark.parametrize(("argv", "data"), [command[1:] for command in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_both_ways_do_the_same(run_kavach: Runner, backend: str, argv: tuple[str, ...], data: bytes) -> None:
    arguments = ("run", "-b", backend, "--env", "A=1", "--", *argv)
    assert run_kavach("run", "-b", backend, "--env", "A=1", "--", "true").returncode == 0  # keeps the plan
    short = run_kavach(*arguments, stdin=data)
    long = run_kavach(*arguments, stdin=data, env=LONG_WAY)
    assert (short.returncode, short.stdout, short.stderr) == (long.returncode, long.stdout, long.stderr)


def imported(kavach: Path, *arguments: str, env: dict[str, str] | None = None) -> set[str]:
    """Return the names of all modules that a run imports."""
    command = [sys.executable, "-X", "importtime", str(kavach), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env={**os.environ, **(env or {})})
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_the_kept_way_is_taken(kavach: Path, backend: str) -> None:
    arguments = ("run", "-b", backend, "--env", "KEPT=1", "--", "true")
    imported(kavach, *arguments)
    assert "trio" in imported(kavach, *arguments, env=LONG_WAY)
    assert not {"trio", "attrs", "cattrs", "stevedore"} & imported(kavach, *arguments)


@pytest.mark.needs_runc
@pytest.mark.parametrize("option", [["--config", "settings.toml"], ["--json"]])
def test_what_no_plan_is_kept_for(
    kavach: Path, option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("settings.toml").write_text('policy = "strict"\n')
    arguments = ["run", "-b", "runc", "--env", f"OPTION={option[0]}", *option, "--", "/usr/bin/true"]
    for _ in range(2):
        assert "trio" in imported(kavach, *arguments)


OPTIONS = ["run", "-b", "x", "--env", "A=secret", "--timeout", "5"]
PARTS = {"launcher": ["agent", "/nowhere"], "plan": {}, "request": {"env": ["A=0", "PATH=/bin"]}, "backend": "x"}


class Kept:
    """A kept plan in a directory of the test's own."""

    def __init__(self, base: Path, watched: Path) -> None:
        self.watched = watched
        entry = {**PARTS, "score": "1", "summary": False}
        kept_plans.keep([*OPTIONS, "--", "true"], str(base), entry, [str(watched)])
        (self.file,) = (base / "plans").iterdir()

    def found(self, *options: str) -> dict[str, Any] | None:
        """Look for it with these options, or those it was kept for."""
        return kept_plans.find([*(options or OPTIONS), "--", "other", "command"])


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(kept_plans, "_BASES", (str(tmp_path),))
    watched = tmp_path / "watched"
    watched.write_text("one")
    return Kept(tmp_path, watched)


@pytest.mark.needs_root
def test_a_plan_is_found_again(kept: Kept) -> None:
    assert kept.found() is not None
    assert kept.file.stat().st_mode & 0o077 == 0


@pytest.mark.needs_root
@pytest.mark.parametrize(
    "options",
    [
        ["run", "-b", "y", "--env", "A=secret", "--timeout", "5"],
        ["run", "-b", "x", "--env", "A=secret", "--timeout", "6"],
        ["run", "-b", "x", "--env", "B=secret", "--timeout", "5"],
        ["run", "-b", "x", "--timeout", "5", "--env", "A=secret"],
        [*OPTIONS, "--user", "0"],
        ["run"],
    ],
)
def test_a_plan_is_for_its_options_alone(kept: Kept, options: list[str]) -> None:
    assert kept.found(*options) is None


@pytest.mark.needs_root
def test_values_of_variables_are_not_kept(kept: Kept) -> None:
    """They may be secrets, so each run takes its own; the names are part of what a plan is for."""
    assert "secret" not in kept.file.read_text()
    for options in (["--env", "A=other=1"], ["--env=A=other=1"]):
        found = kept.found("run", "-b", "x", *options, "--timeout", "5")
        assert found is not None
        assert found["request"]["env"] == ["A=other=1", "PATH=/bin"]


@pytest.mark.needs_root
@pytest.mark.parametrize("wrong", ["A", "=x", ""])
def test_a_wrong_variable_goes_the_long_way(kept: Kept, wrong: str) -> None:
    assert kept.found("run", "-b", "x", "--env", wrong, "--timeout", "5") is None


@pytest.mark.needs_root
@pytest.mark.parametrize(
    "argv", [[], ["run"], ["run", "--"], ["run", "--", ""], ["backends", "--", "x"], ["run", "true"]]
)
def test_command_lines_that_are_not_plain(argv: list[str]) -> None:
    assert kept_plans.find(argv) is None


@pytest.mark.needs_root
def test_a_long_command_line_goes_the_long_way(kept: Kept) -> None:
    assert kept_plans.find([*OPTIONS, "--", "true", "x" * 20_000]) is None
    assert kept.found() is not None


@pytest.mark.needs_root
def test_a_plan_is_void_when_what_it_was_made_from_changes(kept: Kept) -> None:
    kept.watched.write_text("other")
    assert kept.found() is None


@pytest.mark.needs_root
def test_a_plan_is_void_when_something_is_installed(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stronger backend or runtime may have come: ``auto`` has to look again."""
    directory = tmp_path / "site-packages"
    directory.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(directory)])
    kept_plans.keep([*OPTIONS, "--", "true"], str(tmp_path), {**PARTS, "score": "1", "summary": False}, [])
    assert kept.found() is not None
    (directory / "new-1.0.dist-info").mkdir()
    assert kept.found() is None


@pytest.mark.needs_root
def test_a_file_that_others_could_have_written_is_not_read(kept: Kept, tmp_path: Path) -> None:
    kept.file.chmod(0o622)
    assert kept.found() is None
    kept.file.chmod(0o600)
    os.chown(kept.file, 65534, 65534)
    assert kept.found() is None
    os.chown(kept.file, 0, 0)
    assert kept.found() is not None
    kept.file.rename(tmp_path / "elsewhere")
    kept.file.symlink_to(tmp_path / "elsewhere")
    assert kept.found() is None


@pytest.mark.needs_root
@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "null", "[]", "{}", '{"key": 1}'])
def test_a_damaged_file_is_not_used(kept: Kept, content: str) -> None:
    kept.file.write_text(content)
    assert kept.found() is None


def test_a_kept_plan_names_only_what_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever could write the file could still not name code of their own."""
    metadata = tmp_path / "x-1.dist-info" / "entry_points.txt"
    metadata.parent.mkdir()
    metadata.write_text("[other]\nevil = os:system\n\n[kavach_core.launchers]\ngood = json:loads\n")
    outside = {"launcher": ["good", str(metadata)]}
    assert kept_plans.launcher(outside) is None
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert kept_plans.launcher(outside) is json.loads
    assert kept_plans.launcher({"launcher": ["evil", str(metadata)]}) is None
    assert kept_plans.launcher({"launcher": ["absent", str(metadata)]}) is None
    assert kept_plans.launcher({"launcher": ["good", str(tmp_path / "gone")]}) is None


def test_a_box_that_does_not_boot_goes_the_long_way(run_kavach: Runner, backend: str) -> None:
    """The plan still looks right but the runtime fails: the second try says why, or works."""
    arguments = ("run", "-b", backend, "--env", "BOOT=1", "--", "echo", "hi")
    assert run_kavach(*arguments).stdout == b"hi\n"
    for base in ("/run/kavach", "/dev/shm/kavach", "/var/lib/kavach"):
        for file in Path(base, "plans").glob("*.json"):
            kept = json.loads(file.read_text())
            if kept["key"][-1] == [*arguments[:3], "--env", "BOOT"]:
                kept["plan"]["run_command"] = ["/bin/false"]
                file.write_text(json.dumps(kept))
    done = run_kavach(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi\n", b"")


@pytest.mark.needs_crun
def test_a_command_that_begins_before_the_dashes(run_kavach: Runner) -> None:
    """What stands before ``--`` is then no option, and no plan is for it."""
    for _ in range(2):
        assert run_kavach("run", "-b", "crun", "echo", "--", "printf", "hello").stdout == b"printf hello\n"


@pytest.mark.needs_crun
def test_what_the_caller_has_open_and_ignores(kavach: Path) -> None:
    """More than 1023 descriptors, and ended children that nobody is to wait for."""
    script = (
        "import os, signal, sys; [os.set_inheritable(os.open('/dev/null', 0), True) for _ in range(1100)];"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, str(kavach), "run", "-b", "crun", "--", "echo", "hi"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hi\n", b"")


@pytest.mark.needs_crun
def test_two_signals_in_a_row(kavach: Path, run_kavach: Runner) -> None:
    """The second does not interrupt the clean-up that the first has begun; the leak check has the say."""
    arguments = ["run", "-b", "crun", "--env", "TWO=1", "--", "sh", "-c", "echo up; sleep 1000"]
    assert run_kavach("run", "-b", "crun", "--env", "TWO=1", "--", "true").returncode == 0
    process = subprocess.Popen([kavach, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode in {130, 143}
    assert errors == b""


@pytest.mark.needs_runc
def test_output_that_cannot_be_written(kavach: Path) -> None:
    for _ in range(2):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [kavach, "run", "-b", "runc", "--", "echo", "x"], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 125
        assert done.stderr.startswith(b"kavach: cannot pass on the output")
