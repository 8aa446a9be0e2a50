"""What the host asks an agent beside commands: the processes of the box, a command's CPU time, a terminal's size."""

from __future__ import annotations

import struct

import pytest
import trio
import trio.testing
from guest_frames import REQUEST, Agent, Box, connect, end, eofs, exited, raw, started
from kavach_guest.channel import GuestChannel
from kavach_guest.process import AgentProcess
from kavach_guest.session import AgentSession

from kavach_core.config import NOBODY
from kavach_core.errors import GuestProtocolError, SandboxGone
from kavach_core.types import ExecRequest, ProcessInfo, TerminalSize

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

RESIZE, PROCESSES, CPU = 0x0A, 0x0B, 0x0C
LISTED = raw(0x8C, channel=0)
IN_TERMINAL = ExecRequest(argv=(b"x",), env=(), cwd=b"/", user=NOBODY, terminal=TerminalSize())


def process(pid: int, *, label: int = 0, name: bytes = b"sleep", state: str = "S") -> bytes:
    numbers = struct.pack("<IIIIQQQB", pid, 1, 65534, 2, label, 1_500_000, 4096, ord(state))
    return raw(0x8B, numbers + name, channel=0)


def cpu(microseconds: int) -> bytes:
    return raw(0x8D, struct.pack("<Q", microseconds))


async def start(channel: GuestChannel, agent: Agent, request: ExecRequest = REQUEST) -> AgentProcess:
    await agent.say(started())
    command = await AgentSession(channel, Box()).start(request)
    await agent.hear_until(0x02)
    return command


async def test_the_processes_of_a_box() -> None:
    async with connect() as (channel, agent):
        await agent.say(process(2, label=5), process(3, name=b"a\x1b[1mb\xff"), LISTED)
        found = await AgentSession(channel, Box()).processes()
        assert await agent.hear() == (PROCESSES, 0, 0, b"")
    assert found[0] == ProcessInfo(
        pid=2,
        parent_pid=1,
        exec_id=5,
        uid=65534,
        state="S",
        threads=2,
        cpu_seconds=1.5,
        rss_bytes=4096,
        name="sleep",
    )
    assert (found[1].exec_id, found[1].name) == (None, "a\ufffd[1mb\ufffd")


async def test_listings_take_turns() -> None:
    async with connect() as (channel, agent), trio.open_nursery() as nursery:
        found: list[tuple[int, ...]] = []

        async def ask() -> None:
            found.append(tuple(one.pid for one in await channel.list_processes()))

        nursery.start_soon(ask)
        nursery.start_soon(ask)
        assert (await agent.hear()).type == PROCESSES
        await trio.testing.wait_all_tasks_blocked()
        await agent.say(process(2), LISTED)
        assert (await agent.hear()).type == PROCESSES
        await agent.say(process(3), LISTED)
    assert found == [(2,), (3,)]


async def test_a_cancelled_listing_is_heard_to_its_end_by_the_next() -> None:
    async with connect() as (channel, agent):
        with trio.CancelScope() as scope:
            scope.cancel()
            await channel.list_processes()
        assert (await agent.hear()).type == PROCESSES

        async def answer() -> None:
            await agent.say(process(2), LISTED)
            assert (await agent.hear()).type == PROCESSES
            await agent.say(process(3), LISTED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            found = await channel.list_processes()
    assert [one.pid for one in found] == [3]


@pytest.mark.parametrize("said", [process(2), LISTED, cpu(1)])
async def test_answers_that_nobody_asked_for(said: bytes) -> None:
    async with connect() as (channel, agent):
        command = await start(channel, agent)
        await agent.say(said)
        with pytest.raises(GuestProtocolError):
            await command.wait()


async def test_a_listing_without_an_end() -> None:
    async with connect() as (channel, agent), trio.open_nursery() as nursery:

        async def tell() -> None:
            while True:
                await agent.say(process(2) * 1000)

        nursery.start_soon(tell)
        with pytest.raises(GuestProtocolError, match="without an end"):
            await channel.list_processes()
        nursery.cancel_scope.cancel()


async def test_the_cpu_time_of_a_command() -> None:
    async with connect() as (channel, agent):
        command = await start(channel, agent)
        await agent.say(cpu(250_000))
        assert await command.cpu_seconds() == 0.25
        assert await agent.hear() == (CPU, 0, 1, b"")
        await agent.say(exited(), eofs(), end())
        assert await command.cpu_seconds() == 0.25  # asked too late to be answered
        assert await command.cpu_seconds() == 0.25
        await agent.hear()
        await agent.hang_up()
        with pytest.raises(SandboxGone):
            await channel.list_processes()


async def test_a_new_size_is_told_to_terminals_alone() -> None:
    size = TerminalSize(rows=3, columns=4)
    async with connect() as (channel, agent):
        command = await start(channel, agent, IN_TERMINAL)
        await command.resize(size)
        assert await agent.hear() == (RESIZE, 0, 1, bytes((3, 0, 4, 0)))
    async with connect() as (channel, agent):
        command = await start(channel, agent)
        await command.resize(size)
        await command.aclose()
        assert (await agent.hear()).type != RESIZE
