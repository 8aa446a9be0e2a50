"""``kavach-watchdog`` alone: when it acts, when it does not, and what it never touches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kavach_guest.agent import seal_program, watchdog_program

from kavach_core.oci.cgroups import detect_layout
from kavach_core.reaper import identity

if TYPE_CHECKING:
    from tests.conftest import Host

WORD = f"{os.getpid():016x}"
GROUP = f"kavach-{WORD}"
BOX = "0123456789abcdef"

OWNER = """
import os, sys
from kavach_core.reaper.instance import Instance

os.urandom = lambda _: bytes.fromhex({word!r})
made = Instance({base!r}, watchdog={watchdog!r}, roots={roots!r})
print(made.watchdog_pid, flush=True)
{then}
sys.stdin.read()
"""

Start = Callable[..., "Owner"]


class Owner:
    """A process with an instance, and its watchdog."""

    def __init__(self, base: Path, roots: list[str], then: str) -> None:
        script = OWNER.format(word=WORD, base=str(base), watchdog=str(watchdog_program()), roots=roots, then=then)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.watchdog = int(self.process.stdout.readline())
        self.instance = base / f"instance-{WORD}"

    def line(self) -> str:
        """Return the next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        """Kill it, as nobody can prevent."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Close our ends, and end it."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an owner; its instance is below ``tmp_path``."""
    owners: list[Owner] = []

    def start(*, roots: list[str] | None = None, then: str = "") -> Owner:
        owners.append(Owner(tmp_path, roots or [], then))
        return owners[-1]

    yield start
    for owner in owners:
        owner.close()


def is_alive(pid: int) -> bool:
    return identity.start_of(pid) is not None


def test_it_removes_what_a_killed_owner_leaves(start: Start, tmp_path: Path, host: Host) -> None:
    owner = start()
    (owner.instance / "bundles" / BOX).mkdir()
    (owner.instance / "bundles" / BOX / "config.json").write_text("{}")
    deep = owner.instance / "state" / "runc" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    owner.kill()
    assert host.until(lambda: not any(tmp_path.iterdir()))
    assert host.until(lambda: not is_alive(owner.watchdog))


def test_it_ends_with_an_owner_that_ends_well(start: Start, tmp_path: Path) -> None:
    owner = start(then="made.remove(); print(os.path.exists(f'/proc/{made.watchdog_pid}'), flush=True)")
    assert owner.line() == "False\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_for_its_owner_do_not_end_it(start: Start, host: Host, number: int) -> None:
    owner = start()
    os.kill(owner.watchdog, number)
    owner.kill()
    assert host.until(lambda: not owner.instance.exists())


def test_an_owner_that_becomes_another_program_has_let_go(start: Start, host: Host) -> None:
    owner = start(then="os.execv('/bin/sleep', ['sleep', '1000'])")
    assert host.until(lambda: not owner.instance.exists())
    assert owner.process.poll() is None


