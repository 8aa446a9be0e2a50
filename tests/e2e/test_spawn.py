"""Commands that the caller holds: streams, end, signals, flow control, and many of them at once."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import trio

import kavach_core as kavach_api
from kavach_core import Limits, Stream
from kavach_core.errors import SandboxGone, StartFailed

MIB = 1024 * 1024


def host_rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([piece async for piece in stream])


async def test_a_conversation(backend: str) -> None:
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("cat", stdin=True) as process,
    ):
        assert process.stdin is not None
        for word in (b"one", b"two", b"\x00\xff three"):
            await process.stdin.send_all(word)
            assert await process.stdout.receive_some() == word
        assert process.poll() is None
        await process.stdin.aclose()
        ended = await process.wait()
        assert (ended.exit_code, ended.signal, ended.status) == (0, None, 0)
        assert process.poll() == ended
        assert await read_all(process.stdout) == b""


async def test_both_streams_as_they_come(backend: str) -> None:
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("sh", "-c", "echo 1; sleep 0.2; echo 2 >&2; sleep 0.2; echo 3; exit 4") as process,
    ):
        events = [(output.stream, output.data) async for output in process]
        assert events == [(Stream.STDOUT, b"1\n"), (Stream.STDERR, b"2\n"), (Stream.STDOUT, b"3\n")]
        assert (await process.wait()).status == 4


async def test_poll_sees_the_end_without_waiting(backend: str) -> None:
    """Nobody else reads from the agent meanwhile."""
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("sh", "-c", "kill -TERM $$") as process,
    ):
        with trio.fail_after(30):
            while (ended := process.poll()) is None:  # noqa: ASYNC110 - polling is what is tested
                await trio.sleep(0.01)
        assert (ended.signal, ended.status) == (signal.SIGTERM, 128 + signal.SIGTERM)


async def test_signals_reach_the_first_process(backend: str) -> None:
    script = "trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done"
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("sh", "-c", script) as process,
    ):
        assert await process.stdout.receive_some() == b"up\n"
        await process.send_signal(signal.SIGHUP)
        assert await process.stdout.receive_some() == b"hup\n"
        await process.send_signal(signal.SIGTERM)
        assert (await process.wait()).signal == signal.SIGTERM
        await process.send_signal(signal.SIGTERM)


async def test_a_kill_takes_the_tree(backend: str) -> None:
    script = "sleep 1000 & (setsid sleep 1000 &); trap '' TERM; echo up; kill -STOP $$"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        bystander = await sandbox.spawn("sleep", "1000")
        async with await sandbox.spawn("sh", "-c", script) as process:
            assert await process.stdout.receive_some() == b"up\n"
            await process.kill()
            assert (await process.wait()).signal == signal.SIGKILL
            await process.kill()
        left = await sandbox.processes()
        assert [one.exec_id for one in left] == [bystander.exec_id]
        assert bystander.poll() is None


async def test_leaving_the_block_kills_what_runs_and_spares_what_was_left_behind(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        async with await sandbox.spawn("sleep", "1000") as process:
            assert process.poll() is None
        assert await sandbox.processes() == ()
        async with await sandbox.spawn("sh", "-c", "sleep 1000 >/dev/null 2>&1 &") as process:
            await process.wait()
        assert [one.exec_id for one in await sandbox.processes()] == [process.exec_id]


async def test_a_process_that_is_let_go_runs_on(backend: str) -> None:
    """What it writes then is thrown away, so that it is not stopped."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        process = await sandbox.spawn("sh", "-c", "head -c 3000000 /dev/zero; echo done >/tmp/done; sleep 1000")
        await process.aclose()
        with trio.fail_after(30):
            while not (await sandbox.exec("cat", "/tmp/done")).ok:  # noqa: ASYNC110 - another's clock
                await trio.sleep(0.02)


