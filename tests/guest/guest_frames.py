"""The other end of the pipes: an agent that says what a test tells it to, in frames that the tests build themselves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import trio
import trio.testing
from kavach_guest import protocol
from kavach_guest.channel import GuestChannel
from kavach_guest.session import AgentSession

from kavach_core.config import NOBODY
from kavach_core.types import ExecRequest, LimitEvents, Usage

# Written down from docs/reference/guest-protocol.md, not taken from the code under test.
HEADER = struct.Struct("<IBBHI")
HELLO, STARTED, DATA, EOF, CREDIT, EXITED, FAILED, KILLED, PONG, END = range(0x81, 0x8B)
ERROR = 0x8F
HANG_SECONDS = 10
GREETING = HEADER.pack(8, HELLO, 0, 0, 0) + b"KVCH\x01\x00\x00\x00"


KIB = 1024
REQUEST = ExecRequest(argv=(b"x",), env=(), cwd=b"/", user=NOBODY)
WITH_STDIN = ExecRequest(argv=(b"x",), env=(), cwd=b"/", user=NOBODY, stdin=True)


def raw(kind: int, payload: bytes = b"", *, stream: int = 0, channel: int = 1, reserved: int = 0) -> bytes:
    """Build a frame by hand, for channel 1 unless said otherwise."""
    return struct.pack("<IBBHI", len(payload), kind, stream, reserved, channel) + payload


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def hello(magic: bytes = b"KVCH", major: int = 1, minor: int = 0) -> bytes:
    return raw(HELLO, magic + struct.pack("<HH", major, minor), channel=0)


def data(payload: bytes, stream: int = 1, channel: int = 1) -> bytes:
    return raw(DATA, payload, stream=stream, channel=channel)


def exited(code: int = 0, kind: int = 0, channel: int = 1) -> bytes:
    return raw(EXITED, struct.pack("<IIQQQ", kind, code, 1_500_000, 250_000, 4096), channel=channel)


def started(pid: int = 7, channel: int = 1) -> bytes:
    return raw(STARTED, u32(pid), channel=channel)


def eofs(channel: int = 1) -> bytes:
    return raw(EOF, stream=1, channel=channel) + raw(EOF, stream=2, channel=channel)


def end(channel: int = 1) -> bytes:
    return raw(END, channel=channel)


class Box:
    """What holds the agent: here it only notes that it was ended."""

    def __init__(self) -> None:
        self.ends = 0

    async def usage(self) -> Usage:
        """Return nothing known."""
        return Usage()

    def limit_events(self) -> LimitEvents:
        """Return nothing known."""
        return LimitEvents()

    async def pause(self) -> None:
        """Go on: nothing here can be frozen."""

    async def resume(self) -> None:
        """Go on."""

    async def end(self) -> None:
        """Note it."""
        self.ends += 1


class Sent(NamedTuple):
    """A frame that the host sent."""

    type: int
    stream: int
    channel: int
    payload: bytes


class Agent:
    """The agent's side: raw bytes to the host, frames from it."""

    def __init__(self, send_fd: int, receive_fd: int) -> None:
        self._out = trio.lowlevel.FdStream(send_fd)
        self._in = trio.lowlevel.FdStream(receive_fd)
        self._receive_fd = receive_fd
        self._buffer = b""

    async def say(self, *frames: bytes) -> None:
        """Write bytes to the host."""
        await self._out.send_all(b"".join(frames))

    async def hear(self) -> Sent:
        """Return the next frame of the host; EOFError when there is none any more."""
        header = await self._exactly(HEADER.size)
        length, kind, stream, reserved, channel = HEADER.unpack(header)
        assert reserved == 0
        assert length <= (1_048_576 if kind == 2 else 65_536)
        return Sent(kind, stream, channel, await self._exactly(length))

    async def hear_until(self, kind: int) -> Sent:
        """Return the next frame of a type, passing over others."""
        while (frame := await self.hear()).type != kind:
            pass
        return frame

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            more = await self._in.receive_some(65_536)
            if not more:
                raise EOFError
            self._buffer += more
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def skim(self, size: int) -> None:
        """Take up to ``size`` bytes of what is in the pipe, without waiting; ``hear`` finds them later."""
        with contextlib.suppress(BlockingIOError):
            self._buffer += os.read(self._receive_fd, size)

    async def hang_up(self) -> None:
        """End the stream to the host."""
        await self._out.aclose()

    async def stop_listening(self) -> None:
        """Close the pipe that the host writes to."""
        await self._in.aclose()

    async def aclose(self) -> None:
        """Close both."""
        await self._out.aclose()
        await self._in.aclose()


@contextlib.asynccontextmanager
async def connect(*, greet: bool = True) -> AsyncIterator[tuple[GuestChannel, Agent]]:
    """Give a channel and the agent at its other end; with ``greet``, after the exchange of HELLO.

    A hang is a failure of the test, not of the whole run.
    """
    from_agent, to_host = os.pipe()
    from_host, to_agent = os.pipe()
    # Room for all that a test says before the host reads; the other direction keeps the usual 64 KiB.
    fcntl.fcntl(to_host, fcntl.F_SETPIPE_SZ, 1024 * 1024)
    channel = GuestChannel(receive_fd=from_agent, send_fd=to_agent, sandbox_id="00ff")
    agent = Agent(to_host, from_host)
    try:
        with trio.fail_after(HANG_SECONDS):
            if greet:
                await agent.say(GREETING)
                await channel.open()
                await agent.hear_until(0x01)
            yield channel, agent
    finally:
        channel.close()
        await agent.aclose()


@contextlib.asynccontextmanager
async def running(request: ExecRequest = REQUEST) -> AsyncIterator[tuple[Any, Agent, Box]]:
    """Give a started command, its agent, and its box."""
    async with connect() as (channel, agent):
        box = Box()
        session = AgentSession(channel, box)
        await agent.say(started())
        process = await session.start(request)
        await agent.hear_until(0x02)
        yield process, agent, box


async def fill(channel: GuestChannel) -> int:
    """Write until the pipe to the agent is full; return how many frames were queued."""
    frame = protocol.encode(protocol.PING, payload=b"f" * 52)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: channel.send(*[frame] * 2048))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    return 2048
