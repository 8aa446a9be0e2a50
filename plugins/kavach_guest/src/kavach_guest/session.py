"""A live box with an agent in it: the Session that every backend of the paved road returns."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from kavach_core.abc import GuestStartError
from kavach_core.types import ExecRequest, LimitEvents, ProcessInfo, StartFailure, Usage
from kavach_guest import protocol
from kavach_guest.channel import GuestChannel, ignore_gone
from kavach_guest.command import Command
from kavach_guest.process import KILL_DEADLINE_SECONDS, AgentProcess

if TYPE_CHECKING:
    from kavach_core.guest_files import GuestFiles


class Box(Protocol):
    """What holds the agent: the part of a session that a backend brings."""

    async def usage(self) -> Usage:
        """Return what the box has used so far."""

    def limit_events(self) -> LimitEvents:
        """Return how often the box has met its limits."""

    async def pause(self) -> None:
        """Freeze the box; SandboxGone when it has ended."""

    async def resume(self) -> None:
        """Thaw it."""

    async def end(self) -> None:
        """Kill the box and remove what belonged to it; shielded, bounded in time, callable again."""


class AgentSession:
    """A Session over a guest channel and a box. See ``kavach_core.abc.Session``."""

    def __init__(self, channel: GuestChannel, box: Box) -> None:
        self._channel = channel
        self._box = box
        self._paused = False
        self._awake_for = 0

    @functools.cached_property
    def files(self) -> GuestFiles:
        """The files of the box. See ``kavach_core.guest_files.GuestFiles``."""
        from kavach_guest.files import AgentFiles  # noqa: PLC0415 - who needs no files need not wait for them

        return AgentFiles(self.start_tool)

    async def start(self, request: ExecRequest) -> AgentProcess:
        """Start a command."""
        return await self._start(request, tool=False)

    async def start_tool(self, request: ExecRequest) -> AgentProcess:
        """Start the agent's own program as a command; errors and cancellation as for ``start``."""
        return await self._start(request, tool=True)

    async def _start(self, request: ExecRequest, *, tool: bool) -> AgentProcess:
        command = self._channel.open_command(lambda number: protocol.encode_start(number, request, tool=tool))
        try:
            await self._channel.flush()
            await self._channel.wait_for(lambda: command.pid is not None or command.failure is not None)
        except trio.Cancelled:
            await self._discard(command, request)
            raise
        if command.failure is not None:
            raise GuestStartError(StartFailure(stage=command.failure.stage, errno=command.failure.errno))
        return self._process(command, request)

    async def usage(self) -> Usage:
        """Return what the box has used so far."""
        return attrs.evolve(await self._box.usage(), bytes_in=self._channel.bytes_in, bytes_out=self._channel.bytes_out)

    def limit_events(self) -> LimitEvents:
        """Return how often the box has met its limits."""
        return self._box.limit_events()

    async def processes(self) -> tuple[ProcessInfo, ...]:
        """Return the processes of the box."""
        return await self._channel.list_processes()

    async def ping(self) -> None:
        """Wait for a sign of life of the agent."""
        await self._channel.ping()

    async def pause(self) -> None:
        """Freeze the box."""
        await self._box.pause()
        self._paused = True

    async def resume(self) -> None:
        """Thaw it."""
        await self._box.resume()
        self._paused = False

    @asynccontextmanager
    async def _awake(self) -> AsyncIterator[None]:
        """Thaw a paused box for as long as there is something to be killed in it, which a frozen agent cannot do."""
        if self._paused:
            await self._box.resume()
        self._awake_for += 1
        try:
            yield
        finally:
            self._awake_for -= 1
            if self._paused and not self._awake_for:
                with ignore_gone(), trio.CancelScope(shield=True):
                    await self._box.pause()

    async def aclose(self) -> None:
        """End the box."""
        self._channel.close()
        await self._box.end()

    def _process(self, command: Command, request: ExecRequest) -> AgentProcess:
        terminal = request.terminal is not None
        return AgentProcess(
            self._channel,
            command,
            stdin=request.stdin,
            terminal=terminal,
            end_box=self.aclose,
            awake=self._awake,
        )

    async def _discard(self, command: Command, request: ExecRequest) -> None:
        """Kill a command whose start was cancelled: nobody will ever hold it."""
        with ignore_gone(), trio.move_on_after(KILL_DEADLINE_SECONDS, shield=True) as scope:
            await self._channel.flush()
            await self._channel.wait_for(lambda: command.pid is not None or command.failure is not None)
            process = self._process(command, request)
            await process.kill()
            await process.aclose()
        if scope.cancelled_caught:
            await self.aclose()  # nobody could kill it any more once it starts
