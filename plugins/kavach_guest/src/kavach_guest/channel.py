"""The host's end of the guest protocol, in trio: many commands over one pair of pipes.

There is no background task. Whoever waits for something reads for everybody: the first waiter leads (reads
frames and hands them out), the others follow; when the leader has what it wanted, it passes the lead on. So a
session needs no nursery, nothing runs when nobody waits, and an exception cannot appear from nowhere. Writing
works likewise: frames are queued whole, and whoever flushes writes for all, so a cancelled call never leaves
half a frame on the wire.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from kavach_core.errors import GuestProtocolError, SandboxError, SandboxGone
from kavach_core.printable import printable
from kavach_core.types import ProcessInfo
from kavach_guest import protocol
from kavach_guest.command import Command, apply
from kavach_guest.listing import Listing

_READ_BYTES: Final = 262_144
_PIPE_BYTES: Final = 1_048_576


class _Waiter:
    __slots__ = ("event", "ready")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.ready = ready
        self.event = trio.Event()


class GuestChannel:
    """Frames to and from one agent, and the state of every open channel.

    Args:
        receive_fd: the pipe from the agent; owned by this object from now on, as the next one.
        send_fd: the pipe to the agent.
        sandbox_id: for errors.
        on_violation: called when the agent has broken the protocol: ends the box at once.

    Attributes:
        bytes_in: bytes of input sent to commands.
        bytes_out: bytes of output that came from them.
    """

    def __init__(
        self, *, receive_fd: int, send_fd: int, sandbox_id: str, on_violation: Callable[[], None] | None = None
    ) -> None:
        for descriptor in (receive_fd, send_fd):
            os.set_blocking(descriptor, False)
            _enlarge(descriptor)
        self._receive_fd = receive_fd
        self._send_fd = send_fd
        self._sandbox_id = sandbox_id
        self._on_violation = on_violation
        self._parser = protocol.FrameParser()
        # Kept from read to read: making so large an object anew costs more than all else about a small frame.
        self._incoming = memoryview(bytearray(_READ_BYTES))
        self._outgoing: deque[memoryview] = deque()
        self._flush_lock = trio.Lock()
        self.bytes_in = 0
        self.bytes_out = 0
        self._listing: Listing | None = None
        self._pings = 0
        self._pongs = 0
        self._commands: dict[int, Command] = {}
        self._last_number = 0
        self._waiters: dict[_Waiter, None] = {}
        self._led = False
        self._greeted = False
        self._minor = 0
        self._closed = False
        self._violation: str | None = None

    async def open(self) -> None:
        """Exchange HELLO.

        Raises:
            SandboxGone: when the agent ends before it has greeted.
            GuestProtocolError: when it is no agent, or speaks another major version.
        """
        await self.send(protocol.encode_hello())
        await self.wait_for(lambda: self._greeted)

    def go_on(self, parser: protocol.FrameParser, command: Command, *, minor: int) -> None:
        """Take over from somebody who has greeted the agent and opened one channel, in place of ``open``.

        Args:
            parser: what has read until now, with what it holds of the next frame.
            command: the channel.
            minor: version that the agent speaks.
        """
        self._minor = minor
        self._parser = parser
        self._greeted = True
        self._commands[command.number] = command
        self._last_number = command.number

    @property
    def tells_drained(self) -> bool:
        """True when the agent has the frames DRAINED and KILL_REST."""
        return self._minor >= protocol.MINOR_OF_DRAINED

    @property
    def alive(self) -> bool:
        """False once the agent has ended, erred, or been closed."""
        return not self._closed

    def open_command(self, start: Callable[[int], bytes]) -> Command:
        """Open the next channel and queue the START frame that ``start`` makes for its number."""
        number = self._last_number + 1
        self.queue(start(number))
        self._last_number = number
        command = self._commands[number] = Command(number)
        return command

    def reopen(self, command: Command) -> None:
        """Take frames once more for a channel that has ended; the agent ends it again."""
        command.ended = False
        self._commands[command.number] = command

    async def list_processes(self) -> tuple[ProcessInfo, ...]:
        """Ask the agent for the processes of the box. One listing at a time: others wait for their turn.

        Cancellation: the next listing waits for what is still told of this one.

        Raises:
            SandboxGone: when the agent has ended.
        """
        await self.wait_for(lambda: self._listing is None)
        listing = self._listing = Listing()
        await self.send(protocol.encode(protocol.PROCESSES))
        await self.wait_for(lambda: listing.complete)
        return listing.processes

    async def ping(self) -> None:
        """Wait until the agent has answered.

        Raises:
            SandboxGone: when it has ended.
        """
        self._pings += 1
        wanted = self._pings
        await self.send(protocol.encode(protocol.PING))
        await self.wait_for(lambda: self._pongs >= wanted)

    def poll(self) -> None:
        """Take what has come from the agent, without waiting for more."""
        while not self._led and not self._closed and self._read_some():
            pass

    async def send(self, *frames: bytes) -> None:
        """Queue whole frames and write until they are gone.

        Cancellation: they stay queued, and the next sender writes them.

        Raises:
            SandboxGone: when the agent has ended.
        """
        self.queue(*frames)
        await self.flush()

    def queue(self, *frames: bytes) -> None:
        """Queue whole frames without writing."""
        self._outgoing.extend(memoryview(frame) for frame in frames)

    async def flush(self) -> None:
        """Write what is queued. Waits, and takes its turn, only when the pipe is full."""
        self.raise_if_closed()
        if not self._flush_lock.locked() and self._write_all():
            return
        async with self._flush_lock:
            while not self._write_all():
                await self._wait(trio.lowlevel.wait_writable, self._send_fd)

    def _write_all(self) -> bool:
        """Write as much as the pipe takes; False when something is left."""
        while self._outgoing and self._write_some():
            self.raise_if_closed()
        return not self._outgoing

    def _write_some(self) -> bool:
        """Write as much as the pipe takes of the first frame; False when it is full."""
        frame = self._outgoing[0]
        try:
            written = os.write(self._send_fd, frame)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._end()
            return True
        if written == len(frame):
            self._outgoing.popleft()
        else:
            self._outgoing[0] = frame[written:]
        return True

    async def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready()``, reading frames for everybody meanwhile.

        Raises:
            SandboxGone: when the agent ends first.
            GuestProtocolError: when the agent breaks the protocol.
        """
        while not ready():
            self.raise_if_closed()
            if self._led:
                await self._follow(ready)
            else:
                await self._lead(ready)

    async def _lead(self, ready: Callable[[], bool]) -> None:
        self._led = True
        try:
            while not self._closed and not ready():
                await self._receive()
        finally:
            self._led = False
            self._pass_the_lead()

    async def _follow(self, ready: Callable[[], bool]) -> None:
        waiter = _Waiter(ready)
        self._waiters[waiter] = None
        try:
            await waiter.event.wait()
        finally:
            del self._waiters[waiter]
            # A follower that is cancelled just as the lead reaches it must hand it on, or nobody reads any more.
            if not self._led:
                self._pass_the_lead()

    def _pass_the_lead(self) -> None:
        for waiter in self._waiters:
            if not waiter.event.is_set():
                waiter.event.set()
                return

    async def _receive(self) -> None:
        if self._outgoing and not self._flush_lock.locked() and not self._write_all():
            await self._wait_while_flushing()
        else:
            await self._wait(trio.lowlevel.wait_readable, self._receive_fd)
        self.raise_if_closed()
        self._read_some()

    def _read_some(self) -> bool:
        """Read once, hand out the frames, and wake whom they concern; False when nothing has come, or the end."""
        try:
            size = os.readv(self._receive_fd, (self._incoming,))
        except BlockingIOError:
            return False
        if not size:
            self._end()
            return False
        try:
            for frame in self._parser.feed(self._incoming[:size]):
                self._dispatch(frame)
        except protocol.ProtocolViolation as violation:
            self._violation = f"the agent broke the protocol: {violation}"
            self._end()
            if self._on_violation is not None:
                self._on_violation()
        for waiter in self._waiters:
            if waiter.ready():
                waiter.event.set()
        return True

    def _dispatch(self, frame: protocol.Frame) -> None:
        if not self._greeted:
            self._greet(frame)
        elif frame.type == protocol.GUEST_ERROR:
            raise protocol.ProtocolViolation(f"it reports {printable(frame.payload)!r}")
        elif frame.type in (protocol.GUEST_PROCESS, protocol.GUEST_LISTED) and self._listing is not None:
            self._listing.apply(frame)
            if self._listing.complete:
                self._listing = None
        elif frame.type == protocol.GUEST_PONG and self._pongs < self._pings:
            self._pongs += 1
        elif not frame.channel:
            raise protocol.ProtocolViolation("an answer that nobody asked for")
        else:
            command = self._commands.get(frame.channel)
            if command is None:
                raise protocol.ProtocolViolation(f"a frame for channel {frame.channel}, which is not open")
            apply(frame, command)
            if frame.type == protocol.GUEST_DATA:
                self.bytes_out += len(frame.payload)
            if command.ended:
                del self._commands[command.number]

    def _greet(self, frame: protocol.Frame) -> None:
        if frame.type != protocol.GUEST_HELLO:
            raise protocol.ProtocolViolation("its first frame is not HELLO")
        hello = protocol.decode_hello(frame.payload)
        if hello.major != protocol.MAJOR:
            raise protocol.ProtocolViolation(f"it speaks version {hello.major}, not {protocol.MAJOR}")
        self._minor = hello.minor
        self._greeted = True

    async def _wait(self, wait: Callable[[int], Awaitable[None]], descriptor: int) -> None:
        """Wait for a pipe, or to be woken.

        Raises:
            SandboxGone: when the channel is closed meanwhile, by us or for what the agent has done.
        """
        try:
            await wait(descriptor)
        except trio.ClosedResourceError:
            self.raise_if_closed()

    async def _wait_while_flushing(self) -> None:
        """Wait for something to read, and write meanwhile what a sender that was cancelled has left in the queue."""

        async def flush() -> None:
            with ignore_gone():  # who waits to read learns it, too
                await self.flush()

        failure: SandboxError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            try:
                await self._wait(trio.lowlevel.wait_readable, self._receive_fd)
            except SandboxError as error:
                failure = error  # raised below: the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _end(self) -> None:
        """Let everybody know that nothing will come any more, and nothing goes."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._send_fd)
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again at what they wait for."""
        if self._receive_fd >= 0:
            trio.lowlevel.notify_closing(self._receive_fd)  # cheaper for the leader than a scope each time to cancel
        for waiter in self._waiters:
            waiter.event.set()

    def raise_if_closed(self) -> None:
        """Say that the box has ended, if it has.

        Raises:
            SandboxGone: when the agent has ended.
            GuestProtocolError: when it has broken the protocol.
        """
        # Each who waits gets an error of his own: it comes to hold the result of his command.
        if self._violation is not None:
            raise GuestProtocolError(self._violation, sandbox_id=self._sandbox_id, stage="channel")
        if self._closed:
            raise SandboxGone("the box has ended", sandbox_id=self._sandbox_id, stage="channel")

    def close(self) -> None:
        """Close both pipes: the agent ends the box, and waiters get SandboxGone. May be called again."""
        if self._receive_fd < 0:
            return
        self._end()
        for fd in (self._send_fd, self._receive_fd):
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
        self._send_fd = self._receive_fd = -1
        self._outgoing.clear()


def _enlarge(pipe: int) -> None:
    """Let a pipe hold more, so that each side is woken less often; without the right to it, it stays as it is."""
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def ignore_gone() -> contextlib.AbstractContextManager[None]:
    """Suppress the error of a box that has ended, for clean-up with nothing left to do then."""
    return contextlib.suppress(SandboxGone, GuestProtocolError)