def test_it_has_nothing_of_its_owners(start: Start) -> None:
    owner = start()
    assert [entry.name for entry in Path(f"/proc/{owner.watchdog}/fd").iterdir()] != []
    targets = {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{owner.watchdog}/fd").iterdir()}
    pipes = [target for target in targets.values() if target.startswith("pipe:")]
    assert len(pipes) == 1
    assert set(targets.values()) <= {*pipes, "anon_inode:[pidfd]"} | {t for t in targets.values() if "pidfd" in t}
    assert Path(f"/proc/{owner.watchdog}/environ").read_bytes() == b""
    assert Path(f"/proc/{owner.watchdog}/cwd").readlink() == Path("/")
    assert os.getsid(owner.watchdog) == owner.watchdog


def test_it_follows_no_link(start: Start, tmp_path: Path, host: Host) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    owner = start()
    (owner.instance / "bundles" / BOX).symlink_to(kept)
    (owner.instance / "state" / "runc").symlink_to(kept)
    (owner.instance / "other").symlink_to(kept)
    owner.kill()
    assert host.until(lambda: not owner.instance.exists())
    assert (kept / "file").exists()


@pytest.mark.needs_root
def test_it_enters_nothing_that_is_mounted(start: Start, tmp_path: Path, host: Host) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    owner = start()
    target = owner.instance / "state" / "mounted"
    target.mkdir()
    subprocess.run(["mount", "--bind", kept, target], check=True)
    try:
        owner.kill()
        assert host.until(lambda: not is_alive(owner.watchdog))
        assert (kept / "file").exists()
        assert (owner.instance / "ledger").exists(), "whoever comes next must still find out whose it was"
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.needs_root
def test_it_kills_what_is_in_the_group_and_nobody_else(start: Start, host: Host) -> None:
    roots = [str(root) for root in detect_layout().roots]
    member, frozen, bystander = (subprocess.Popen(["sleep", "1000"]) for _ in range(3))
    similar = [Path(root, f"{GROUP}x") for root in roots]
    groups = [Path(root, GROUP, BOX, "box") for root in roots]
    owner = start(roots=roots)
    try:
        for group in (*groups, *similar):
            group.mkdir(parents=True)
        for group, other in zip(groups, similar, strict=True):
            with_members(group, member.pid, frozen.pid)
            with_members(other, bystander.pid)
        for state in (group.parent / "freezer.state" for group in groups):
            if state.exists():
                state.write_text("FROZEN")
        owner.kill()
        assert member.wait(timeout=20) == frozen.wait(timeout=20) == -signal.SIGKILL
        assert host.until(lambda: not any(Path(root, GROUP).exists() for root in roots))
        assert bystander.poll() is None
        assert all(other.exists() for other in similar)
    finally:
        for process in (member, frozen, bystander):
            process.kill()
            process.wait()
        for other in similar:
            assert host.until(lambda other=other: removed(other))  # type: ignore[misc]  # mypy knows no defaults


def with_members(group: Path, *pids: int) -> None:
    """Put processes into a group, if it takes any."""
    if (group / "cpuset.cpus").exists():
        for file in ("cpuset.cpus", "cpuset.mems"):  # an empty cpuset takes nobody
            for directory in (group.parent.parent, group.parent, group):
                if (directory / file).exists() and not (directory / file).read_text().strip():
                    (directory / file).write_text((directory.parent / file).read_text())
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


def removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


# --- runtimes that are about to start ----------------------------------------------------------------


def test_a_runtime_that_comes_too_late_does_not_start(tmp_path: Path) -> None:
    """The watchdog has marked the bundle, or removed it."""
    marked = tmp_path / "marked"
    marked.symlink_to("none")
    for mark in (marked, tmp_path / "no" / "such"):
        done = subprocess.run([seal_program(), mark, "--", "/bin/echo", "started"], check=False, capture_output=True)
        assert (done.returncode, done.stdout) == (125, b"")


def test_a_runtime_that_has_started_is_ended(start: Start, host: Host) -> None:
    owner = start()
    bundle = owner.instance / "bundles" / BOX
    bundle.mkdir()
    runtime = subprocess.Popen([seal_program(), bundle / "runtime", "--", "/bin/sleep", "1000"])
    assert host.until((bundle / "runtime").is_symlink)
    owner.kill()
    assert runtime.wait(timeout=20) == -signal.SIGKILL
    assert host.until(lambda: not owner.instance.exists())


def test_a_number_that_has_gone_to_another_process_is_not_killed(start: Start, host: Host) -> None:
    owner = start()
    bundle = owner.instance / "bundles" / BOX
    bundle.mkdir()
    bystander = subprocess.Popen(["sleep", "1000"])
    started = identity.start_of(bystander.pid)
    assert started is not None
    (bundle / "runtime").symlink_to(f"{bystander.pid} {started - 1}")
    owner.kill()
    assert host.until(lambda: not owner.instance.exists())
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
