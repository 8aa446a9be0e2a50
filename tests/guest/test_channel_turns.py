"""Who reads for whom, who writes for whom, and what a cancellation leaves."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from guest_frames import (
    FAILED,
    REQUEST,
    Box,
    connect,
    data,
    end,
    eofs,
    exited,
    raw,
    started,
    u32,
)
from kavach_guest import protocol
from kavach_guest.session import AgentSession

from kavach_core.abc import GuestStartError
from kavach_core.config import NOBODY
from kavach_core.types import ExecRequest, Output

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


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
