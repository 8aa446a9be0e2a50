"""The outcome of a command is what was observed: limits met, bounds of the caller, the end of the box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import kavach_core as kavach_api
from kavach_core import Limits, Outcome
from kavach_core.errors import LimitExceeded, SandboxGone
from kavach_core.policy import ByteSize
from kavach_core.types import Bound

if TYPE_CHECKING:
    from tests.conftest import Runner

MIB = 1024 * 1024
HOG = "held = bytearray(1 << 30)\nfor at in range(0, 1 << 30, 4096): held[at] = 1"
FORKS = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(1000)"
THREADS = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
# A parent that ends at once leaves its child to the agent, and its CPU time with it.
DAEMONS = "import os\nif os.fork(): os._exit(0)\nif os.fork(): os.wait(); os._exit(0)\nos.setsid()\nwhile True: pass"


def limited(memory: int = 256, pids: int = 40) -> Limits:
    return Limits(memory=ByteSize(memory * MIB), pids=pids)


async def works(sandbox: kavach_api.Sandbox) -> bool:
    """Say whether another command still does what it should."""
    result = await sandbox.exec("echo", "next", timeout=30)
    return (result.outcome, result.stdout) == (Outcome.OK, "next\n")


# --- memory -------------------------------------------------------------------------------------


async def test_want_of_memory(backend: str) -> None:
    """On gVisor the host's kernel takes the whole box, which the result says."""
    async with kavach_api.open_sandbox(backend=backend, limits=limited()) as sandbox:
        result = await sandbox.exec("python3", "-c", HOG, timeout=60)
        assert (result.outcome, result.exit_code, result.oom_kills) == (Outcome.OOM_KILLED, 137, 1)
        assert result.oom_killed
        assert result.sandbox_gone is (backend == "gvisor")
        assert (await sandbox.usage()).oom_kills == 1
        if result.sandbox_gone:
            with pytest.raises(SandboxGone):
                await sandbox.exec("true")
        else:
            assert await works(sandbox)


async def test_want_of_memory_of_a_child_is_why_the_command_failed(backend: str) -> None:
    script = f"echo before; python3 -c '{HOG}'; exit 3"
    async with kavach_api.open_sandbox(backend=backend, limits=limited()) as sandbox:
        result = await sandbox.shell(script, timeout=60)
        assert result.outcome is Outcome.OOM_KILLED
        assert result.stdout == "before\n"
        assert result.exit_code == (137 if result.sandbox_gone else 3)


async def test_a_kill_is_no_want_of_memory(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=limited()) as sandbox:
        result = await sandbox.shell("kill -9 $$")
        assert (result.outcome, result.signal, result.oom_kills) == (Outcome.SIGNAL, 9, 0)
        told = await sandbox.exec("sh", "-c", "exit 137")
        assert (told.outcome, told.oom_kills) == (Outcome.NONZERO_EXIT, 0)


async def test_much_memory_within_the_limit_is_no_want_of_it(backend: str) -> None:
    """The page cache may fill the limit: then the kernel takes it back, and kills nobody."""
    script = "dd if=/dev/zero of=/tmp/x bs=1M count=60 2>&1; cat /usr/bin/* >/dev/null; false"
    async with kavach_api.open_sandbox(backend=backend, limits=limited(memory=128)) as sandbox:
        result = await sandbox.shell(script, timeout=120)
        assert (result.outcome, result.oom_kills) == (Outcome.NONZERO_EXIT, 0)


async def test_want_of_memory_with_check(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=limited()) as sandbox:
        with pytest.raises(LimitExceeded, match="memory") as caught:
            await sandbox.exec("python3", "-c", HOG, timeout=60, check=True)
        assert caught.value.result.outcome is Outcome.OOM_KILLED


@pytest.mark.usefixtures("way")
def test_want_of_memory_on_the_command_line(run_kavach: Runner, backend: str) -> None:
    options = ("run", "-b", backend, "--memory", "128M", "--")
    for _ in range(2):  # the second way needs an earlier run with these options
        done = run_kavach(*options, "python3", "-c", HOG)
        assert (done.returncode, done.stdout) == (137, b"")
        assert b"kavach: the kernel killed for want of memory\n" in done.stderr
        plain = run_kavach(*options, "sh", "-c", "kill -9 $$")
        assert (plain.returncode, plain.stderr) == (137, b"")


# --- processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [FORKS, THREADS])
async def test_too_many_processes(backend: str, program: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=limited(memory=1024)) as sandbox:
        result = await sandbox.exec("python3", "-c", program, timeout=120)
        # gVisor counts no refusals: there the processes that are left tell, and threads leave none.
        untold = backend == "gvisor" and program is THREADS
        assert result.outcome is (Outcome.NONZERO_EXIT if untold else Outcome.PIDS_LIMIT)
        assert result.exit_code != 0
        sleepers = await sandbox.processes()
        assert all(process.exec_id == result.exec_id for process in sleepers)
        assert (program is FORKS) is bool(sleepers)


async def test_a_failure_below_the_limit_is_no_limit(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=limited()) as sandbox:
        result = await sandbox.shell("for i in 1 2 3 4 5; do sleep 1000 & done; exit 2")
        assert result.outcome is Outcome.NONZERO_EXIT


