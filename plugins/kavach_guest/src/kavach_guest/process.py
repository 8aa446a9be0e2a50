"""One command in a box, seen from the host: a GuestProcess over a channel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from kavach_core.abc import GuestEvent
from kavach_core.errors import SandboxGone
from kavach_core.types import GuestExit, Output, OutputComplete, Stream, TerminalSize
from kavach_guest import protocol
from kavach_guest.channel import GuestChannel, ignore_gone
from kavach_guest.command import Command

# The agent itself gives up after 400 ms; what is left until half a second is for the way there and back.
KILL_DEADLINE_SECONDS: Final = 0.5
_HOUSEKEEPING_SECONDS: Final = 1.0


class OutputStream(trio.abc.ReceiveStream):
    """Standard output or standard error of a command. Not reading it stops the command, and nothing else."""

    def __init__(self, channel: GuestChannel, command: Command, stream: int) -> None:
        self._channel = channel
        self._command = command
        self._number = stream
        self._stream = command.outputs[stream]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes, at least one, or b"" at the end.

        Cancellation: nothing is lost.

        Raises:
            ValueError: when ``max_bytes`` is less than 1.
            SandboxGone: when the box ended before the stream did.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        stream = self._stream
        await self.grant()
        await self._channel.wait_for(lambda: bool(stream.chunks) or stream.ended or self._command.closing)
        return stream.take(max_bytes) if stream.chunks else b""

    async def grant(self) -> None:
        """Grant the credit that is due for what was taken; done before more is taken, so a cancel loses nothing."""
        amount = self._stream.due()
        if amount and not self._command.ended:
            self._channel.queue(protocol.encode_credit(self._command.number, self._number, amount))
            with ignore_gone():  # what has come can still be read, and then it is told that no more will
                await self._channel.flush()

    def take(self) -> bytes:
        """Take what ``has_data`` has announced."""
        return self._stream.take()

    @property
    def has_data(self) -> bool:
        """True when ``receive_some`` would not wait."""
        return bool(self._stream.chunks)

    async def aclose(self) -> None:
        """Do nothing: the streams of a command end together, by ``AgentProcess.aclose``."""
        await trio.lowlevel.checkpoint()


class InputStream(trio.abc.SendStream):
    """Standard input of a command. Sending waits while the command does not read."""

    def __init__(self, channel: GuestChannel, command: Command) -> None:
        self._channel = channel
        self._command = command
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Cancelled, some of them have been sent.

        Raises:
            trio.ClosedResourceError: after ``aclose``.
            trio.BrokenResourceError: when the command has ended.
            SandboxGone: when the box has ended.
        """
        if self._closed:
            raise trio.ClosedResourceError
        rest = memoryview(data).cast("B")  # credit is in bytes, whatever the elements are
        while rest:
            await self.wait_send_all_might_not_block()
            if self._command.exit is not None:
                raise trio.BrokenResourceError("the command has ended")
            size = min(len(rest), self._command.stdin_credit, protocol.MAX_PAYLOAD)
            self._command.stdin_credit -= size
            self._channel.bytes_in += size
            await self._channel.send(protocol.encode(protocol.DATA, self._command.number, bytes(rest[:size])))
            rest = rest[size:]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the command may be sent more, or has ended."""
        command = self._command
        await self._channel.wait_for(lambda: command.stdin_credit > 0 or command.exit is not None)

    async def aclose(self) -> None:
        """End the command's standard input. May be called again."""
        if self._closed:
            return
        self._closed = True
        if not self._command.ended:
            with ignore_gone():
                await self._channel.send(protocol.encode(protocol.EOF, self._command.number))


