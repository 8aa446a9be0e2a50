"""The face for asyncio, on real boxes: cancellation, callbacks and inputs in the caller's event loop, nothing left."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kavach_core as kavach
from kavach_core import WrongLoop, aio
from kavach_core.types import Output

if TYPE_CHECKING:
    from tests.conftest import Host


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = threads()
    yield
    assert threads() == before


def in_sandbox(backend: str, body: Callable[[aio.Sandbox], Awaitable[Any]]) -> str:
    """Run ``body`` with a sandbox, in an event loop of asyncio in debug mode; return the sandbox's id."""

    async def main() -> str:
        async with aio.open_sandbox(backend=backend) as sandbox:
            await body(sandbox)
            return sandbox.id

    return asyncio.run(main(), debug=True)


# --- one call, one block -------------------------------------------------------------------------------------------


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

    in_sandbox(backend, body)


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

    in_sandbox(backend, body)


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

    in_sandbox(backend, body)


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


# --- callbacks and inputs -----------------------------------------------------------------------------------------

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

    in_sandbox(backend, body)


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

    in_sandbox(backend, body)


def test_input_and_output_may_depend_on_each_other(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def give() -> AsyncIterator[bytes]:
            for number in range(5):
                yield b"%d\n" % number
                assert await answers.get() == b"%d\n" % number

        assert (await sandbox.exec("cat", input=give(), on_stdout=answers.put)).stdout == "0\n1\n2\n3\n4\n"

    in_sandbox(backend, body)


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

    in_sandbox(backend, body)


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

    in_sandbox(backend, body)


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

    in_sandbox(backend, body)


# --- cancellation ---------------------------------------------------------------------------------------------------

TREE = "(setsid sleep 1000 &); trap : TERM INT; echo up; sleep 1000; sleep 1000"


def test_a_cancelled_command_is_dead_with_all_it_has_started(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        up = asyncio.Event()

        async def see(_: bytes) -> None:
            up.set()

        task = asyncio.create_task(sandbox.shell(TREE, on_stdout=see))
        await up.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await sandbox.processes() == ()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sandbox.exec("sleep", "1000")
        assert await sandbox.processes() == ()

    in_sandbox(backend, body)


def test_a_cancelled_callback_cancels_its_call(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        async def see(_: bytes) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        with pytest.raises(asyncio.CancelledError):
            await sandbox.shell("echo; sleep 1000", on_stdout=see)
        assert await sandbox.processes() == ()

    in_sandbox(backend, body)


def test_a_cancelled_block_leaves_no_box(backend: str, host: Host) -> None:
    ids: list[str] = []

    async def use() -> None:
        async with aio.open_sandbox(backend=backend) as sandbox:
            ids.append(sandbox.id)
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(use())
        while not ids:  # noqa: ASYNC110 - it may as well fail
            await asyncio.sleep(0.01)
        assert host.members(ids[0])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not host.members(ids[0])

    asyncio.run(main())
    assert host.until(lambda: not host.cgroups(ids[0]))


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.03, 0.1, 0.3])
def test_a_cancellation_while_it_starts_leaves_nothing(backend: str, delay: float) -> None:
    """At whatever moment it comes; the fixture that looks for what is left has the say."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await aio.run("sleep", "1000", backend=backend)

    asyncio.run(main())


def test_a_cancelled_spawn_leaves_no_command(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):
            task = asyncio.create_task(sandbox.spawn("sleep", "1000"))
            await asyncio.sleep(delay)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await (await task).kill()
            assert await sandbox.processes() == ()

    in_sandbox(backend, body)


def test_nothing_is_lost_to_cancelled_receives(backend: str) -> None:
    """At any moment: what had just come is given to the next call."""

    async def body(sandbox: aio.Sandbox) -> None:
        script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done"
        async with await sandbox.spawn("sh", "-c", script) as process:
            assert b"".join(await all_pieces(process.stdout.receive_some)) == lines(300)
        async with await sandbox.spawn("sh", "-c", script) as process:

            async def receive() -> Output | None:
                return await anext(process, None)

            events = await all_pieces(receive)
            assert b"".join(event.data for event in events) == lines(300)

    in_sandbox(backend, body)


async def all_pieces(receive: Callable[[], Awaitable[Any]]) -> list[Any]:
    pieces: list[Any] = []
    delay = 0.0
    while True:
        delay = (delay + 0.00017) % 0.002
        try:
            async with asyncio.timeout(delay):
                piece = await receive()
        except TimeoutError:
            continue
        if not piece:
            return pieces
        pieces.append(piece)


def lines(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(count))


# --- errors ------------------------------------------------------------------------------------------------------


def test_errors_are_the_cores(backend: str) -> None:
    async def body(sandbox: aio.Sandbox) -> None:
        with pytest.raises(kavach.ExecTimeout) as caught:
            await sandbox.shell("echo a; sleep 1000", timeout=0.3, check=True)
        assert caught.value.result.stdout == "a\n"
        with pytest.raises(kavach.StartFailed):
            await sandbox.spawn("/no/such/program")

    in_sandbox(backend, body)


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
