"""The channel against an agent that does what no agent may: it ends with one of two errors, and never hangs.

The agent here is a task of the test that writes frames of its own making into the pipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from guest_frames import (
    ERROR,
    HELLO,
    PONG,
    REQUEST,
    connect,
    data,
    exited,
    hello,
    raw,
    started,
)
from kavach_guest import protocol
from kavach_guest.channel import GuestChannel

from kavach_core.errors import GuestProtocolError, SandboxGone

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


# --- greeting ----------------------------------------------------------------------------------


async def test_each_side_greets_first_without_waiting() -> None:
    async with connect(greet=False) as (channel, agent), trio.open_nursery() as nursery:
        nursery.start_soon(channel.open)
        assert await agent.hear() == (0x01, 0, 0, b"KVCH\1\0\2\0")
        await agent.say(hello())
    async with connect(greet=False) as (channel, agent):
        await agent.say(hello(minor=7))
        await channel.open()
        assert channel.alive


@pytest.mark.parametrize(
    "greeting",
    [
        hello(magic=b"HTTP"),
        hello(major=0),
        hello(major=2),
        hello(major=65535),
        raw(HELLO, b"KVCH\1\0\0\0", channel=1),
        raw(HELLO, b"KVCH\1\0\0\0", channel=0, stream=1),
        raw(HELLO, b"KVCH\1\0\0\0", channel=0, reserved=1),
        raw(HELLO, b"KVCH\1\0", channel=0),
        raw(0x01, b"KVCH\1\0\0\0", channel=0),
        started(),
        raw(PONG, channel=0),
        raw(ERROR, b"no", channel=0),
        hello() + hello(),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"runc run failed: no such file or directory\n",
        bytes(12),
        b"\xff" * 100,
    ],
)
async def test_a_wrong_greeting(greeting: bytes) -> None:
    async with connect(greet=False) as (channel, agent):
        await agent.say(greeting)
        with pytest.raises(GuestProtocolError) as caught:
            await channel.open()
            await channel.wait_for(lambda: False)
        assert (caught.value.sandbox_id, caught.value.stage) == ("00ff", "channel")
        assert not channel.alive


@pytest.mark.parametrize("said", [b"", hello()[:5], hello()[:-1]])
async def test_an_agent_that_dies_before_it_has_greeted(said: bytes) -> None:
    async with connect(greet=False) as (channel, agent):
        await agent.say(said)
        await agent.hang_up()
        with pytest.raises(SandboxGone) as caught:
            await channel.open()
        assert (caught.value.sandbox_id, caught.value.stage) == ("00ff", "channel")


# --- the end of the stream ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\4",
        started()[:11],
        started()[:12],
        started()[:-1],
        started(),
        started() + data(b"x" * 100)[:-50],
        started() + exited()[:20],
    ],
)
async def test_the_stream_ends_anywhere(said: bytes) -> None:
    """The box was killed, or ran out of memory: it has gone, which is no breach of the protocol."""
    async with connect() as (channel, agent):
        channel.open_command(lambda number: protocol.encode_start(number, REQUEST))
        await channel.flush()
        await agent.say(said)
        await agent.hang_up()
        for _ in range(2):
            with pytest.raises(SandboxGone):
                await channel.wait_for(lambda: False)
        assert not channel.alive


async def test_the_agent_stops_reading() -> None:
    async with connect() as (channel, agent):
        await agent.stop_listening()
        for _ in range(2):
            with pytest.raises(SandboxGone):
                await channel.send(protocol.encode(protocol.KILL, 1))
        with pytest.raises(SandboxGone):
            await channel.wait_for(lambda: False)


async def test_everybody_learns_of_the_end() -> None:
    failures = []

    async def wait(channel: GuestChannel) -> None:
        try:
            await channel.wait_for(lambda: False)
        except SandboxGone:
            failures.append(1)

    async with connect() as (channel, agent):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(wait, channel)
            await trio.testing.wait_all_tasks_blocked()
            await agent.hang_up()
        assert len(failures) == 20


async def test_everybody_learns_of_a_violation() -> None:
    failures = []

    async def wait(channel: GuestChannel) -> None:
        try:
            await channel.wait_for(lambda: False)
        except GuestProtocolError:
            failures.append(1)

    async with connect() as (channel, agent):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(wait, channel)
            await trio.testing.wait_all_tasks_blocked()
            await agent.say(bytes(12))
        assert len(failures) == 20


async def _close_under(*waits: Callable[[GuestChannel], Any]) -> list[type[BaseException]]:
    """Close a channel while others wait on it; return what they got."""
    got: list[type[BaseException]] = []

    async def wait(channel: GuestChannel, how: Callable[[GuestChannel], Any]) -> None:
        try:
            await how(channel)
        except Exception as error:  # noqa: BLE001 - which one it is, is the question
            got.append(type(error))

    async with connect() as (channel, _):
        async with trio.open_nursery() as nursery:
            for how in waits:
                nursery.start_soon(wait, channel, how)
                await trio.testing.wait_all_tasks_blocked()
            channel.close()
            channel.close()
        assert not channel.alive
    return got


def _for_ever(channel: GuestChannel) -> Any:  # noqa: ANN401 - a coroutine
    return channel.wait_for(lambda: False)


def _send_much(channel: GuestChannel) -> Any:  # noqa: ANN401 - a coroutine
    return channel.send(*[protocol.encode(protocol.DATA, 1, bytes(65_536))] * 20)


async def test_who_waits_as_the_channel_is_closed_learns_that_the_box_has_gone() -> None:
    assert await _close_under(_for_ever, _for_ever) == [SandboxGone, SandboxGone]


async def test_who_sends_as_the_channel_is_closed_learns_that_the_box_has_gone() -> None:
    assert await _close_under(_send_much) == [SandboxGone]


async def test_a_closed_channel_is_gone() -> None:
    async with connect() as (channel, _):
        channel.close()
        with pytest.raises(SandboxGone):
            await channel.wait_for(lambda: False)
        with pytest.raises(SandboxGone):
            await channel.send(protocol.encode(protocol.KILL, 1))


async def test_a_violation_reaches_a_sender_whose_pipe_is_full() -> None:
    """An agent that reads nothing and then lies must not hold anybody for ever."""
    async with connect() as (channel, agent):
        failed = []

        async def send() -> None:
            try:
                await _send_much(channel)
            except GuestProtocolError:
                failed.append(1)

        with trio.move_on_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                await agent.say(bytes(12))
                with pytest.raises(GuestProtocolError):
                    await channel.wait_for(lambda: False)
        assert failed == [1]
