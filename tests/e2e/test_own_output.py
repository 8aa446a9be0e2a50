"""All that a command has written before its end is there, whatever else the box and its caller have to do."""

from __future__ import annotations

import signal
from array import array

import pytest
import trio

import kavach_core as kavach
from kavach_core.errors import ConfigError, GuestProtocolError, SandboxGone
from kavach_core.types import Outcome

SIZE = 300_000


async def test_many_at_once_lose_nothing(backend: str) -> None:
    """Then the box writes, and we read, for much longer than anybody left behind would be awaited."""
    count = 60 if backend == "gvisor" else 200
    wrong: list[str] = []

    async def shout() -> None:
        result = await sandbox.exec("head", "-c", str(SIZE), "/dev/zero")
        if result.stdout_bytes != bytes(SIZE):
            wrong.append(f"{len(result.stdout_bytes)} of {SIZE}, {result.outcome}")

    async def whisper(number: int) -> None:
        result = await sandbox.exec("echo", str(number))
        if result.stdout != f"{number}\n":
            wrong.append(f"{result.stdout!r} for {number}, {result.outcome}")

    limits = kavach.Limits(pids=2 * count + 16)
    async with kavach.open_sandbox(backend=backend, limits=limits) as sandbox, trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(shout)
            nursery.start_soon(whisper, number)
    assert wrong == []


async def test_a_pause_while_it_comes_loses_nothing(backend: str) -> None:
    async with kavach.open_sandbox(backend=backend) as sandbox:
        paused = trio.Event()

        async def stop_at_the_first(_: bytes) -> None:
            if not paused.is_set():
                await sandbox.pause()
                paused.set()
                await trio.sleep(0.4)  # longer than anybody left behind is awaited
                await sandbox.resume()

        result = await sandbox.exec("head", "-c", str(SIZE), "/dev/zero", on_stdout=stop_at_the_first)
        assert (result.outcome, len(result.stdout_bytes)) == (Outcome.OK, SIZE)


async def test_output_that_nobody_takes_in_time_is_no_success(backend: str) -> None:
    async def hang(_: bytes) -> None:
        await trio.sleep_forever()

    async with kavach.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("head", "-c", "2000000", "/dev/zero", timeout=1, on_stdout=hang)
        assert result.outcome is Outcome.TIMEOUT
        assert (await sandbox.exec("echo", "next")).stdout == "next\n"


async def test_kill_finds_those_left_behind_by_what_has_ended(backend: str) -> None:
    async with kavach.open_sandbox(backend=backend) as sandbox:
        process = await sandbox.spawn("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
        assert (await process.wait()).exit_code == 0
        assert [piece async for piece in process] == []
        assert len([found for found in await sandbox.processes() if found.state != "Z"]) == 1
        await process.kill()
        assert [found for found in await sandbox.processes() if found.state != "Z"] == []
        await process.kill()
        assert (await sandbox.exec("echo", "next")).stdout == "next\n"


async def test_a_deadline_in_a_paused_box_ends_the_command_alone(backend: str) -> None:
    async with kavach.open_sandbox(backend=backend) as sandbox, trio.open_nursery() as nursery:
        other = await sandbox.spawn("cat", stdin=True)

        ended = trio.Event()

        async def sleep() -> None:
            result = await sandbox.exec("sleep", "1000", timeout=0.5)
            assert result.outcome is Outcome.TIMEOUT
            assert not result.sandbox_gone
            ended.set()

        nursery.start_soon(sleep)
        await trio.sleep(0.1)
        await sandbox.pause()
        with trio.fail_after(20):
            await ended.wait()
        assert sandbox.state == "paused"
        await sandbox.resume()
        assert other.stdin is not None
        await other.stdin.send_all(b"alive")
        assert await other.stdout.receive_some() == b"alive"
        await other.kill()


@pytest.mark.parametrize("number", [0, -1, 65, True, signal.SIGRTMAX + 1])
async def test_what_is_no_signal_is_refused(backend: str, number: int) -> None:
    async with kavach.open_sandbox(backend=backend) as sandbox, await sandbox.spawn("cat", stdin=True) as process:
        with pytest.raises(ConfigError, match="signal"):
            await process.send_signal(number)
        await sandbox.ping()


async def test_sizes_that_no_terminal_has_are_refused(backend: str) -> None:
    async def sizes() -> object:
        yield kavach.TerminalSize(rows=0, columns=0)

    async with kavach.open_sandbox(backend=backend) as sandbox:
        with pytest.raises(ConfigError, match="rows"):
            await sandbox.exec("sleep", "1000", tty=True, tty_sizes=sizes())  # type: ignore[arg-type]
        await sandbox.ping()


async def test_input_may_have_elements_of_any_size(backend: str) -> None:
    numbers = array("i", range(100_000))
    async with kavach.open_sandbox(backend=backend) as sandbox, await sandbox.spawn("cat", stdin=True) as process:
        back = b""
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                assert process.stdin is not None
                await process.stdin.send_all(memoryview(numbers))  # type: ignore[arg-type]
                await process.stdin.aclose()

            nursery.start_soon(feed)
            async for piece in process:
                back += piece.data
        assert back == numbers.tobytes()


async def test_a_second_close_waits_for_the_first(backend: str) -> None:
    sandbox = await kavach.create_sandbox(backend=backend)
    await sandbox.spawn("sleep", "1000")
    ended: list[bool] = []

    async def close() -> None:
        await sandbox.aclose()
        ended.append(sandbox._session._box._ended.is_set())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        nursery.start_soon(close)
    assert ended == [True, True]


async def test_each_has_an_error_of_his_own(backend: str) -> None:
    """It holds the result of his command."""
    found: list[SandboxGone | GuestProtocolError] = []

    async def wait(number: int) -> None:
        try:
            await sandbox.exec("sleep", f"100{number}")
        except (SandboxGone, GuestProtocolError) as error:
            found.append(error)

    async with kavach.open_sandbox(backend=backend) as sandbox, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(wait, number)
        await trio.sleep(0.2)
        sandbox._session._channel._violation = "said by a test"
        sandbox._session._channel._end()
    assert len({id(error) for error in found}) == 4
    assert len({error.result.argv for error in found if error.result is not None}) == 4
