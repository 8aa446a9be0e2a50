"""The sandbox as a task of asyncio holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from kavach_core import process, sandbox
from kavach_core.aio.asking import Asker
from kavach_core.aio.calls import call, plain
from kavach_core.aio.process import Process
from kavach_core.commands import CommandOptions, ExecOptions
from kavach_core.portal import SandboxView
from kavach_core.types import ExecResult

if TYPE_CHECKING:
    from kavach_core.aio.files import SandboxFiles


class Sandbox(SandboxView):
    """A live box: commands go in, results come out. Made by ``open_sandbox``; usable by several tasks at once."""

    @property
    def files(self) -> SandboxFiles:
        """The files of the box.

        Raises:
            UnsupportedPolicy: when the backend cannot work on files.
        """
        from kavach_core.aio.files import SandboxFiles  # noqa: PLC0415 - who needs no files need not wait for them

        return SandboxFiles(self._portal, self._core.files)

    async def exec(self, *argv: str, check: bool = False, **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a command to its end and return what it did.

        Args:
            argv: program and arguments; a program without a slash is looked up along PATH in the box.
            check: raise when the command does not succeed.
            options: see ``ExecOptions``; callbacks and pieces of the input are awaited in this event loop, in
                tasks of their own.

        Cancellation: CancelledError leaves when the command is killed with all it has started.

        Raises:
            KavachError: as ``exec`` of the core does; with ``check`` an ``ExecError``, with the result.
            WrongLoop: outside of asyncio, or after the block of the sandbox.
        """
        async with Asker(self._portal) as asker:
            given = asker.for_core(options)
            return await call(self._portal, lambda: self._core.exec(*argv, check=check, **given))

    async def shell(self, script: str, *, check: bool = False, **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a script with the box's ``/bin/sh``: the one place where a string is taken for a command line.

        Arguments, cancellation and errors are those of ``exec``.
        """
        async with Asker(self._portal) as asker:
            given = asker.for_core(options)
            return await call(self._portal, lambda: self._core.shell(script, check=check, **given))

    async def spawn(self, *argv: str, stdin: bool = False, **options: Unpack[CommandOptions]) -> Process:
        """Start a command and return it with its streams; the caller reads them, waits and kills.

        Args:
            argv: as in ``exec``.
            stdin: give it a standard input to send to, instead of ``/dev/null``.
            options: see ``CommandOptions``.

        Raises:
            KavachError: as ``spawn`` of the core does.
            WrongLoop: outside of asyncio, or after the block of the sandbox.
        """
        started = await call(self._portal, lambda: self._core.spawn(*argv, stdin=stdin, **options), undo=_discard)
        return Process(self._portal, started)

    processes = plain(sandbox.Sandbox.processes)
    ping = plain(sandbox.Sandbox.ping)
    pause = plain(sandbox.Sandbox.pause)
    resume = plain(sandbox.Sandbox.resume)
    usage = plain(sandbox.Sandbox.usage)
    aclose = plain(sandbox.Sandbox.aclose)


async def _discard(started: process.Process) -> None:
    """Kill a command that nobody holds."""
    await started.__aexit__(None, None, None)
