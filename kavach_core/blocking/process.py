"""A command that a thread holds while it runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

import trio

from kavach_core import process
from kavach_core.blocking.calls import call, finish, plain
from kavach_core.portal import Leftover, Mirror, Portal, glance
from kavach_core.types import Output

C = TypeVar("C", bound=trio.abc.AsyncResource)


class _Closable(Mirror[C]):
    def close(self) -> None:
        """Close it, as ``aclose`` of the core does. May be called again."""
        call(self._portal, self._core.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        finish(self._portal, self._core.aclose)


class SendStream(_Closable[trio.abc.SendStream]):
    """Standard input of a command. Sending waits while the command does not read."""

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Interrupted, some of them have been sent.

        Raises:
            trio.ClosedResourceError: after ``close``.
            trio.BrokenResourceError: when the command has ended.
            SandboxGone: when the box has ended.
        """
        call(self._portal, lambda: self._core.send_all(data))

    def wait_send_all_might_not_block(self) -> None:
        """Wait until the command may be sent more, or has ended."""
        call(self._portal, self._core.wait_send_all_might_not_block)


class ReceiveStream(_Closable[trio.abc.ReceiveStream]):
    """An output stream of a command. Iteration gives what comes, to its end."""

    def __init__(self, portal: Portal, core: trio.abc.ReceiveStream) -> None:
        super().__init__(portal, core)
        self._leftover = Leftover()

    def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes, at least one, or b"" at the end.

        Cancellation: nothing is lost.

        Raises:
            ValueError: when ``max_bytes`` is less than 1.
            SandboxGone: when the box ended before the stream did.
        """
        if self._leftover and (max_bytes is None or max_bytes > 0):
            return self._leftover.take(max_bytes)
        work = functools.partial(self._core.receive_some, max_bytes)
        return bytes(call(self._portal, work, undo=self._leftover.put))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = self.receive_some()
        if not data:
            raise StopIteration
        return data


class Process(Mirror[process.Process]):
    """A running command, made by ``Sandbox.spawn``; a context manager that kills it if it still runs.

    See ``kavach_core.process.Process``. Several threads may use it at once: one sends, one receives, one waits.

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
    close = plain(process.Process.aclose)

    def __iter__(self) -> Iterator[Output]:
        return self

    def __next__(self) -> Output:
        if self._kept:
            return self._kept.pop()
        event = call(self._portal, lambda: anext(self._core, None), undo=self._keep)
        if event is None:
            raise StopIteration
        return event

    async def _keep(self, event: Output | None) -> None:
        """Keep what has come just when the call was interrupted, for the next one."""
        if event is not None:
            self._kept.append(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finish(self._portal, lambda: self._core.__aexit__(kind, error, trace))
