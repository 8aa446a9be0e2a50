"""Dead means dead: at a deadline, at a cancel, at the end of the caller, nothing of a command is alive any more."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

import kavach_core as kavach_api
from kavach_core.oci.workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Host, Runner, Running

# Each forms a tree that a signal to the first process, or to its group, does not end. All say so when it stands.
TREES = {
    "children": "sleep 1000 & (sleep 1000 &); echo up; sleep 1000",
    "ignores signals": "trap '' TERM INT HUP; echo up; sleep 1000; sleep 1000",
    "other sessions": "setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &); echo up; sleep 1000",
    "stopped": "sleep 1000 & sh -c 'kill -STOP $$' & echo up; kill -STOP $$",
    "output closed": "echo up; exec >&- 2>&-; sleep 1000",
}

# Prints how many processes there are in the box beside the agent and the one that counts.
COUNT = "import os; print(len([n for n in os.listdir('/proc') if n.isdigit() and int(n) not in (1, os.getpid())]))"


async def others_alive(sandbox: kavach_api.Sandbox) -> int:
    """Ask the box how many processes it has."""
    result = await sandbox.exec("python3", "-c", COUNT, timeout=20, check=True)
    return int(result.stdout)


@pytest.mark.parametrize("tree", TREES)
async def test_deadline_ends_the_tree(backend: str, tree: str) -> None:
    """The box has no process of it afterwards, has kept what it wrote, and goes on with other commands."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.shell(TREES[tree], timeout=0.5)
        assert result.outcome is kavach_api.Outcome.TIMEOUT
        assert (result.timed_out, result.exit_code, result.stdout) == (True, 124, "up\n")
        assert await others_alive(sandbox) == 0


async def test_deadline_of_one_command_is_not_anothers(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox, trio.open_nursery() as nursery:
        slow = await sandbox.spawn("cat", stdin=True)
        results: list[kavach_api.ExecResult] = []

        async def run() -> None:
            results.append(await sandbox.exec("sh", "-c", "sleep 1000 & sleep 1000", timeout=0.3))

        for _ in range(3):
            nursery.start_soon(run)
        while len(results) < 3:  # noqa: ASYNC110 - three tasks, one of them last
            await trio.sleep(0.01)
        assert all(result.timed_out for result in results)
        assert slow.stdin is not None
        await slow.stdin.send_all(b"still here")
        await slow.stdin.aclose()
        assert await slow.stdout.receive_some() == b"still here"
        assert (await slow.wait()).exit_code == 0


async def test_deadline_covers_a_command_that_neither_reads_nor_writes(backend: str) -> None:
    """More input than anybody takes must not keep the deadline from coming."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("sleep", "1000", input=bytes(50_000_000), timeout=0.5)
        assert result.timed_out
        assert await others_alive(sandbox) == 0


async def test_check_raises_with_the_result(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        with pytest.raises(kavach_api.ExecTimeout) as caught:
            await sandbox.shell("echo a; sleep 1000", timeout=0.3, check=True)
        assert caught.value.result.stdout == "a\n"


async def test_cancel_ends_the_tree(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        up = trio.Event()

        async def on_output(_: bytes) -> None:
            await trio.lowlevel.checkpoint()
            up.set()

        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await sandbox.shell(TREES["other sessions"], on_stdout=on_output)

            nursery.start_soon(run)
            await up.wait()
            nursery.cancel_scope.cancel()
        assert await others_alive(sandbox) == 0


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.03, 0.1, 0.3])
async def test_cancel_while_the_box_starts_leaves_nothing(backend: str, delay: float) -> None:
    """At whatever moment it comes; the fixture that looks for what is left has the say."""
    with trio.move_on_after(delay):
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            await sandbox.exec("sleep", "1000")


@pytest.mark.usefixtures("sweep")
async def test_cancel_as_soon_as_the_runtime_has_state(backend: str, host: Host) -> None:
    """``runsc delete --force`` leaves the lock and the socket of a box that was killed while it started."""
    async with kavach_api.open_sandbox(backend=backend):
        own = workspace()
    assert own is not None
    state = own.path / "state" / ("runsc" if backend == "gvisor" else backend)
    assert await host.until_async(lambda: not any(state.iterdir()))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            async with kavach_api.open_sandbox(backend=backend) as sandbox:
                await sandbox.exec("sleep", "1000")

        nursery.start_soon(run)
        # The Sentry's socket is the last thing that runsc makes before it writes down what it has made.
        pattern = "*.sock" if backend == "gvisor" else "*"
        assert await host.until_async(lambda: any(state.glob(pattern)))
        nursery.cancel_scope.cancel()
    assert await host.until_async(lambda: not any(state.iterdir()))


async def test_end_of_the_box_ends_what_a_command_left_behind(backend: str, host: Host) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        assert (await sandbox.shell("setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo")).ok
        assert await others_alive(sandbox) == 1
        assert host.members(sandbox.id)
    assert not host.members(sandbox.id)
    assert await host.until_async(lambda: not host.cgroups(sandbox.id))


def test_command_line_deadline(run_kavach: Runner, backend: str, host: Host) -> None:
    marker = host.marker()
    script = "echo a; (sleep 1000 &) ; sleep 1000; :"
    for _ in range(2):  # the second does as the first did
        done = run_kavach("run", "-b", backend, "--timeout", "0.5", "--", "sh", "-c", script, marker)
        assert (done.returncode, done.stdout) == (124, b"a\n")
        assert not host.workload(marker)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signal_to_kavach_ends_the_command(
    start_kavach: Callable[..., Running],
    backend: str,
    host: Host,
    number: int,
    status: int,
) -> None:
    marker = host.marker()
    running = start_kavach("run", "-b", backend, "--", "sh", "-c", TREES["ignores signals"], marker)
    assert running.wait_for_line() == b"up\n"
    [box_id] = host.boxes_of(running.pid)
    returned, _ = running.end(number)
    assert not host.workload(marker)
    assert not host.members(box_id)
    assert returned == status


@pytest.mark.usefixtures("way")
def test_killed_kavach_takes_its_box_along(
    start_kavach: Callable[..., Running], backend: str, host: Host, sweep: set[str]
) -> None:
    """It had no chance to end anything: the agent does, when its input ends."""
    marker = host.marker()
    running = start_kavach("run", "-b", backend, "--", "sh", "-c", TREES["other sessions"], marker)
    assert running.wait_for_line() == b"up\n"
    [box_id] = host.boxes_of(running.pid)
    sweep.add(box_id)
    assert host.members(box_id)
    assert backend == "gvisor" or host.workload(marker)
    running.end(signal.SIGKILL)
    assert host.until(lambda: not host.workload(marker) and not host.members(box_id), seconds=2)


@pytest.mark.usefixtures("way")
def test_what_a_killed_kavach_leaves_goes_with_the_next_run(
    start_kavach: Callable[..., Running], run_kavach: Runner, backend: str, host: Host, sweep: set[str]
) -> None:
    running = start_kavach("run", "-b", backend, "--", "sh", "-c", "echo up; sleep 1000")
    running.wait_for_line()
    [box_id] = host.boxes_of(running.pid)
    sweep.add(box_id)
    running.end(signal.SIGKILL)
    assert host.until(lambda: not host.members(box_id), seconds=2)
    assert run_kavach("run", "-b", backend, "--", "true").returncode == 0
    assert host.until(lambda: not host.cgroups(box_id), seconds=1)
