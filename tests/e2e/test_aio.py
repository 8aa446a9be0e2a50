"""The face for asyncio, on real boxes: one call, callbacks and inputs in the caller's event loop, errors."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from boxes import in_asyncio

import kavach_core as kavach
from kavach_core import WrongLoop, aio

if TYPE_CHECKING:
    from tests.conftest import Host

pytestmark = pytest.mark.usefixtures("no_thread_left")


# --- one call, one block ----------------------------------------------------------------------------


def test_one_line(backend: str) -> None:
    async def main() -> None:
        result = await aio.run("sh", "-c", "cat; echo $A", backend=backend, env={"A": "b"}, input=b"in\n", timeout=20)
        assert (result.outcome, result.stdout, result.backend) == (kavach.Outcome.OK, "in\nb\n", backend)
        with pytest.raises(kavach.ConfigError, match="memory"):
            await aio.run("true", memory=1)  # type: ignore[call-arg]

    asyncio.run(main())


def test_a_block_has_all_that_the_core_has(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        assert (sandbox.backend, sandbox.state) == (backend, kavach.State.RUNNING)
        assert (await sandbox.shell("cd /; pwd")).stdout == "/\n"
        await sandbox.ping()
        assert ((await sandbox.usage()).pids or 0) >= 1
        await sandbox.files.write("of/a", b"one two", create_parents=True)
        async with sandbox.files.open_write("of/b") as sink:
            await sink.send_all(b"three")
        async with sandbox.files.open_read("of/a") as source:
            assert b"".join([piece async for piece in source]) == b"one two"
        assert [entry.name for entry in await sandbox.files.list("of")] == ["a", "b"]
        assert await sandbox.files.read_text("of/b") == "three"
        with pytest.raises(FileNotFoundError, match="nothing"):
            await sandbox.files.read("nothing")
        await sandbox.pause()
        assert sandbox.state is kavach.State.PAUSED
        await sandbox.resume()
        await sandbox.aclose()
        with pytest.raises(kavach.SandboxError):
            await sandbox.exec("true")

    in_asyncio(backend, body)


def test_a_conversation_with_a_command(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        async with await sandbox.spawn("cat", stdin=True) as process:
            assert process.stdin is not None
            assert process.poll() is None
            await process.stdin.send_all(b"hello")
            assert await process.stdout.receive_some() == b"hello"
            assert [found.name for found in await sandbox.processes()] == ["cat"]
            await process.stdin.aclose()
            assert (await process.wait()).exit_code == 0
            assert [piece async for piece in process.stdout] == []
        async with await sandbox.spawn("sh", "-c", "echo out; exec sleep 1000") as process:
            assert (await anext(process)).data == b"out\n"
            await process.send_signal(signal.SIGTERM)
            assert (await process.wait()).signal == signal.SIGTERM
        async with await sandbox.spawn("sleep", "1000", tty=True) as process:
            await process.resize(rows=10, columns=20)
        assert await sandbox.processes() == ()

    in_asyncio(backend, body)


def test_a_pool(backend: str) -> None:
    async def main() -> None:
        async with aio.open_pool(backend=backend, size=2) as pool:
            await pool.wait_filled()

            async def work(number: int) -> str:
                async with pool.sandbox() as sandbox:
                    return (await sandbox.exec("echo", str(number))).stdout

            assert await asyncio.gather(*map(work, range(4))) == [f"{number}\n" for number in range(4)]
            assert pool.stats().in_use == 0

    asyncio.run(main())


def test_fifty_tasks_use_one_sandbox(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        async def work(number: int) -> str:
            return (await sandbox.exec("sh", "-c", "read line; echo got $line", input=b"%d\n" % number)).stdout

        assert await asyncio.gather(*map(work, range(50))) == [f"got {number}\n" for number in range(50)]

    in_asyncio(backend, body)


def test_event_loops_in_several_threads_share_the_loop(backend: str) -> None:
    results: list[str] = []

    def use() -> None:
        results.append(asyncio.run(aio.run("echo", "hi", backend=backend)).stdout)

    workers = [threading.Thread(target=use) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == ["hi\n"] * 3


def test_what_is_used_again_and_again_stays_as_it_was(backend: str) -> None:
    asyncio.run(aio.run("true", backend=backend))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        asyncio.run(aio.run("true", backend=backend))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- callbacks and inputs ---------------------------------------------------------------------------


variable = contextvars.ContextVar("variable", default="")


def test_callbacks_and_input_run_in_the_event_loop_of_the_caller(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        seen: list[bytes] = []
        loop = asyncio.get_running_loop()

        async def see(data: bytes) -> None:
            await asyncio.sleep(0)
            assert asyncio.get_running_loop() is loop
            assert variable.get() == "mine"
            seen.append(data)

        async def give() -> AsyncIterator[bytes]:
            task = asyncio.current_task()
            async with asyncio.timeout(60):  # which has to be entered and left in one task
                for number in range(3):
                    await asyncio.sleep(0)
                    assert asyncio.current_task() is task
                    assert variable.get() == "mine"
                    yield b"%d\n" % number

        variable.set("mine")
        result = await sandbox.exec("cat", input=give(), on_stdout=see, on_stderr=see)
        assert b"".join(seen) == result.stdout_bytes == b"0\n1\n2\n"
        await sandbox.files.write("x", give())
        assert await sandbox.files.read("x") == b"0\n1\n2\n"

    in_asyncio(backend, body)


def test_a_command_waits_for_its_callback(backend: str) -> None:
    """Backpressure: while the callback waits, the command is stopped before long, and loses nothing."""

    async def body(sandbox: aio.Sandbox) -> None:
        gate, total = asyncio.Event(), 0

        async def see(data: bytes) -> None:
            nonlocal total
            await gate.wait()
            total += len(data)

        size = 20_000_000
        script = f"head -c {size} /dev/zero; echo done >/tmp/done"
        task = asyncio.create_task(sandbox.shell(script, on_stdout=see, max_output=0))
        while not await sandbox.processes():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        assert not await sandbox.files.exists("/tmp/done")
        gate.set()
        assert (await task).ok
        assert total == size

    in_asyncio(backend, body)


def test_input_and_output_may_depend_on_each_other(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def give() -> AsyncIterator[bytes]:
            for number in range(5):
                yield b"%d\n" % number
                assert await answers.get() == b"%d\n" % number

        assert (await sandbox.exec("cat", input=give(), on_stdout=answers.put)).stdout == "0\n1\n2\n3\n4\n"

    in_asyncio(backend, body)


def test_input_that_never_comes_is_cancelled_with_the_end_of_the_command(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        waited = ended = False

        async def give() -> AsyncIterator[bytes]:
            nonlocal waited, ended
            yield b"x"
            waited = True
            try:
                await asyncio.Event().wait()
            finally:
                ended = True

        assert (await sandbox.exec("head", "-c1", input=give())).stdout == "x"
        assert waited is ended
        assert not [task for task in asyncio.all_tasks() if "_iterate" in repr(task)]

    in_asyncio(backend, body)


def test_an_error_of_a_callback_is_the_callers_and_ends_the_command(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        raised = ValueError("no more")

        async def refuse(_: bytes) -> None:
            raise raised

        async def give() -> AsyncIterator[bytes]:
            yield b"x"
            raise raised

        with pytest.raises(ValueError, match="no more") as caught:
            await sandbox.shell("echo; sleep 1000", on_stdout=refuse)
        assert caught.value is raised
        with pytest.raises(ValueError, match="no more") as caught:
            await sandbox.exec("sleep", "1000", input=give())
        assert caught.value is raised
        assert await sandbox.processes() == ()

    in_asyncio(backend, body)


def test_the_deadline_cancels_a_callback(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        cancelled = False

        async def hang(_: bytes) -> None:
            nonlocal cancelled
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise

        result = await sandbox.shell("echo; sleep 1000", on_stdout=hang, timeout=0.5)
        assert (result.timed_out, cancelled) == (True, True)

    in_asyncio(backend, body)


# --- errors -----------------------------------------------------------------------------------------


def test_errors_are_the_cores(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        with pytest.raises(kavach.ExecTimeout) as caught:
            await sandbox.shell("echo a; sleep 1000", timeout=0.3, check=True)
        assert caught.value.result.stdout == "a\n"
        with pytest.raises(kavach.StartFailed):
            await sandbox.spawn("/no/such/program")

    in_asyncio(backend, body)


def test_after_the_block_there_is_nothing(backend: str) -> None:
    async def main() -> None:
        async with aio.open_sandbox(backend=backend) as sandbox:
            pass
        assert sandbox.state is kavach.State.DESTROYED
        with pytest.raises(WrongLoop):
            await sandbox.exec("true")

    asyncio.run(main())


def test_an_event_loop_that_ends_closes_what_is_open(backend: str, host: Host) -> None:
    """``asyncio.run`` closes the generator of a block that was entered and not left."""
    kept: list[Any] = []

    async def main() -> str:
        kept.append(aio.open_sandbox(backend=backend))
        sandbox = await kept[0].__aenter__()
        return str(sandbox.id)

    box_id = asyncio.run(main())
    assert not host.members(box_id)


async def test_in_trio_it_says_what_to_use() -> None:
    with pytest.raises(WrongLoop, match="kavach_core inside of trio"):
        await aio.run("true")
