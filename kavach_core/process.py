"""A command that the caller holds while it runs: its streams, its end, its signals."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

import trio

from kavach_core.abc import GuestProcess
from kavach_core.errors import ConfigError, SandboxGone
from kavach_core.types import GuestExit, Output, TerminalSize
from kavach_core.validation import check_signal, check_terminal_size

_END_SECONDS = 2.0


class Process:
    """A running command, made by ``Sandbox.spawn``; an async context manager that kills it if it still runs.

    Its output is taken in one of two ways: from ``stdout`` and ``stderr``, or by iterating over the process,
    which gives both as they come. Output that nobody takes stops the command, by flow control; it neither
    grows memory nor holds up other commands.

    Attributes:
        argv: the command.
        exec_id: its number in the sandbox.
        pid: process id of its first process, in the box.
        stdin: stream to its standard input, or None when it was not asked for.
        stdout: stream of its standard output; of all that it writes when it has a terminal.
        stderr: stream of its standard error.
    """

    def __init__(self, process: GuestProcess, *, argv: tuple[str, ...], exec_id: int) -> None:
        self._process = process
        self.argv = argv
        self.exec_id = exec_id
        self.pid = process.pid
        self.stdin: trio.abc.SendStream | None = process.stdin
        self.stdout: trio.abc.ReceiveStream = process.stdout
        self.stderr: trio.abc.ReceiveStream = process.stderr

    def __repr__(self) -> str:
        return f"<Process {self.exec_id} {self.argv[0]!r} pid={self.pid}>"

    async def wait(self) -> GuestExit:
        """Wait until the first process of the command has ended. May be called again and by several tasks.

        Output that nobody takes can keep the command from ending.

        Raises:
            SandboxGone: when the box ended before it.
        """
        return await self._process.wait()

    def poll(self) -> GuestExit | None:
        """Return how the command ended, or None while it runs. Does not wait.

        Raises:
            SandboxGone: when the box ended before it.
        """
        return self._process.poll()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        """Return the next piece of output of either stream. Ends when both have ended.

        Raises:
            SandboxGone: when the box ended before they did.
        """
        while True:
            event = await self._process.next_event()
            if event is None:
                raise StopAsyncIteration
            if isinstance(event, Output):
                return event

    async def send_signal(self, signal: int) -> None:
        """Send a signal to the first process of the command; nothing happens when that has ended.

        Raises:
            ConfigError: when it is none: 0, which asks whether a process is there, is not sent; see ``poll``.
            SandboxGone: when the box has ended.
        """
        problems = list(check_signal("signal", signal))
        if problems:
            raise ConfigError(problems)
        await self._process.send_signal(signal)

    async def resize(self, *, rows: int, columns: int) -> None:
        """Give the command's terminal another size; nothing happens when it has none, or the command has ended.

        Raises:
            ConfigError: when no terminal can have this size.
            SandboxGone: when the box has ended.
        """
        size = TerminalSize(rows=rows, columns=columns)
        problems = list(check_terminal_size(size))
        if problems:
            raise ConfigError(problems)
        await self._process.resize(size)

    async def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the command, but for what had ended before this was first called.

        Raises:
            SandboxGone: when the box has ended.
        """
        return await self._process.cpu_seconds()

    async def kill(self) -> None:
        """Kill every process of the command, wherever it has moved, and return when none is alive: within 0.5 s.

        Raises:
            SandboxGone: when that could not be done and the whole box was ended instead.
        """
        await self._process.kill()

    async def aclose(self) -> None:
        """Take no more output. The command runs on, and so do processes that it has left behind."""
        await self._process.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the command with all it has started, if it still runs, and let go of it."""
        with trio.move_on_after(_END_SECONDS, shield=True):
            try:
                await self._end()
            finally:
                await self._process.aclose()

    async def _end(self) -> None:
        with contextlib.suppress(SandboxGone):  # and the command with it
            if self._process.poll() is None:
                await self._process.kill()