class AgentProcess:
    """A GuestProcess of an agent. See ``kavach_core.abc.GuestProcess``."""

    def __init__(  # noqa: PLR0913 - what a command needs of its box
        self,
        channel: GuestChannel,
        command: Command,
        *,
        stdin: bool,
        terminal: bool,
        end_box: Callable[[], Awaitable[None]],
        awake: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._channel = channel
        self._command = command
        self._has_terminal = terminal
        self._end_box = end_box
        self._awake = awake
        self.pid = command.pid or 0
        self.stdin: trio.abc.SendStream | None = InputStream(channel, command) if stdin else None
        self._outputs = {
            Stream.STDOUT: OutputStream(channel, command, protocol.STDOUT),
            Stream.STDERR: OutputStream(channel, command, protocol.STDERR),
        }
        self.stdout: trio.abc.ReceiveStream = self._outputs[Stream.STDOUT]
        self.stderr: trio.abc.ReceiveStream = self._outputs[Stream.STDERR]
        self._exit_told = False
        self._complete_told = False

    @property
    def has_event(self) -> bool:
        """True when ``next_event`` would not wait."""
        command = self._command
        if (command.exit is not None) is not self._exit_told or any(
            output.has_data for output in self._outputs.values()
        ):
            return True
        return self._exit_told and (command.closing or self._has_completed or self._is_over)

    @property
    def _has_completed(self) -> bool:
        """True when ``OutputComplete`` is to be told."""
        return self._channel.tells_drained and self._command.complete and not self._complete_told

    @property
    def _is_over(self) -> bool:
        return all(output.ended for output in self._command.outputs.values())

    async def next_event(self) -> GuestEvent | None:
        """Return the next piece of output, the end of the first process, or what follows; None after all of it."""
        for output in self._outputs.values():
            await output.grant()
        await self._channel.wait_for(lambda: self.has_event)
        command = self._command
        if command.exit is not None and not self._exit_told:
            self._exit_told = True
            # As a rule all has come by then: who is told so at once need not ask once more.
            self._complete_told = self._is_over and not any(output.has_data for output in self._outputs.values())
            return self._guest_exit(command.exit, complete=self._complete_told)
        for stream, output in self._outputs.items():
            if output.has_data:
                return Output(stream, output.take())
        if self._has_completed:
            self._complete_told = True
            return OutputComplete()
        return None

    async def wait(self) -> GuestExit:
        """Wait for the end of the first process."""
        command = self._command
        await self._channel.wait_for(lambda: command.exit is not None)
        assert command.exit is not None  # noqa: S101 - what was just waited for
        return self._guest_exit(command.exit)

    def poll(self) -> GuestExit | None:
        """Return how the first process ended, or None while it runs."""
        command = self._command
        if command.exit is None:
            self._channel.poll()
        if command.exit is None:
            self._channel.raise_if_closed()
        return None if command.exit is None else self._guest_exit(command.exit)

    async def send_signal(self, signal: int) -> None:
        """Send a signal to the first process."""
        if self._command.exit is None:
            await self._channel.send(protocol.encode_signal(self._command.number, signal, group=False))

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its new size."""
        if self._has_terminal and not self._command.ended:
            await self._channel.send(protocol.encode_resize(self._command.number, size))

    async def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the command so far; once it has ended, what was last known."""
        command = self._command
        if not command.ended:
            command.cpu_asked += 1
            wanted = command.cpu_asked
            await self._channel.send(protocol.encode(protocol.CPU, command.number))
            await self._channel.wait_for(lambda: command.cpu_answered >= wanted or command.ended)
        return command.cpu_us / 1e6

    async def kill(self) -> None:
        """Kill every process of the command; end the whole box when that cannot be done in time."""
        if self._command.failure is None:
            async with self._awake():
                await self._kill()

    async def _kill(self) -> None:
        command = self._command
        kind = protocol.KILL
        if command.ended:  # those that it has left behind may still be there
            if not self._channel.tells_drained:
                return
            kind = protocol.KILL_REST
            self._channel.reopen(command)
        command.kills_sent += 1
        wanted = command.kills_sent
        with trio.move_on_after(KILL_DEADLINE_SECONDS) as scope:
            await self._channel.send(protocol.encode(kind, command.number))
            await self._channel.wait_for(lambda: command.kills_answered >= wanted or command.ended)
        if scope.cancelled_caught or (command.survivors and not command.ended):
            await self._end_box()
            raise SandboxGone("the command could not be killed in time, so the box was ended", stage="kill")

    async def aclose(self) -> None:
        """Take no more output: tell the agent to throw away what may still come."""
        command = self._command
        if command.ended or command.closing or not self._channel.alive:
            return
        command.closing = True
        for output in command.outputs.values():
            output.chunks.clear()
        self._channel.wake()
        with ignore_gone(), trio.move_on_after(_HOUSEKEEPING_SECONDS, shield=True):
            await self._channel.send(protocol.encode(protocol.CLOSE, command.number))

    def _guest_exit(self, exited: protocol.Exited, *, complete: bool = False) -> GuestExit:
        return GuestExit(
            exit_code=None if exited.by_signal else exited.code,
            signal=exited.code if exited.by_signal else None,
            cpu_user_seconds=exited.user_us / 1e6,
            cpu_system_seconds=exited.system_us / 1e6,
            max_rss_bytes=exited.max_rss_bytes,
            tells_complete=self._channel.tells_drained and not complete,
        )
