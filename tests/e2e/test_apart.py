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


def groups() -> set[Path]:
    return set(CGROUPS.glob("**/apart-*"))


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


def test_what_it_has_made_goes(host: Host) -> None:
    before = groups()
    assert apart("mkdir", "-p", "/sys/fs/cgroup/memory/one/two").returncode == 0
    assert groups() == before
    running = subprocess.Popen([APART, "sleep", "1000"], start_new_session=True)
    assert host.until(lambda: groups() > before)
    os.killpg(running.pid, signal.SIGTERM)
    running.wait(timeout=20)
    assert host.until(lambda: groups() == before)
