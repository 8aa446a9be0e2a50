"""One command over a channel: its start, its events, its end, kill, signal, close."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from guest_frames import KIB, KILLED, REQUEST, Box, connect, data, end, eofs, exited, fill, raw, running, started, u32
from kavach_guest.session import AgentSession

from kavach_core.errors import SandboxGone
from kavach_core.types import GuestExit, Output, Stream

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


# --- from start to end ------------------------------------------------------------------------------


async def test_a_command_from_start_to_end() -> None:
    async with running() as (process, agent, _):
        await agent.say(data(b"out"), data(b"err", stream=2), exited(3), data(b"late"), eofs(), end())
        assert process.pid == 7
        assert process.stdin is None
        wanted = GuestExit(exit_code=3, cpu_user_seconds=1.5, cpu_system_seconds=0.25, max_rss_bytes=4096, signal=None)
        assert await process.wait() == wanted
        assert await process.wait() == wanted
        assert await process.stdout.receive_some() == b"out"
        assert await process.stdout.receive_some(2) == b"la"
        assert await process.stdout.receive_some() == b"te"
        assert await process.stderr.receive_some() == b"err"
        for stream in (process.stdout, process.stderr):
            assert await stream.receive_some() == b""
            assert await stream.receive_some() == b""


async def test_events_come_in_order_and_the_end_as_soon_as_it_is_known() -> None:
    async with running() as (process, agent, _):
        await agent.say(data(b"1"))
        assert await process.next_event() == Output(Stream.STDOUT, b"1")
        await agent.say(data(b"2", stream=2))
        assert await process.next_event() == Output(Stream.STDERR, b"2")
        await agent.say(exited(9, kind=1))
        ended = await process.next_event()
        assert (ended.exit_code, ended.signal) == (None, 9)
        await agent.say(data(b"late"), eofs(), end())
        assert await process.next_event() == Output(Stream.STDOUT, b"late")
        assert await process.next_event() is None
        assert await process.next_event() is None


# --- kill, signal, close ----------------------------------------------------------------------------


async def test_kill_returns_when_nothing_is_alive() -> None:
    async with running() as (process, agent, box):
        done = []

        async def kill() -> None:
            await process.kill()
            done.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            assert await agent.hear() == (0x07, 0, 1, b"")
            await agent.say(exited(9, kind=1))
            await trio.testing.wait_all_tasks_blocked()
            assert done == []
            await agent.say(raw(KILLED, u32(0)))
        assert (await process.wait()).signal == 9
        assert box.ends == 0


async def test_kill_with_survivors_ends_the_box() -> None:
    async with running() as (process, agent, box):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.say, raw(KILLED, u32(3)))
            with pytest.RaisesGroup(SandboxGone, allow_unwrapped=True):
                await process.kill()
        assert box.ends == 1
        with pytest.raises(SandboxGone):
            await process.wait()


async def test_kill_that_is_not_answered_ends_the_box(autojump_clock: object) -> None:
    del autojump_clock
    async with running() as (process, _, box):
        started_at = trio.current_time()
        with pytest.raises(SandboxGone) as caught:
            await process.kill()
        assert caught.value.stage == "kill"
        assert trio.current_time() - started_at <= 0.51
        assert box.ends == 1


async def test_kill_that_cannot_be_sent_ends_the_box(autojump_clock: object) -> None:
    """The agent has stopped reading, and the pipe to it is full."""
    del autojump_clock
    async with running() as (process, _, box):
        await fill(process._channel)
        with pytest.raises(SandboxGone):
            await process.kill()
        assert box.ends == 1


async def test_kill_crossing_the_end() -> None:
    async with running() as (process, agent, box):
        await agent.say(exited(), eofs(), end())
        await process.kill()
        assert await agent.hear() == (0x07, 0, 1, b"")
        await process.kill()  # nothing to say any more
        assert box.ends == 0


async def test_several_kills_each_want_an_answer() -> None:
    async with running() as (process, agent, _):
        done = []

        async def kill(number: int) -> None:
            await process.kill()
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(kill, number)
            for number in range(3):
                assert (await agent.hear()).type == 0x07
                await agent.say(raw(KILLED, u32(0)))
                await trio.testing.wait_all_tasks_blocked()
                assert len(done) == number + 1


async def test_a_signal_goes_to_the_first_process_while_there_is_one() -> None:
    async with running() as (process, agent, _):
        await process.send_signal(15)
        assert await agent.hear() == (0x06, 0, 1, b"\x0f\x00")
        await agent.say(exited())
        await process.wait()
        await process.send_signal(15)
        await process.aclose()
        assert await agent.hear() == (0x08, 0, 1, b"")


async def test_close_tells_the_agent_once_and_takes_no_more() -> None:
    async with running() as (process, agent, _):
        await agent.say(data(b"before"))
        await process._channel.wait_for(lambda: bool(process._command.outputs[1].chunks))
        await process.aclose()
        await process.aclose()
        assert await agent.hear() == (0x08, 0, 1, b"")
        assert await process.stdout.receive_some() == b""
        # What crossed the CLOSE on its way is thrown away, whatever its size.
        await agent.say(*[data(bytes(64 * KIB))] * 2)
        await agent.say(exited(), end())
        assert (await process.wait()).exit_code == 0
        assert not process._command.outputs[1].chunks
        await process._channel.wait_for(lambda: process._command.ended)


async def test_close_after_the_end_says_nothing() -> None:
    async with running() as (process, agent, _):
        await agent.say(exited(), eofs(), end())
        await process._channel.wait_for(lambda: process._command.ended)
        await process.aclose()
        process._channel.close()
        with pytest.raises(EOFError):
            await agent.hear()


async def test_close_of_a_box_that_has_gone_is_no_error() -> None:
    async with running() as (process, agent, _):
        await agent.aclose()
        await process.aclose()
        with pytest.raises(SandboxGone):
            await process.wait()


async def test_close_wakes_who_reads() -> None:
    """The command runs on, so the agent has nothing to say that would wake the reader."""
    async with running() as (process, _, _):
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.stdout.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                await process.aclose()


# --- starting ---------------------------------------------------------------------------------------


async def test_a_cancelled_start_kills_what_it_started() -> None:
    async with connect() as (channel, agent):
        session = AgentSession(channel, Box())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.start, REQUEST)
            assert (await agent.hear()).type == 0x02
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await agent.say(started())
                assert await agent.hear() == (0x07, 0, 1, b"")
                await agent.say(exited(9, kind=1), raw(KILLED, u32(0)))
                assert await agent.hear() == (0x08, 0, 1, b"")
        await agent.say(end())
        await agent.say(started(channel=2))
        assert (await session.start(REQUEST)).pid == 7


async def test_a_cancelled_start_that_is_never_answered_gives_up(autojump_clock: object) -> None:
    del autojump_clock
    async with connect() as (channel, _):
        session = AgentSession(channel, Box())
        with trio.move_on_after(1) as scope:
            await session.start(REQUEST)
        assert scope.cancelled_caught
        assert trio.current_time() < 10


async def test_a_start_that_the_end_of_the_box_answers() -> None:
    async with connect() as (channel, agent):
        session = AgentSession(channel, Box())
        await agent.hang_up()
        with pytest.raises(SandboxGone):
            await session.start(REQUEST)
        with pytest.raises(SandboxGone):
            await session.start(REQUEST)


async def test_closing_a_session_closes_both_pipes_and_ends_the_box() -> None:
    async with connect() as (channel, agent):
        box = Box()
        session = AgentSession(channel, box)
        await session.aclose()
        await session.aclose()
        assert box.ends >= 1
        with pytest.raises(EOFError):
            await agent.hear()
        with pytest.raises(trio.BrokenResourceError):
            await agent.say(b"x")
