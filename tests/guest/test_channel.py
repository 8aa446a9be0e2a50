"""The channel against an agent that does what no agent may: it ends with one of two errors, and never hangs.

The agent here is a task of the test that writes frames of its own making into the pipe.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from guest_frames import (
    CREDIT,
    DATA,
    EOF,
    ERROR,
    FAILED,
    HELLO,
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
from kavach_guest.channel import GuestChannel
from kavach_guest.session import AgentSession

from kavach_core.abc import GuestStartError
from kavach_core.config import NOBODY
from kavach_core.errors import GuestProtocolError, SandboxGone
from kavach_core.types import ExecRequest, Output

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


# --- greeting ----------------------------------------------------------------------------------


async def test_each_side_greets_first_without_waiting() -> None:
    async with connect(greet=False) as (channel, agent), trio.open_nursery() as nursery:
        nursery.start_soon(channel.open)
        assert await agent.hear() == (0x01, 0, 0, b"KVCH\1\0\1\0")
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


# --- leader and followers ----------------------------------------------------------------------


async def test_who_leads_reads_for_everybody() -> None:
    async with connect() as (channel, agent):
        session = AgentSession(channel, Box())
        processes = []
        for number in range(1, 31):
            await agent.say(started(pid=number, channel=number))
            processes.append(await session.start(REQUEST))
        done: dict[int, int | None] = {}

        async def wait(index: int) -> None:
            done[index] = (await processes[index].wait()).exit_code

        async with trio.open_nursery() as nursery:
            for index in range(30):
                nursery.start_soon(wait, index)
            await trio.testing.wait_all_tasks_blocked()
            for number in random.Random(1).sample(range(1, 31), 30):
                await agent.say(exited(number, channel=number))
                await trio.testing.wait_all_tasks_blocked()
                assert done[number - 1] == number
        assert len(done) == 30


@pytest.mark.parametrize("victim", range(5))
async def test_a_cancelled_waiter_loses_nobody_s_wake_up(victim: int) -> None:
    """The first one leads, the others follow; whichever is cancelled, the rest go on."""
    async with connect() as (channel, agent):
        flags = [False] * 5
        woken = []
        scopes = [trio.CancelScope() for _ in range(5)]

        async def wait(index: int) -> None:
            with scopes[index]:
                await channel.wait_for(lambda: flags[index])
                woken.append(index)

        channel.open_command(lambda number: protocol.encode_start(number, REQUEST))
        await channel.flush()
        async with trio.open_nursery() as nursery:
            for index in range(5):
                nursery.start_soon(wait, index)
                await trio.testing.wait_all_tasks_blocked()
            scopes[victim].cancel()
            await trio.testing.wait_all_tasks_blocked()
            flags[:] = [True] * 5
            await agent.say(started())
        assert sorted(woken) == [index for index in range(5) if index != victim]


async def test_leader_and_next_are_cancelled_at_once() -> None:
    """The lead reaches one that is on its way out; it has to hand it on."""
    async with connect() as (channel, agent):
        scopes = [trio.CancelScope() for _ in range(4)]
        woken = []
        flag = []

        async def wait(index: int) -> None:
            with scopes[index]:
                await channel.wait_for(lambda: bool(flag))
                woken.append(index)

        channel.open_command(lambda number: protocol.encode_start(number, REQUEST))
        await channel.flush()
        async with trio.open_nursery() as nursery:
            for index in range(4):
                nursery.start_soon(wait, index)
                await trio.testing.wait_all_tasks_blocked()
            for scope in scopes[:3]:
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            flag.append(1)
            await agent.say(started())
        assert woken == [3]


async def collect(process: Any, dice: random.Random) -> bytes:  # noqa: ANN401 - an AgentProcess
    """Return a command's output, now and then letting others go first."""
    told = b""
    while (event := await process.next_event()) is not None:
        if isinstance(event, Output):
            told += event.data
        if dice.random() < 0.3:
            await trio.lowlevel.checkpoint()
    return told


def script_of(number: int, dice: random.Random) -> list[bytes]:
    """Return the frames of a command that prints its number three times."""
    pieces = [data(b"%d;" % number, stream=dice.choice((1, 2)), channel=number) for _ in range(3)]
    return [*pieces, exited(channel=number), eofs(number), end(number)]


@pytest.mark.parametrize("seed", range(25))
async def test_any_schedule_of_waits_and_cancels_wakes_everybody(seed: int) -> None:
    """Commands start, print, end and are given up in random order; whoever was not given up gets its end."""
    dice = random.Random(seed)
    numbers = range(1, 13)
    scopes = {number: trio.CancelScope() for number in numbers}
    given_up = set(dice.sample(numbers, 4))
    doomed = list(given_up)
    told: dict[int, bytes] = {}

    async def run(number: int, process: Any) -> None:  # noqa: ANN401 - an AgentProcess
        with scopes[number]:
            told[number] = await collect(process, dice)

    async with connect() as (channel, agent), trio.open_nursery() as nursery:
        session = AgentSession(channel, Box())
        for number in numbers:
            await agent.say(started(channel=number))
            nursery.start_soon(run, number, await session.start(REQUEST))
        scripts = [script_of(number, dice) for number in numbers]
        while scripts := [script for script in scripts if script]:
            script = dice.choice(scripts)
            await agent.say(*(script.pop(0) for _ in range(dice.randint(1, len(script)))))
            if doomed and dice.random() < 0.3:
                scopes[doomed.pop()].cancel()
            if dice.random() < 0.5:
                await trio.testing.wait_all_tasks_blocked()
        for number in doomed:
            scopes[number].cancel()
    for number in set(numbers) - given_up:
        assert sorted(told[number].split(b";")) == sorted((b"%d;" % number * 3).split(b";"))


# --- sending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
async def test_cancelled_senders_never_tear_a_frame(seed: int) -> None:
    dice = random.Random(seed)
    async with connect() as (channel, agent):
        sent: list[tuple[int, bytes]] = []

        async def send(number: int) -> None:
            payload = bytes([number % 256]) * dice.randint(1, 65_536)
            sent.append((number, payload))
            await channel.send(protocol.encode(protocol.DATA, number, payload))

        for first in range(1, 60, 6):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    for number in range(first, first + 6):
                        nursery.start_soon(send, number)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            agent.skim(dice.randint(1, 65_536))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: channel.send(protocol.encode(protocol.PING, payload=b"last")))
            for wanted in sent:
                frame = await agent.hear()
                assert (frame.type, frame.channel, frame.payload) == (0x03, *wanted)
            assert await agent.hear() == (0x09, 0, 0, b"last")


async def test_a_start_beyond_the_bound_opens_no_channel() -> None:
    large = ExecRequest(argv=(b"x" * 2**20,), env=(), cwd=b"/", user=NOBODY)
    async with connect() as (channel, agent):
        with pytest.raises(ValueError, match="are possible"):
            channel.open_command(lambda number: protocol.encode_start(number, large))
        session = AgentSession(channel, Box())
        await agent.say(started())
        process = await session.start(REQUEST)
        assert process.pid == 7
        assert (await agent.hear()).channel == 1


async def test_channels_are_numbered_from_1_and_never_again() -> None:
    async with connect() as (channel, agent):
        session = AgentSession(channel, Box())
        for number in range(1, 6):
            await agent.say(raw(FAILED, u32(5, 2), channel=number), end(number))
            with pytest.raises(GuestStartError) as caught:
                await session.start(REQUEST)
            assert (caught.value.failure.stage, caught.value.failure.errno) == ("program", 2)
            start = await agent.hear()
            assert (start.type, start.channel) == (0x02, number)
