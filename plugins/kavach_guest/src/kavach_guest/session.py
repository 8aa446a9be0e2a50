"""A live box with an agent in it: the Session that every backend of the paved road returns."""

from __future__ import annotations

from typing import Protocol

import trio

from kavach_core.abc import GuestStartError
from kavach_core.types import ExecRequest, StartFailure, Usage
from kavach_guest import protocol
from kavach_guest.channel import GuestChannel, ignore_gone
from kavach_guest.command import Command
from kavach_guest.process import KILL_DEADLINE_SECONDS, AgentProcess


class Box(Protocol):
    """What holds the agent: the part of a session that a backend brings."""

    async def usage(self) -> Usage:
        """Return what the box has used so far."""

    async def end(self) -> None:
        """Kill the box and remove what belonged to it; shielded, bounded in time, callable again."""


class AgentSession:
    """A Session over a guest channel and a box. See ``kavach_core.abc.Session``."""

    def __init__(self, channel: GuestChannel, box: Box) -> None:
        self._channel = channel
        self._box = box

    async def start(self, request: ExecRequest) -> AgentProcess:
        """Start a command."""
        command = self._channel.open_command(lambda number: protocol.encode_start(number, request))
        try:
            await self._channel.flush()
            await self._channel.wait_for(lambda: command.pid is not None or command.failure is not None)
        except trio.Cancelled:
            await self._discard(command)
            raise
        if command.failure is not None:
            raise GuestStartError(StartFailure(stage=command.failure.stage, errno=command.failure.errno))
        return self._process(command, stdin=request.stdin)

    async def usage(self) -> Usage:
        """Return what the box has used so far."""
        return await self._box.usage()

    async def aclose(self) -> None:
        """End the box."""
        self._channel.close()
        await self._box.end()

    def _process(self, command: Command, *, stdin: bool) -> AgentProcess:
        return AgentProcess(self._channel, command, stdin=stdin, end_box=self.aclose)

    async def _discard(self, command: Command) -> None:
        """Kill a command whose start was cancelled: nobody will ever hold it."""
        with ignore_gone(), trio.move_on_after(KILL_DEADLINE_SECONDS, shield=True) as scope:
            await self._channel.flush()
            await self._channel.wait_for(lambda: command.pid is not None or command.failure is not None)
            process = self._process(command, stdin=False)
            await process.kill()
            await process.aclose()
        if scope.cancelled_caught:
            await self.aclose()  # nobody could kill it any more once it starts
