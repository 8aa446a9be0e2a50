"""A command that a task of asyncio holds while it runs."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self, TypeVar

import trio

from kavach_core import process
from kavach_core.aio.calls import call, finish, plain
from kavach_core.portal import Leftover, Mirror, Portal, glance
from kavach_core.types import Output

C = TypeVar("C", bound=trio.abc.AsyncResource)


class _Closable(Mirror[C]):
    async def aclose(self) -> None:
        """Close it. May be called again."""
        await call(self._portal, self._core.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish(self._portal, self._core.aclose)


class SendStream(_Closable[trio.abc.SendStream]):
    """Standard input of a command. Sending waits while the command does not read."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Cancelled, some of them have been sent.

        Raises:
            trio.ClosedResourceError: after ``aclose``.
            trio.BrokenResourceError: when the command has ended.
            SandboxGone: when the box has ended.
        """
        await call(self._portal, lambda: self._core.send_all(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the command may be sent more, or has ended."""
        await call(self._portal, self._core.wait_send_all_might_not_block)


class ReceiveStream(_Closable[trio.abc.ReceiveStream]):
    """An output stream of a command. Iteration gives what comes, to its end."""

    def __init__(self, portal: Portal, core: trio.abc.ReceiveStream) -> None:
        super().__init__(portal, core)
        self._leftover = Leftover()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes, at least one, or b"" at the end.

        Cancellation: nothing is lost.

        Raises:
            ValueError: when ``max_bytes`` is less than 1.
            SandboxGone: when the box ended before the stream did.
        """
        if self._leftover and (max_bytes is None or max_bytes > 0):
            return self._leftover.take(max_bytes)
        work = functools.partial(self._core.receive_some, max_bytes)
        return bytes(await call(self._portal, work, undo=self._leftover.put))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive_some()
        if not data:
            raise StopAsyncIteration
        return data


class Process(Mirror[process.Process]):
    """A running command, made by ``Sandbox.spawn``; an async context manager that kills it if it still runs.

    See ``kavach_core.process.Process``. Several tasks may use it at once: one sends, one receives, one waits.

    Attributes:
        argv: the command.
        exec_id: its number in the sandbox.
        pid: process id of its first process, in the box.
        stdin: stream to its standard input, or None when it was not asked for.
        stdout: stream of its standard output; of all that it writes when it has a terminal.
        stderr: stream of its standard error.
    """

    def __init__(self, portal: Portal, core: process.Process) -> None:
        super().__init__(portal, core)
        self.argv = core.argv
        self.exec_id = core.exec_id
        self.pid = core.pid
        self.stdin = SendStream(portal, core.stdin) if core.stdin is not None else None
        self.stdout = ReceiveStream(portal, core.stdout)
        self.stderr = ReceiveStream(portal, core.stderr)
        self._kept: list[Output] = []

    wait = plain(process.Process.wait)
    poll = glance(process.Process.poll)
    send_signal = plain(process.Process.send_signal)
    resize = plain(process.Process.resize)
    cpu_seconds = plain(process.Process.cpu_seconds)
    kill = plain(process.Process.kill)
    aclose = plain(process.Process.aclose)

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        if self._kept:
            return self._kept.pop()
        event = await call(self._portal, lambda: anext(self._core, None), undo=self._keep)
        if event is None:
            raise StopAsyncIteration
        return event

    async def _keep(self, event: Output | None) -> None:
        """Keep what has come just when the call was cancelled, for the next one."""
        if event is not None:
            self._kept.append(event)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await finish(self._portal, lambda: self._core.__aexit__(kind, error, trace))