# --- bounds of the caller -----------------------------------------------------------------------


async def test_cpu_time_of_the_whole_tree_is_a_bound(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        busy = "while :; do :; done & while :; do :; done"
        result = await sandbox.shell(busy, cpu_timeout=0.6, timeout=60)
        assert (result.outcome, result.stopped_by, result.exit_code) == (Outcome.TIMEOUT, Bound.CPU, 124)
        assert await sandbox.processes() == ()
        idle = await sandbox.exec("sleep", "1", cpu_timeout=0.6)
        assert idle.ok


async def test_short_lived_children_count_as_well(backend: str) -> None:
    """Each of them is dead before anybody looks."""
    script = "while :; do (i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done); done"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.shell(script, cpu_timeout=1, timeout=60)
        assert result.stopped_by is Bound.CPU


async def test_output_is_a_bound(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("yes", output_limit=5 * MIB, max_output=10, timeout=60)
        assert (result.outcome, result.stopped_by) == (Outcome.OUTPUT_LIMIT, Bound.OUTPUT)
        assert result.stdout == "y\ny\ny\ny\ny\n"
        assert 5 * MIB < result.stdout_total_bytes < 10 * MIB
        assert await works(sandbox)


# --- those who do harm --------------------------------------------------------------------------


async def test_filling_the_disk(backend: str) -> None:
    limits = Limits(tmp=ByteSize(8 * MIB))
    async with kavach_api.open_sandbox(backend=backend, limits=limits) as sandbox:
        result = await sandbox.shell("cat /dev/zero >/tmp/x", timeout=60)
        assert result.outcome is Outcome.NONZERO_EXIT
        assert "No space left" in result.stderr
        assert await works(sandbox)


async def test_killing_everything_it_can(backend: str) -> None:
    """It ends itself and others of its user, and nothing else: the agent is another's."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        async with await sandbox.spawn("sleep", "1000") as bystander:
            result = await sandbox.exec("python3", "-c", "import os; os.kill(-1, 9); os.kill(os.getpid(), 9)")
            assert (result.outcome, result.signal) == (Outcome.SIGNAL, 9)
            assert (await bystander.wait()).signal == 9
        assert await works(sandbox)


@pytest.mark.parametrize("bomb", [":() { :|:& }; :", "while :; do (sleep 1000 &) & done"])
async def test_a_fork_bomb_at_its_deadline(backend: str, bomb: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=limited(memory=1024)) as sandbox:
        result = await sandbox.exec("bash", "-c", bomb, timeout=3)
        # The first process of the first kind ends at once; what it left behind lives on.
        assert result.outcome in {Outcome.TIMEOUT, Outcome.OK, Outcome.PIDS_LIMIT}
        if result.outcome is Outcome.TIMEOUT:
            assert await sandbox.processes() == ()
            assert await works(sandbox)


# --- the end of the box -------------------------------------------------------------------------


async def test_a_box_that_is_killed_from_outside_is_no_failed_command(backend: str) -> None:
    """The error carries what the command had written."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        seen = trio.Event()

        async def note(data: bytes) -> None:
            assert data == b"up\n"
            seen.set()

        async with trio.open_nursery() as nursery:

            async def kill_the_box() -> None:
                await seen.wait()
                sandbox._session._box.kill()  # type: ignore[attr-defined]  # as the kernel of the host might

            nursery.start_soon(kill_the_box)
            with pytest.raises(SandboxGone) as caught:
                await sandbox.shell("echo up; sleep 1000", on_stdout=note, timeout=60)
        result = caught.value.result
        assert result is not None
        assert (result.outcome, result.sandbox_gone, result.stdout) == (Outcome.BACKEND_ERROR, True, "up\n")


# --- usage --------------------------------------------------------------------------------------


async def test_usage_of_a_command_and_of_the_box(backend: str) -> None:
    burn = "import sys, time\ndata = sys.stdin.read()\nwhile time.process_time() < 0.3: pass"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("python3", "-c", f"{burn}\nprint(len(data))", input="x" * 1000, timeout=60)
        assert (result.stdin_total_bytes, result.stdout_total_bytes) == (1000, 5)
        assert result.cpu_seconds >= 0.25
        assert result.max_rss_bytes > MIB
        usage = await sandbox.usage()
        assert (usage.bytes_in, usage.bytes_out) == (1000, 5)
        assert usage.cpu_seconds is not None
        assert usage.cpu_seconds > 0.25
        assert usage.cpu_user_seconds is not None
        assert usage.cpu_system_seconds is not None
        assert usage.cpu_user_seconds + usage.cpu_system_seconds > 0.2
        assert usage.memory_peak_bytes is not None
        assert usage.memory_bytes is not None
        assert usage.memory_peak_bytes > usage.memory_bytes > 0
        assert usage.pids is not None
        assert usage.pids >= 1
    ended = await sandbox.usage()
    assert ended.bytes_out == 5
    assert ended.cpu_seconds is not None
    assert ended.cpu_seconds >= usage.cpu_seconds
