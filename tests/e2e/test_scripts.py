"""``scripts/run`` and ``scripts/test``, run for real on copies of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkouts import NO_RUNTIMES, ROOT, Checkout, run


def best_of(times: int, *argv: str | Path) -> float:
    """The least of several durations: another program's work must not fail a test."""
    durations = []
    for _ in range(times):
        start = time.monotonic()
        result = run(*argv)
        durations.append(time.monotonic() - start)
        assert result.returncode == 0, result.stderr
    return min(durations)


@pytest.fixture
def recorded(ready: Checkout) -> Checkout:
    """A set-up that stands, with programs in it that show how they were called."""
    show = '#!/bin/sh\npwd\nprintf "[%s]" "$@"\nexit 7\n'
    (ready.root / ".venv/bin/kavach").write_text(show)
    (ready.root / ".venv/bin/python").unlink()
    (ready.root / ".venv/bin/python").write_text(show)
    for name in ("kavach", "python"):
        (ready.root / ".venv/bin" / name).chmod(0o755)
    code = """
    for part in base test; do fingerprint >"$VENV/.kavach-stamp-$part"; done
    # What is missing on this machine is not these tests' business.
    for option in "" --for-tests; do
        runtime_state $option >"$SETUP_DIR/runtimes$option"
    done
    """
    noted = ready.lib(code, env=NO_RUNTIMES)
    assert noted.returncode == 0, noted.stderr
    return ready


def call(*argv: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Not as root: whatever goes wrong here, nothing is installed on this machine.
    return run(*argv, env=NO_RUNTIMES, cwd=cwd, as_nobody=True)


def test_run_passes_its_arguments_and_the_exit_code(recorded: Checkout) -> None:
    elsewhere = recorded.root.parent
    link = elsewhere / "link"
    link.symlink_to(recorded.root / "scripts/run")
    result = call(link, "-b", "runc", "--", "ls", "a  b", "", cwd=elsewhere)
    assert result.stdout == f"{elsewhere}\n[run][--summary][-b][runc][--][ls][a  b][]"
    assert result.stderr == ""
    assert result.returncode == 7


def test_run_without_arguments_runs_a_snippet(recorded: Checkout) -> None:
    result = call(recorded.root / "scripts/run")
    assert "[run][--summary][--][python3][-c][" in result.stdout
    snippet = result.stdout.partition("[-c][")[2].removesuffix("]")
    shown = run(sys.executable, "-c", snippet)
    assert shown.returncode == 0, shown.stderr
    assert f"uid {os.getuid()}" in shown.stdout


def test_test_passes_its_arguments_and_the_exit_code(recorded: Checkout) -> None:
    result = call(recorded.root / "scripts/test", "-k", "a b", cwd=Path("/"))
    assert result.stdout == f"{recorded.root}\n[-m][pytest][-k][a b]"
    assert result.returncode == 7


def test_what_is_missing_is_told_once(recorded: Checkout) -> None:
    setup = recorded.root / ".kavach-setup"
    (setup / "runtimes").unlink()
    setup.chmod(0o777)
    first, second = (call(recorded.root / "scripts/run").stderr for _ in range(2))
    assert "missing: runc crun runsc" in first
    assert second == ""


def test_the_set_up_check_is_quick(ready: Checkout) -> None:
    code = 'source "$1/scripts/lib.sh"; ensure_ready test'
    assert best_of(5, "bash", "-euc", code, "bash", ready.root) < 0.3


@pytest.mark.needs_root
@pytest.mark.skipif(os.getuid() != 0, reason="the boxes need root")
@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv/.kavach-stamp-base").exists(),
    reason="this checkout was not set up by scripts/run or scripts/test",
)
def test_a_second_run_takes_less_than_three_seconds() -> None:
    first = run(ROOT / "scripts/run")
    assert first.returncode == 0, first.stderr
    assert "Hello from the box" in first.stdout
    assert best_of(3, ROOT / "scripts/run", "--", "true") < 3
