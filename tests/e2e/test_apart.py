"""``scripts/apart``: a machine of one's own, for tests side by side."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Host

APART = Path(__file__).parents[2] / "scripts/apart"
CGROUPS = Path("/sys/fs/cgroup")

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        " cgroup " not in Path("/proc/self/mounts").read_text(), reason="this host has version 2 of cgroups alone"
    ),
]


def apart(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([APART, *command], check=False, capture_output=True, text=True, timeout=30)


def test_arguments_and_the_exit_code_pass() -> None:
    done = apart("sh", "-c", 'printf "[%s]" "$@"; exit 7', "sh", "a  b", "", "$HOME")
    assert (done.stdout, done.stderr, done.returncode) == ("[a  b][][$HOME]", "", 7)


def test_nobody_else_is_there() -> None:
    done = apart("sh", "-c", "ps -e -o comm=; cat /proc/self/cgroup; ls /dev/shm")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["bash", "sh", "ps"]
    assert all(line.endswith(":/") for line in lines[3:]), lines
    assert len(lines) > 3


def test_an_orphan_is_reaped() -> None:
    orphan = "orphan=$(sh -c 'true & echo $!'); while [ -e /proc/$orphan ]; do :; done; echo gone"
    assert apart("sh", "-c", orphan).stdout == "gone\n"


def groups(of: subprocess.Popen[bytes]) -> list[Path]:
    return list(CGROUPS.glob(f"*/apart-{of.pid}"))


def test_what_it_has_made_goes() -> None:
    running = subprocess.Popen([APART, "mkdir", "-p", "/sys/fs/cgroup/cpu/one/two"])
    assert running.wait(timeout=30) == 0
    assert groups(running) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_it_has_made_goes_when_it_is_ended(host: Host, number: int) -> None:
    running = subprocess.Popen([APART, "sleep", "1000"], start_new_session=True)
    assert host.until(lambda: groups(running))  # it has begun to make them, and may be anywhere
    os.killpg(running.pid, number)
    running.wait(timeout=30)
    assert groups(running) == []