async def test_what_cannot_be_started(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        with pytest.raises(StartFailed) as caught:
            await sandbox.spawn("no-such-program")
        assert caught.value.result.exit_code == 127


async def test_a_process_of_a_box_that_has_gone(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        process = await sandbox.spawn("sleep", "1000")
    with pytest.raises(SandboxGone):
        await process.wait()
    with pytest.raises(SandboxGone):
        process.poll()
    await process.aclose()


async def test_output_that_nobody_reads_stops_its_command_and_no_other(backend: str) -> None:
    """And host memory stays what it was."""
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("sh", "-c", "yes & yes >&2") as flood,
    ):
        await sandbox.exec("echo", "first")
        before = host_rss()
        for number in range(20):
            result = await sandbox.exec("echo", str(number), timeout=30)
            assert result.stdout == f"{number}\n"
        assert host_rss() - before < 8 * MIB
        assert flood.poll() is None
        # The flood stands still: it uses no CPU time between two looks.
        with trio.fail_after(30):
            while await cpu_of(sandbox, flood) != await after(0.2, sandbox, flood):  # noqa: ASYNC110 - its own clock
                await trio.sleep(0.05)
        assert len(await flood.stdout.receive_some()) > 0


async def cpu_of(sandbox: kavach_api.Sandbox, process: kavach_api.Process) -> float:
    return sum(one.cpu_seconds for one in await sandbox.processes() if one.exec_id == process.exec_id)


async def after(seconds: float, sandbox: kavach_api.Sandbox, process: kavach_api.Process) -> float:
    await trio.sleep(seconds)
    return await cpu_of(sandbox, process)


@pytest.mark.parametrize("count", [200])
async def test_hundreds_at_once(backend: str, count: int) -> None:
    """All alive at the same moment, each with its own streams."""
    limits = Limits(pids=4096)
    async with kavach_api.open_sandbox(backend=backend, limits=limits, policy="minimal") as sandbox:
        processes = [await sandbox.spawn("cat", stdin=True) for _ in range(count)]
        assert len({process.pid for process in processes}) == count
        assert len(await sandbox.processes()) == count

        async def talk(number: int, process: kavach_api.Process) -> None:
            assert process.stdin is not None
            await process.stdin.send_all(b"%d" % number)
            await process.stdin.aclose()
            assert await read_all(process.stdout) == b"%d" % number
            assert (await process.wait()).status == 0

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for number, process in enumerate(processes):
                    nursery.start_soon(talk, number, process)


async def test_the_processes_of_a_box(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        assert await sandbox.processes() == ()
        result = await sandbox.exec(
            "sh", "-c", "sleep 1000 >/dev/null 2>&1 & while ! grep -q sleep /proc/$!/comm; do :; done"
        )
        program = "print('up', flush=True); input()"
        async with await sandbox.spawn("python3", "-c", program, stdin=True, user="1234:1234") as python:
            assert await python.stdout.receive_some() == b"up\n"
            found = {process.name: process for process in await sandbox.processes()}
            assert set(found) == {"sleep", "python3"}
            assert found["sleep"].exec_id == result.exec_id
            assert found["sleep"].uid == 65534
            assert (found["python3"].exec_id, found["python3"].uid) == (python.exec_id, 1234)
            assert found["python3"].pid == python.pid
            assert found["python3"].rss_bytes > MIB
            assert found["python3"].threads == 1


async def test_a_name_that_would_steer_a_terminal(backend: str) -> None:
    rename = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\x1b[2J\\nPid: 1', 0, 0, 0)\n"
    program = f"{rename}print('up', flush=True)\ntime.sleep(1000)"
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("python3", "-c", program) as process,
    ):
        assert await process.stdout.receive_some() == b"up\n"
        (found,) = await sandbox.processes()
        assert found.pid == process.pid
        assert "\x1b" not in found.name
        assert "[2J" in found.name


async def test_a_box_that_is_paused(backend: str) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; done"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        async with await sandbox.spawn("sh", "-c", script) as process:
            await sandbox.pause()
            assert sandbox.state is kavach_api.State.PAUSED
            first = (await sandbox.usage()).cpu_seconds
            await trio.sleep(0.3)
            assert (await sandbox.usage()).cpu_seconds == first
            with pytest.raises(kavach_api.SandboxError):
                await sandbox.exec("true")
            await sandbox.resume()
            assert (await sandbox.exec("true", timeout=30)).ok
            assert process.poll() is None
        await sandbox.pause()
