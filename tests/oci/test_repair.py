"""A box whose runtime is killed at a random moment is removed without it: nothing of it stays, and no mount."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import trio
from attrs import asdict

import kavach_core as kavach_api
from kavach_core.oci import aftermath, runtime
from kavach_core.oci.workspace import workspace
from kavach_core.reaper import ledger
from tests.conftest import Host

ROUNDS = 6
LONGEST_BOOT = {"runc": 0.06, "crun": 0.03, "gvisor": 0.3}


def state_and_bundles() -> list[Path]:
    """Return the files of boxes in the instance of this process."""
    own = workspace()
    return [] if own is None else [*own.path.glob("bundles/*"), *own.path.glob("state/*/*")]


def mounts_of_boxes() -> list[str]:
    """Return what is mounted below kavach's own directories, as the host sees it."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/kavach" in line]


@pytest.fixture
def chance(backend: str) -> random.Random:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"{backend}: seed {seed}")  # noqa: T201 - shown when the test fails
    return random.Random(seed)


async def test_runtime_killed_while_it_boots(
    monkeypatch: pytest.MonkeyPatch, backend: str, host: Host, chance: random.Random
) -> None:
    """By somebody else, with SIGKILL: opening fails, or the box lives on without its runtime and can be closed."""
    processes: list[runtime.HostProcess] = []
    start = runtime.HostProcess.__init__

    def started(self: runtime.HostProcess, *arguments: object, **options: object) -> None:
        start(self, *arguments, **options)  # type: ignore[arg-type]  # whatever it takes
        processes.append(self)

    monkeypatch.setattr(runtime.HostProcess, "__init__", started)
    mounts = mounts_of_boxes()

    async def kill_soon() -> None:
        while not processes:  # noqa: ASYNC110 - a runtime that starts sets no trio.Event
            await trio.sleep(0.0005)
        await trio.sleep(chance.random() * LONGEST_BOOT[backend])
        processes[-1].kill()

    for _ in range(ROUNDS):
        processes.clear()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_soon)
                try:
                    async with kavach_api.open_sandbox(backend=backend) as sandbox:
                        await sandbox.exec("true")
                        await trio.sleep(0.05)
                except (kavach_api.CreateError, kavach_api.SandboxGone):
                    continue
    assert await host.until_async(lambda: not state_and_bundles())
    assert mounts_of_boxes() == mounts
    own = workspace()
    assert own is not None
    assert ledger.read(str(own.path))[1] == {}


async def test_runtime_killed_under_a_live_box(backend: str, host: Host) -> None:
    """A box of crun does not notice; its end removes what the runtime would have removed."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        sandbox._session._box.process.kill()
        if backend == "crun":  # runc carries its output, and the Sentry goes with its parent
            assert (await sandbox.exec("true")).ok
    assert not host.members(sandbox.id)
    assert await host.until_async(lambda: not state_and_bundles() and not host.cgroups(sandbox.id))


async def test_what_is_left_behind_a_closed_box_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, backend: str, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing has returned by then: it is logged and counted, and the ledger keeps the box."""
    monkeypatch.setattr(runtime, "END_DEADLINE_SECONDS", 0.2)
    before = asdict(aftermath.tally)
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        groups = host.cgroups(sandbox.id)
        busy = next((group for group in groups if "/pids/" in str(group)), groups[0])
        (busy / "kept" / "kept").mkdir(parents=True)
        bystander = await trio.lowlevel.open_process(["sleep", "1000"])
        (busy / "kept" / "kept" / "cgroup.procs").write_text(str(bystander.pid))
    own = workspace()
    assert own is not None
    with caplog.at_level(logging.ERROR):
        assert await host.until_async(lambda: aftermath.tally.failed == before["failed"] + 1)
    assert sandbox.id in caplog.text
    assert list(ledger.read(str(own.path))[1]) == [sandbox.id]
    bystander.kill()
    await bystander.wait()
    assert await host.until_async(lambda: remove_again(sandbox))
    assert ledger.read(str(own.path))[1] == {}


def remove_again(sandbox: kavach_api.Sandbox) -> bool:
    return not sandbox._session._box._launch.remove()


async def test_the_loop_ends_only_when_everything_is_removed(backend: str, host: Host) -> None:
    """A program that returns from ``trio.run`` right after a close leaves nothing to its watchdog."""
    ids: list[str] = []

    async def use() -> None:
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            ids.append(sandbox.id)

    await trio.to_thread.run_sync(trio.run, use)
    assert not host.cgroups(ids[0])
    assert not [path for path in state_and_bundles() if ids[0] in path.name]
