"""Cancellation in asyncio, on real boxes: what was cancelled is dead, and nothing is left or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from boxes import in_asyncio

from kavach_core import aio
from kavach_core.types import Output

if TYPE_CHECKING:
    from tests.conftest import Host

pytestmark = pytest.mark.usefixtures("no_thread_left")

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

    in_asyncio(backend, body)


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

    in_asyncio(backend, body)


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

    in_asyncio(backend, body)


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

    in_asyncio(backend, body)


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
