"""Every frame that may not come when it comes: the agent has broken the protocol, and the box is ended."""

from __future__ import annotations

import struct

import pytest
import trio
import trio.testing
from guest_frames import (
    CREDIT,
    DATA,
    EOF,
    ERROR,
    FAILED,
    KIB,
    KILLED,
    PONG,
    REQUEST,
    STARTED,
    WITH_STDIN,
    Box,
    connect,
    data,
    end,
    eofs,
    exited,
    hello,
    raw,
    started,
    u32,
)
from kavach_guest import protocol
from kavach_guest.session import AgentSession

from kavach_core.errors import GuestProtocolError

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


# --- every illegal order -----------------------------------------------------------------------

ILLEGAL = {
    "data before started": [data(b"x")],
    "end of output before started": [raw(EOF, stream=1)],
    "credit before started": [raw(CREDIT, u32(1))],
    "exited before started": [exited()],
    "end before started": [end()],
    "killed unasked": [started(), raw(KILLED, u32(0))],
    "killed unasked before started": [raw(KILLED, u32(0))],
    "started twice": [started(), started()],
    "started after failed": [raw(FAILED, u32(5, 2)), started()],
    "failed after started": [started(), raw(FAILED, u32(5, 2))],
    "failed twice": [raw(FAILED, u32(5, 2)), raw(FAILED, u32(5, 2))],
    "failed at no known stage": [raw(FAILED, u32(0, 2))],
    "data after failed": [raw(FAILED, u32(5, 2)), data(b"x")],
    "exited after failed": [raw(FAILED, u32(5, 2)), exited()],
    "data after its end": [started(), raw(EOF, stream=1), data(b"x")],
    "errors after their end": [started(), raw(EOF, stream=2), data(b"x", stream=2)],
    "two ends of output": [started(), raw(EOF, stream=1), raw(EOF, stream=1)],
    "data for standard input": [started(), data(b"x", stream=0)],
    "data for no stream": [started(), data(b"x", stream=3)],
    "no data": [started(), data(b"")],
    "too much data": [started(), data(bytes(65_537))],
    "exited twice": [started(), exited(), exited()],
    "exited with an impossible code": [started(), exited(256)],
    "exited by no signal": [started(), exited(0, kind=1)],
    "exited by signal 65": [started(), exited(65, kind=1)],
    "exited in a third way": [started(), exited(0, kind=2)],
    "end before exited": [started(), eofs(), end()],
    "end before the end of output": [started(), exited(), end()],
    "end before the end of errors": [started(), exited(), raw(EOF, stream=1), end()],
    "end twice": [started(), exited(), eofs(), end(), end()],
    "data after the end": [started(), exited(), eofs(), end(), data(b"x")],
    "a frame for an unknown channel": [started(channel=2)],
    "a frame for the last channel": [started(channel=2**32 - 1)],
    "no credit at all": [started(), raw(CREDIT, u32(0))],
    "credit above the bound": [started(), raw(CREDIT, u32(16_777_216 - 262_144 + 1))],
    "huge credit": [started(), raw(CREDIT, u32(2**32 - 1))],
    "credit above the bound in two steps": [started(), raw(CREDIT, u32(16_000_000)), raw(CREDIT, u32(600_000))],
    "credit for output": [started(), raw(CREDIT, u32(1), stream=1)],
    "a greeting": [hello()],
    "an answer to no ping": [raw(PONG, b"?", channel=0)],
    "an error": [raw(ERROR, b"out of memory", channel=0)],
    "an error that is no text": [raw(ERROR, b"\xff\x00", channel=0)],
    "an oversized error": [raw(ERROR, bytes(257), channel=0)],
    "channel 0": [raw(STARTED, u32(7), channel=0)],
    "a reserved field": [raw(STARTED, u32(7), reserved=1)],
    "a frame of the host": [raw(0x07)],
    "a long payload": [raw(STARTED, u32(7, 7))],
    "a short payload": [raw(STARTED, b"\7")],
    "a huge length": [struct.pack("<IBBHI", 2**32 - 1, DATA, 1, 0, 1)],
    "output beyond its credit": [started(), data(bytes(64 * KIB)) * 4, data(b"x")],
    "errors beyond their credit": [started(), data(bytes(64 * KIB), stream=2) * 4, data(b"x", stream=2)],
}


@pytest.mark.parametrize("frames", ILLEGAL.values(), ids=ILLEGAL)
async def test_each_illegal_order(frames: list[bytes]) -> None:
    async with connect() as (channel, agent), trio.open_nursery() as nursery:
        nursery.start_soon(agent.say, *frames)
        command = channel.open_command(lambda number: protocol.encode_start(number, WITH_STDIN))
        await channel.flush()
        with pytest.raises(GuestProtocolError) as caught:
            await channel.wait_for(lambda: False)
        assert caught.value.sandbox_id == "00ff"
        assert not channel.alive
        # And again, for whoever comes later; sends fail as well, they do not wait.
        with pytest.raises(GuestProtocolError):
            await channel.wait_for(lambda: False)
        with pytest.raises(GuestProtocolError):
            await channel.send(protocol.encode(protocol.KILL, command.number))
        nursery.cancel_scope.cancel()


async def test_a_violation_ends_the_box() -> None:
    """At once, and not when its session is closed: whoever holds that may be busy."""
    async with connect() as (channel, agent):
        ends: list[None] = []
        channel._on_violation = lambda: ends.append(None)
        session = AgentSession(channel, Box())
        await agent.say(started(), started())
        with pytest.raises(GuestProtocolError):
            await (await session.start(REQUEST)).wait()
        assert len(ends) == 1


async def test_an_agent_s_error_is_told_with_its_words() -> None:
    async with connect() as (channel, agent):
        await agent.say(raw(ERROR, "kein Speicher: ü\n\x1b[31m".encode(), channel=0))
        with pytest.raises(GuestProtocolError, match="kein Speicher: ü") as caught:
            await channel.wait_for(lambda: False)
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_frames_for_a_channel_that_was_never_opened() -> None:
    async with connect() as (channel, agent):
        await agent.say(started())
        with pytest.raises(GuestProtocolError, match="not open"):
            await channel.wait_for(lambda: False)


async def test_a_violation_does_not_take_back_what_came_before_it() -> None:
    async with connect() as (channel, agent):
        session = AgentSession(channel, Box())
        await agent.say(started(), data(b"true"), exited(3), raw(0x70))
        process = await session.start(REQUEST)
        assert await process.stdout.receive_some() == b"true"
        assert (await process.wait()).exit_code == 3
        with pytest.raises(GuestProtocolError):
            await process.stdout.receive_some()
