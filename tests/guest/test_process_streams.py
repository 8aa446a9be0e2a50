"""The streams of one command over a channel: their credit, what is bounded, and that nothing is lost."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
import trio
import trio.testing
from guest_frames import (
    CREDIT,
    KIB,
    REQUEST,
    WITH_STDIN,
    Box,
    data,
    end,
    eofs,
    exited,
    fill,
    raw,
    running,
    started,
    u32,
)
from kavach_guest.session import AgentSession

from kavach_core.errors import GuestProtocolError, SandboxGone

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


async def test_credit_is_granted_as_output_is_read() -> None:
    async with running() as (process, agent, _):
        await agent.say(*[data(bytes(64 * KIB))] * 4)
        granted = 0
        for _ in range(4):
            assert len(await process.stdout.receive_some()) == 64 * KIB
        await agent.say(exited(), eofs(), end())
        await process.wait()
        await process.aclose()
        process._channel.close()
        with contextlib.suppress(EOFError):
            while True:
                frame = await agent.hear()
                assert (frame.type, frame.stream, frame.channel) == (0x05, 1, 1)
                granted += struct.unpack("<I", frame.payload)[0]
        # Half of the window was read when more was asked for; a stream that is read gets a window twice as large.
        assert granted == 128 * KIB + 256 * KIB


async def test_output_of_any_length_passes_with_credit() -> None:
    """As much as is read may come, and not a byte more."""
    async with running() as (process, agent, _):
        total = 4 * KIB * KIB

        async def write() -> None:
            credit, left = 256 * KIB, total
            while left:
                while credit < 64 * KIB:
                    frame = await agent.hear_until(0x05)
                    assert frame.stream == 1
                    credit += struct.unpack("<I", frame.payload)[0]
                    assert credit <= KIB * KIB
                await agent.say(data(bytes(64 * KIB)))
                credit, left = credit - 64 * KIB, left - 64 * KIB
            await agent.say(exited(), eofs(), end())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            read = 0
            while chunk := await process.stdout.receive_some():
                read += len(chunk)
            assert read == total


async def test_a_stream_that_was_read_and_is_not_any_more_holds_a_megabyte_at_most() -> None:
    async with running() as (process, agent, _):
        credit = 256 * KIB
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                nonlocal credit
                while True:
                    await agent.say(data(bytes(64 * KIB)))
                    credit -= 64 * KIB
                    while credit < 64 * KIB:
                        credit += struct.unpack("<I", (await agent.hear_until(0x05)).payload)[0]

            nursery.start_soon(write)
            for _ in range(100):
                await process.stdout.receive_some()
            with trio.move_on_after(0.2):
                await process._channel.wait_for(lambda: False)
            held = sum(map(len, process._command.outputs[1].chunks))
            assert 512 * KIB < held <= KIB * KIB
            nursery.cancel_scope.cancel()


async def test_output_that_nobody_reads_is_bounded() -> None:
    """Other commands go on; the agent may fill its credit and no more."""
    async with running() as (process, agent, _):
        await agent.say(*[data(bytes(64 * KIB)), data(bytes(64 * KIB), stream=2)] * 4)
        await trio.testing.wait_all_tasks_blocked()
        session = AgentSession(process._channel, Box())
        await agent.say(started(pid=8, channel=2), exited(channel=2), eofs(2), end(2))
        other = await session.start(REQUEST)
        assert (await other.wait()).exit_code == 0
        held = sum(len(chunk) for output in process._command.outputs.values() for chunk in output.chunks)
        assert held == 2 * 256 * KIB
        await agent.say(data(b"x"))
        with pytest.raises(GuestProtocolError):
            await process._channel.wait_for(lambda: False)


async def test_a_cancelled_read_loses_no_output() -> None:
    """A hole in the output that nothing tells of: the agent does not read for a moment, and the reader is cancelled."""
    async with running() as (process, agent, _):
        await fill(process._channel)
        await agent.say(*[data(bytes([number]) * 64 * KIB) for number in range(4)])
        read = b""
        for _ in range(4):
            with trio.move_on_after(0.05):
                read += await process.stdout.receive_some()
        while len(read) < 256 * KIB:
            with trio.fail_after(1):
                read += await process.stdout.receive_some()
        assert read == b"".join(bytes([number]) * 64 * KIB for number in range(4))


async def test_input_goes_out_within_its_credit() -> None:
    async with running(WITH_STDIN) as (process, agent, _):
        text = random.Random(1).randbytes(1_000_000)

        async def feed() -> None:
            await process.stdin.send_all(text)
            await process.stdin.aclose()

        received, credit = b"", 256 * KIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            nursery.start_soon(process.wait)
            while (frame := await agent.hear()).type != 0x04:
                assert (frame.type, frame.stream, frame.channel) == (0x03, 0, 1)
                assert 1 <= len(frame.payload) <= min(credit, 65_536)
                received += frame.payload
                credit -= len(frame.payload)
                if credit < 100_000:
                    await agent.say(raw(CREDIT, u32(77_777)))
                    credit += 77_777
            await agent.say(exited(), eofs(), end())
        assert received == text


async def test_input_waits_for_credit_and_ends_with_the_command() -> None:
    async with running(WITH_STDIN) as (process, agent, _):
        failed = []

        async def feed() -> None:
            try:
                await process.stdin.send_all(bytes(256 * KIB + 1))
            except trio.BrokenResourceError:
                failed.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            for _ in range(4):
                assert len((await agent.hear()).payload) == 64 * KIB
            await trio.testing.wait_all_tasks_blocked()
            await agent.say(exited())
        assert failed == [1]
        with pytest.raises(trio.BrokenResourceError):
            await process.stdin.send_all(b"more")
        await process.stdin.aclose()
        await process.stdin.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(b"more")


async def test_input_after_the_end_of_the_box() -> None:
    async with running(WITH_STDIN) as (process, agent, _):
        await agent.aclose()
        with pytest.raises(SandboxGone):
            await process.stdin.send_all(b"x")
        await process.stdin.aclose()


async def test_the_end_of_input_arrives_though_its_sender_was_cancelled() -> None:
    """The pipe was full for a moment; a command that waits for the end of its input must not wait for ever."""
    async with running(WITH_STDIN) as (process, agent, _):
        await fill(process._channel)
        with trio.move_on_after(0.01):
            await process.stdin.aclose()

        async def answer() -> None:
            await agent.hear_until(0x04)
            await agent.say(exited(), eofs(), end())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with trio.fail_after(1):
                await process.wait()
