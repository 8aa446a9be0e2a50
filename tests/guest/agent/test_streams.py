"""Streams: stdin, credit both ways, ends of output, CLOSE, and that no channel holds up another."""

from __future__ import annotations

import errno
import resource
import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.agent.conftest import Agent, Fifo, Launch

DATA, EOF, CREDIT, SIGNAL, KILL, CLOSE = 0x03, 0x04, 0x05, 0x06, 0x07, 0x08
STARTED, G_DATA, G_EOF, G_CREDIT, EXITED, END, DRAINED = 0x82, 0x83, 0x84, 0x85, 0x86, 0x8A, 0x8E
HELLO = 0x01
WINDOW = 262_144
SLOTS = 1008


def read_output(agent: Agent, channel: int, total: int) -> None:
    """Read until so many bytes of output have come for the channel."""
    while len(agent.channels[channel].out) < total:
        assert agent.frame() is not None


def expected_spew(size: int) -> bytes:
    block = bytes(ord("a") + i % 26 % 23 for i in range(65536))
    return (block * (size // 65536 + 1))[:size]


# ---- stdin ----


def test_stdin_reaches_the_command_and_ends(agent: Agent) -> None:
    channel = agent.start("cat", stdin=True)
    agent.stdin(channel, b"hello ")
    agent.stdin(channel, b"world")
    read_output(agent, channel, 11)
    agent.send(EOF, channel)
    outcome = agent.finish(channel)
    assert (outcome.out, outcome.exit) == (b"hello world", (0, 0))
    assert not outcome.of(G_CREDIT)  # a quarter of the window has not been used


def test_stdin_may_end_at_once(agent: Agent) -> None:
    channel = agent.start_guest("sink", stdin=True)
    agent.send(EOF, channel)
    assert agent.finish(channel).out == b"0 0\n"


def test_stdin_of_many_windows(agent: Agent) -> None:
    data = bytes(range(256)) * 16384  # 4 MiB
    channel = agent.start_guest("sink", stdin=True)
    agent.stdin(channel, data)
    agent.send(EOF, channel)
    outcome = agent.finish(channel)
    assert outcome.out == f"{len(data)} {sum(data)}\n".encode()
    granted = sum(frame.numbers[0] for frame in outcome.of(G_CREDIT))
    assert len(data) - WINDOW <= granted <= len(data)


def test_input_that_nobody_reads_stops_at_the_window(agent: Agent) -> None:
    channel = agent.start("sleep", "1000", stdin=True)
    agent.wait(channel, STARTED)
    sent = 0
    while agent.stdin_credit[channel] > 0:
        size = min(65536, agent.stdin_credit[channel])
        agent.stdin_credit[channel] -= size
        agent.send(DATA, channel, b"x" * size)
        agent.sync()
        sent += size
    # The window, and what the pipe itself has taken.
    assert WINDOW <= sent <= WINDOW + 65536
    assert agent.run("echo", "on").out == b"on\n"
    agent.send(KILL, channel)
    assert agent.finish(channel).exit == (1, 9)


def test_held_input_arrives_after_eof(agent: Agent, fifo: Fifo) -> None:
    text = 'read go <> "$0"; exec "$1" sink'
    channel = agent.start("sh", "-c", text, fifo.path, agent.guest, stdin=True)
    agent.wait(channel, STARTED)
    agent.stdin(channel, b"y" * WINDOW)
    agent.send(EOF, channel)
    assert not any(frame.type == EXITED for frame in agent.sync())
    fifo.send(b"go\n")
    assert agent.finish(channel).out == f"{WINDOW} {WINDOW * ord('y')}\n".encode()


def test_input_for_a_closed_stdin_is_thrown_away_with_credit(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("deaf", fifo.path, stdin=True)
    read_output(agent, channel, 5)
    agent.stdin(channel, b"x" * (4 * WINDOW))
    agent.send(EOF, channel)
    fifo.send(b"!")
    assert agent.finish(channel).exit == (0, 0)


def test_stdin_can_be_opened_by_name(agent: Agent) -> None:
    channel = agent.start("sh", "-c", "cat /dev/stdin > /dev/stdout", stdin=True)
    agent.stdin(channel, b"by name")
    agent.send(EOF, channel)
    outcome = agent.finish(channel)
    assert (outcome.out, outcome.err) == (b"by name", b"")


# ---- output and credit ----


@pytest.mark.parametrize("size", [1, 65_524, 65_536, 65_537, 262_144, 5_000_003])
def test_every_byte_arrives_in_order(agent: Agent, size: int) -> None:
    outcome = agent.run_guest("spew", str(size))
    assert outcome.out == expected_spew(size)
    assert outcome.exit == (0, 0)


def test_output_stops_without_credit_and_nobody_else_does(agent: Agent) -> None:
    channel = agent.start_guest("spew", "1000000")
    read_output(agent, channel, WINDOW)
    assert agent.run_guest("spew", "1000000").out == expected_spew(1_000_000)
    assert agent.sync() == []
    assert len(agent.channels[channel].out) == WINDOW
    agent.credit(channel, 5)
    read_output(agent, channel, WINDOW + 5)
    assert agent.sync() == []
    agent.credit(channel, 10_000_000)
    outcome = agent.finish(channel, grant=False)
    assert outcome.out == expected_spew(1_000_000)
    assert outcome.exit == (0, 0)


def test_the_two_outputs_have_credit_of_their_own(agent: Agent) -> None:
    channel = agent.start("sh", "-c", '"$0" spew 300000; echo done >&2', agent.guest)
    read_output(agent, channel, WINDOW)
    assert agent.channels[channel].err == b""
    agent.credit(channel, 300_000, 1)
    assert agent.finish(channel, grant=False).err == b"done\n"


def test_the_end_of_an_empty_pipe_needs_no_credit(agent: Agent) -> None:
    outcome = agent.finish(agent.start_guest("spew", str(WINDOW)), grant=False)
    assert len(outcome.out) == WINDOW
    assert outcome.exit == (0, 0)


def test_exit_is_told_while_output_waits_for_credit(agent: Agent) -> None:
    channel = agent.start_guest("spew", str(WINDOW + 1000))
    agent.wait(channel, EXITED)
    agent.sync()
    assert not [eof for eof in agent.channels[channel].of(G_EOF) if eof.stream == 1]
    agent.credit(channel, 1000)
    assert len(agent.finish(channel, grant=False).out) == WINDOW + 1000


def test_one_output_may_end_long_before_the_other(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("half", fifo.path)
    assert agent.wait(channel, G_EOF).stream == 1
    fifo.send(b"!")
    outcome = agent.finish(channel)
    assert (outcome.err, outcome.exit) == (b"still here", (0, 0))


def test_output_may_follow_the_exit(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("late", fifo.path, "65536")
    agent.wait(channel, EXITED)
    assert not agent.channels[channel].of(G_EOF)
    fifo.send(b"!")
    assert len(agent.finish(channel).out) == 65540


def test_all_busy_channels_advance(agent: Agent) -> None:
    channels = [agent.start("yes") for _ in range(8)]
    quiet = agent.start("cat", stdin=True)
    agent.stdin(quiet, b"through the crowd")
    while min(len(agent.channels[channel].of(G_DATA)) for channel in [quiet, *channels]) < 1:
        frame = agent.frame()
        assert frame is not None
        if frame.type == G_DATA:
            agent.credit(frame.channel, len(frame.payload))
    assert agent.channels[quiet].out == b"through the crowd"
    for channel in channels:
        agent.send(SIGNAL, channel, b"\x09\x00")
        agent.send(CLOSE, channel)
    for channel in channels:
        assert agent.finish(channel).exit == (1, 9)


def test_exits_are_seen_while_descriptors_are_always_ready(agent: Agent) -> None:
    busy = agent.start("yes")
    agent.send(CLOSE, busy)  # thrown away without a pause
    for _ in range(20):
        assert agent.run("true").exit == (0, 0)
    assert agent.kill(busy) == 0


# ---- CLOSE ----


def test_close_ends_the_channel_at_the_exit(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("stubborn", fifo.path)
    fifo.alive(1)
    agent.send(CLOSE, channel)
    assert not any(frame.type == END for frame in agent.sync())
    agent.send(SIGNAL, channel, b"\x09\x00")
    outcome = agent.finish(channel)
    assert [frame.type for frame in outcome.frames] == [STARTED, EXITED, END]


def test_close_lets_those_left_behind_write_on(agent: Agent, fifos: Callable[[], Fifo]) -> None:
    go, done = fifos(), fifos()
    channel = agent.start_guest("late", go.path, "10000000", done.path)
    agent.wait(channel, EXITED)
    agent.send(CLOSE, channel)
    outcome = agent.finish(channel)
    assert not outcome.of(G_EOF)
    go.send(b"!")
    # Ten megabytes after END: neither killed by a closed pipe nor stopped by a full one.
    assert done.read(4) == b"done"
    assert agent.sync() == []


def test_no_data_between_close_and_end(agent: Agent) -> None:
    channel = agent.start("yes")
    read_output(agent, channel, 1000)
    agent.send(CLOSE, channel)
    agent.sync()
    before = len(agent.channels[channel].out)
    agent.sync()
    agent.send(SIGNAL, channel, b"\x09\x00")
    assert len(agent.finish(channel).out) == before


def test_close_without_credit_unblocks_the_command(agent: Agent) -> None:
    channel = agent.start_guest("spew", "3000000")
    read_output(agent, channel, WINDOW)
    agent.send(CLOSE, channel)
    assert agent.finish(channel, grant=False).exit == (0, 0)


# ---- many ----


def test_two_hundred_at_once(agent: Agent) -> None:
    channels = [agent.start("cat", stdin=True) for _ in range(200)]
    for channel in channels:
        agent.stdin(channel, f"for {channel}".encode())
        agent.send(EOF, channel)
    for channel in channels:
        outcome = agent.finish(channel)
        assert (outcome.out, outcome.exit) == (f"for {channel}".encode(), (0, 0))


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4 * SLOTS, reason="too few descriptors")
def test_all_slots_are_open_and_no_more(agent: Agent) -> None:
    channels = [agent.start("/bin/cat", stdin=True) for _ in range(SLOTS)]
    agent.wait_all(channels, STARTED)
    assert agent.run("true").failure == (2, errno.EAGAIN)
    for channel in channels[:2]:
        agent.send(EOF, channel)
        agent.finish(channel)
    # The two slots are free again, also for a box that has to look through /proc to know.
    assert agent.run("true").exit == (0, 0)
    assert agent.run("true").exit == (0, 0)
    assert agent.run("true").exit == (0, 0)
    for channel in channels[2:]:
        agent.send(EOF, channel)
    for channel in channels[2:]:
        assert agent.finish(channel).exit == (0, 0)


def test_a_host_that_does_not_read_stops_nothing_but_output(agent: Agent) -> None:
    count, size = 30, 200_000
    channels = [agent.start_guest("spew", str(size)) for _ in range(count)]
    pings = [struct.pack("<Q", number) for number in range(3000)]
    for token in pings:
        agent.send(0x09, 0, token)
    for channel in channels:
        assert len(agent.finish(channel).out) == size
    agent.sync()
    pongs = [frame.payload for frame in agent.others if frame.type == 0x89]
    assert pongs[: len(pings)] == pings


# ---- what is the command's own ----


def test_output_of_the_command_is_told_from_that_of_those_it_left(agent: Agent) -> None:
    channel = agent.start("sh", "-c", "head -c 300000 /dev/zero; (sleep 0.2; echo late) & exit 0")
    outcome = agent.finish(channel)
    told = [frame.type for frame in outcome.frames if frame.stream in (0, 1)]
    assert told.index(EXITED) < told.index(DRAINED) < told.index(G_EOF)
    own = b"".join(
        f.payload for f in outcome.frames[: outcome.frames.index(outcome.of(DRAINED)[0])] if f.type == G_DATA
    )
    assert own == bytes(300_000)
    assert outcome.out == own + b"late\n"


def test_drained_waits_for_credit(agent: Agent) -> None:
    channel = agent.start("sh", "-c", "head -c 300000 /dev/zero; sleep 1000 >&2 & exit 0")
    agent.wait(channel, EXITED)
    agent.sync()
    outcome = agent.channels[channel]
    assert len(outcome.out) == WINDOW
    assert all(frame.stream == 2 for frame in outcome.of(DRAINED))
    agent.credit(channel, WINDOW)
    while len(outcome.out) < 300_000:
        assert agent.frame() is not None
    agent.wait(channel, G_EOF)
    agent.kill(channel)


def test_an_old_host_is_told_nothing_new(launch: Launch) -> None:
    agent = launch()
    agent.send(HELLO, 0, b"KVCH\x01\x00\x01\x00")
    assert agent.frame() is not None
    outcome = agent.run("sh", "-c", "sleep 0.1 & echo x")
    assert outcome.out == b"x\n"
    assert not outcome.of(DRAINED)
