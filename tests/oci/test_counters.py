"""What a box met of its limits is told by counters of the kernel, also after its end, and by nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from kavach_guest import oci_boot

import kavach_core as kavach_api
from kavach_core import Limits
from kavach_core.oci.cgroups import CgroupLayout
from kavach_core.oci.counters import Counters
from kavach_core.oci.freezer import Freezer
from kavach_core.oci.shortages import killed_for_memory
from kavach_core.policy import ByteSize
from kavach_core.types import LimitEvents

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
MIB = 1024 * 1024
HOG = "x = b'1' * (1024 * 1024 * 1024)"
SPAWN = """
import os, time
refused = 0
for _ in range(30):
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError:
        refused += 1
print(refused, flush=True)
"""


def events(sandbox: kavach_api.Sandbox) -> LimitEvents:
    return sandbox._session.limit_events()


async def test_a_shortage_of_memory_is_told_also_of_a_box_that_died_of_it(backend: str) -> None:
    limits = Limits(memory=ByteSize(128 * MIB))
    async with kavach_api.open_sandbox(backend=backend, limits=limits) as sandbox:
        assert events(sandbox).oom_kills == 0
        try:
            await sandbox.exec("python3", "-c", HOG, timeout=60)
        except kavach_api.SandboxGone:
            assert backend == "gvisor"
        assert (events(sandbox).oom_kills or 0) >= 1
    assert (events(sandbox).oom_kills or 0) >= 1
    usage = await sandbox.usage()
    assert (usage.oom_kills or 0) >= 1
    assert usage.memory_peak_bytes is not None
    assert usage.memory_peak_bytes >= 100 * MIB


async def test_a_plain_kill_is_no_shortage(backend: str) -> None:
    limits = Limits(memory=ByteSize(128 * MIB))
    async with kavach_api.open_sandbox(backend=backend, limits=limits) as sandbox:
        killed = await sandbox.exec("sh", "-c", "kill -9 $$", timeout=60)
        assert killed.outcome is kavach_api.Outcome.SIGNAL
        timed_out = await sandbox.exec("sleep", "1000", timeout=0.2)
        assert timed_out.timed_out
        assert events(sandbox).oom_kills == 0
    assert events(sandbox).oom_kills == 0, "nor is the end of the box"


async def test_a_box_that_was_killed_has_met_no_limit(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=Limits(memory=ByteSize(128 * MIB))) as sandbox:
        process = await sandbox.spawn("sleep", "1000")
        sandbox._session._box.kill()
        with trio.fail_after(20), pytest.raises(kavach_api.SandboxGone):
            await process.wait()
        assert events(sandbox).oom_kills == 0


@pytest.mark.parametrize("backend", ["runc", "crun"])
@pytest.mark.needs_runc
@pytest.mark.needs_crun
async def test_refused_processes_are_counted(backend: str) -> None:
    """Exactly as many as allowed are made, and the kernel has counted the others."""
    async with kavach_api.open_sandbox(backend=backend, limits=Limits(pids=20)) as sandbox:
        assert events(sandbox).pids_refusals == 0
        process = await sandbox.spawn("python3", "-c", SPAWN)
        with trio.fail_after(60):
            line = await process.stdout.receive_some(100)
        assert int(line) == 11
        assert events(sandbox).pids_refusals == 11
        await process.kill()
    assert events(sandbox).pids_refusals == 11
    assert (await sandbox.usage()).pids_peak == 21


COUNT = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
except OSError:
    pass
print(made, flush=True)
"""


@pytest.mark.parametrize("backend", ["runc", "crun"])
@pytest.mark.needs_runc
@pytest.mark.needs_crun
def test_the_bound_is_exact_on_the_command_line(run_kavach: Runner, backend: str) -> None:
    """The long way, and as that did."""
    for _ in range(2):
        done = run_kavach("run", "-b", backend, "--pids", "20", "--", "python3", "-c", COUNT)
        assert done.stdout == b"19\n"


@pytest.mark.parametrize("backend", ["runc", "crun"])
@pytest.mark.needs_runc
@pytest.mark.needs_crun
async def test_it_is_our_cgroup_that_bounds(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Without the bound that is set once the box has booted, there is room for what the runtime needed."""
    monkeypatch.setattr(oci_boot, "_booted_tasks", lambda _: None)
    async with kavach_api.open_sandbox(backend=backend, limits=Limits(pids=20)) as sandbox:
        result = await sandbox.exec("python3", "-c", COUNT, timeout=60)
    assert 19 < int(result.stdout) < 100


def test_version_2_counts_in_our_group(tmp_path: Path) -> None:
    """A kernel before 6.11 counts refusals where the process is, a later one where the limit is."""
    layout = CgroupLayout(hierarchies={}, unified=tmp_path, claimed=frozenset({"memory", "pids"}))
    box = tmp_path / "kavach-x" / "box"
    box.mkdir(parents=True)
    (box.parent / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 0\n")
    (box.parent / "pids.events").write_text("max 0\n")
    counters = Counters(layout, "kavach-x")
    assert counters.read() == LimitEvents(oom_kills=2, pids_refusals=0)
    (box / "pids.events").write_text("max 7\n")
    assert counters.read() == LimitEvents(oom_kills=2, pids_refusals=7)
    counters.close()
    (box.parent / "memory.events").write_text("oom_kill 9\n")
    assert counters.read() == LimitEvents(oom_kills=2, pids_refusals=7)


def test_what_is_not_counted_is_none(tmp_path: Path) -> None:
    layout = CgroupLayout(hierarchies={}, unified=tmp_path, claimed=frozenset())
    assert Counters(layout, "kavach-x").read() == LimitEvents()


# --- stopping -----------------------------------------------------------------------------------------


async def test_a_paused_box_stands_still_and_goes_on(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        box = sandbox._session._box
        process = await sandbox.spawn("sh", "-c", "while :; do echo x; done")
        assert await process.stdout.receive_some(10)
        await box.pause()
        await box.pause()
        before = (await box.usage()).cpu_seconds
        with trio.move_on_after(0.3) as scope:  # what is still in the pipes comes, and then nothing
            while await process.stdout.receive_some(65_536):
                pass
        assert scope.cancelled_caught
        assert (await box.usage()).cpu_seconds == before
        await box.resume()
        await box.resume()
        with trio.fail_after(20):
            assert await process.stdout.receive_some(10)
        await process.kill()


async def test_a_paused_box_is_closed_like_another(backend: str) -> None:
    """Version 1 holds every signal back as long as a process stands still."""
    with trio.fail_after(60):
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            await sandbox.spawn("sleep", "1000")
            await sandbox._session._box.pause()
    with pytest.raises(kavach_api.SandboxGone):
        await sandbox._session._box.pause()
    await sandbox._session._box.resume()


def test_a_host_that_cannot_stop_a_box_says_so() -> None:
    layout = CgroupLayout(hierarchies={"memory": Path("/nonexistent")}, unified=None, claimed=frozenset())
    with pytest.raises(FileNotFoundError):
        Freezer(layout, "kavach-x").freeze()
    assert not Freezer(layout, "kavach-x").is_frozen()


@pytest.mark.parametrize(
    ("events", "killed"),
    [
        (None, False),
        ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\n", False),
        ("oom 1\noom_kill 2\noom_group_kill 0\n", True),
    ],
)
def test_a_kill_in_a_group_of_version_2(tmp_path: Path, events: str | None, *, killed: bool) -> None:
    if events is not None:
        (tmp_path / "memory.events").write_text(events)
    assert killed_for_memory(str(tmp_path)) is killed
