"""Frames and the opening: what is accepted, and that every broken rule ends the box with ERROR."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.agent.conftest import Agent, Fifo, Launch, Programs

HELLO, START, DATA, EOF, CREDIT, SIGNAL, KILL, CLOSE, PING = range(1, 10)
STARTED, EXITED, PONG, END = 0x82, 0x86, 0x89, 0x8A
GREETING = b"KVCH\x01\x00\x02\x00"
WINDOW = 262_144
CREDIT_LIMIT = 16_777_216


def raw(type_: int, channel: int = 0, payload: bytes = b"", stream: int = 0, **odd: int) -> bytes:
    """Encode any frame, also a wrong one."""
    length = odd.get("length", len(payload))
    return struct.pack("<IBBHI", length, type_, stream, odd.get("reserved", 0), channel) + payload


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def test_the_agent_greets_without_waiting(launch: Launch) -> None:
    frame = launch().frame()
    assert frame is not None
    assert (frame.type, frame.payload) == (0x81, GREETING)


def test_a_newer_minor_version_is_welcome(launch: Launch) -> None:
    agent = launch()
    agent.send(HELLO, 0, b"KVCH" + struct.pack("<HH", 1, 7))
    assert agent.run("true").exit == (0, 0)


@pytest.mark.parametrize(
    "first",
    [
        raw(HELLO, 0, b"KVCH\x02\x00\x00\x00"),
        raw(HELLO, 0, b"KVCH\x00\x00\x00\x00"),
        raw(HELLO, 0, b"kvch\x01\x00\x00\x00"),
        raw(HELLO, 0, b"KVCH\x01\x00"),
        raw(PING),
        raw(START, 1),
        raw(HELLO, 0, GREETING) * 2,
        b"GET / HTTP/1.1\r\n",
    ],
    ids=["newer", "older", "magic", "short", "ping", "start", "twice", "http"],
)
def test_a_wrong_opening_ends_the_box(launch: Launch, first: bytes) -> None:
    agent = launch()
    agent.send_raw(first)
    assert agent.broken()


BROKEN = {
    "type 0": raw(0),
    "type 13": raw(13),
    "type 255": raw(255),
    "direction": raw(0x83, 1, b"x", 1),
    "hello again": raw(HELLO, 0, GREETING),
    "start too long": raw(START, 9, length=1_048_577),
    "data too long": raw(DATA, 1, length=65_537),
    "data longest": raw(DATA, 1, length=0xFFFFFFFF),
    "data empty": raw(DATA, 1),
    "eof with payload": raw(EOF, 1, length=1),
    "credit short": raw(CREDIT, 1, length=3, stream=1),
    "credit long": raw(CREDIT, 1, length=5, stream=1),
    "signal short": raw(SIGNAL, 1, length=1),
    "signal long": raw(SIGNAL, 1, length=3),
    "kill with payload": raw(KILL, 1, length=1),
    "close with payload": raw(CLOSE, 1, length=1),
    "ping too long": raw(PING, 0, length=65),
    "reserved": raw(PING, reserved=1),
    "reserved high": raw(PING, reserved=0x8000),
    "stream in ping": raw(PING, stream=1),
    "stream in start": raw(START, 9, stream=1),
    "stream in data": raw(DATA, 1, b"x", stream=1),
    "stream in eof": raw(EOF, 1, stream=2),
    "stream in signal": raw(SIGNAL, 1, b"\x09\x00", stream=1),
    "stream in kill": raw(KILL, 1, stream=1),
    "stream in close": raw(CLOSE, 1, stream=1),
    "credit for stdin": raw(CREDIT, 1, number(1)),
    "credit for stream 3": raw(CREDIT, 1, number(1), stream=3),
    "channel in ping": raw(PING, 1),
    "channel in hello": raw(HELLO, 1, GREETING),
    "start on channel 0": raw(START),
    "data on channel 0": raw(DATA, 0, b"x"),
    "kill on channel 0": raw(KILL, 0),
    "channel used before": raw(START, 1),
    "data for the unknown": raw(DATA, 2, b"x"),
    "eof for the unknown": raw(EOF, 2),
    "credit for the unknown": raw(CREDIT, 2, number(1), stream=1),
    "signal for the unknown": raw(SIGNAL, 2, b"\x09\x00"),
    "kill for the unknown": raw(KILL, 4_000_000_000),
    "close for the unknown": raw(CLOSE, 2),
    "credit 0": raw(CREDIT, 1, number(0), stream=1),
    "credit above the limit": raw(CREDIT, 1, number(CREDIT_LIMIT - WINDOW + 1), stream=2),
    "credit largest": raw(CREDIT, 1, number(0xFFFFFFFF), stream=1),
    "signal 0": raw(SIGNAL, 1, b"\x00\x00"),
    "signal 65": raw(SIGNAL, 1, b"\x41\x00"),
    "scope 2": raw(SIGNAL, 1, b"\x09\x02"),
    "stdin beyond the credit": raw(DATA, 1, b"x" * 65_536) * 6,
    "data after eof": raw(EOF, 1) + raw(DATA, 1, b"x"),
    "eof twice": raw(EOF, 1) * 2,
}


@pytest.mark.parametrize("wrong", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_rule_ends_the_box_and_every_process(agent: Agent, fifo: Fifo, wrong: bytes) -> None:
    channel = agent.start_guest("stubborn", fifo.path, stdin=True)
    agent.wait(channel, STARTED)
    fifo.alive(1)
    agent.send_raw(wrong)
    assert agent.broken()
    assert fifo.all_dead()


@pytest.mark.parametrize("wrong", [raw(DATA, 1, b"x"), raw(EOF, 1)], ids=["data", "eof"])
def test_a_command_without_stdin_gets_none(agent: Agent, wrong: bytes) -> None:
    channel = agent.start("sleep", "1000")
    agent.wait(channel, STARTED)
    agent.send_raw(wrong)
    assert "stdin" in agent.broken()


def test_credit_up_to_the_limit_is_right(agent: Agent) -> None:
    channel = agent.start("cat", stdin=True)
    agent.credit(channel, CREDIT_LIMIT - WINDOW, 1)
    agent.credit(channel, CREDIT_LIMIT - WINDOW, 2)
    agent.send(EOF, channel)
    assert agent.finish(channel).exit == (0, 0)


def test_frames_in_single_bytes_and_all_at_once(agent: Agent) -> None:
    start = raw(START, agent.next_channel(), agent.request("cat", stdin=True))
    stream = start + raw(DATA, 1, b"bytes") + raw(EOF, 1) + raw(PING, 0, b"after")
    for byte in stream:
        agent.send_raw(bytes([byte]))
    assert agent.finish(1).out == b"bytes"
    numbers = [agent.next_channel() for _ in range(20)]
    agent.send_raw(b"".join(raw(START, channel, agent.request("echo", str(channel))) for channel in numbers))
    for channel in numbers:
        assert agent.finish(channel).out == f"{channel}\n".encode()


def test_channel_numbers_may_skip(agent: Agent) -> None:
    for channel in (5, 100, 0xFFFFFFFF):
        agent.send(START, channel, agent.request("echo", "x"))
        assert agent.finish(channel).out == b"x\n"


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(64))])
def test_pong_carries_the_payload_of_ping(agent: Agent, payload: bytes) -> None:
    agent.send(PING, 0, payload)
    frame = agent.frame()
    assert frame is not None
    assert (frame.type, frame.payload) == (PONG, payload)


def test_frames_for_an_ended_channel_are_ignored(agent: Agent) -> None:
    ended = agent.start("true")
    failed = agent.start("/nonexistent")
    agent.finish(ended)
    agent.finish(failed)
    for channel in (ended, failed):
        agent.send(DATA, channel, b"x")
        agent.send(EOF, channel)
        agent.send(CREDIT, channel, number(1), 1)
        agent.send(SIGNAL, channel, b"\x09\x00")
        agent.send(KILL, channel)
        agent.send(CLOSE, channel)
    assert agent.sync() == []


@pytest.mark.parametrize("cut", [1, 11, 12, 40])
def test_a_truncated_frame_is_the_end_of_the_host(agent: Agent, fifo: Fifo, cut: int) -> None:
    channel = agent.start_guest("stubborn", fifo.path)
    fifo.alive(1)
    agent.send_raw(raw(START, channel + 1, agent.request("true") + b" " * 60)[:cut])
    assert agent.hang_up() == 0
    assert fifo.all_dead()


def test_an_error_comes_after_what_was_sent_before(agent: Agent) -> None:
    agent.send_raw(raw(PING, 0, b"first") + raw(0))
    assert agent.broken() == "unknown frame type"
    assert [frame.type for frame in agent.others] == [0x81, PONG, 0x8F]


def test_it_refuses_unknown_arguments(programs: Programs) -> None:
    done = subprocess.run([programs.agents["release"], "--help"], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


def test_a_box_needs_process_1(programs: Programs) -> None:
    done = subprocess.run([programs.agents["release"]], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == b"kavach-agent: not process 1 of a box (see --plain)\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-"])
def test_it_needs_its_three_descriptors(programs: Programs, closed: str) -> None:
    script = f'exec "$0" --plain {closed}'
    done = subprocess.run(
        ["sh", "-c", script, programs.agents["release"]],
        stdin=subprocess.PIPE,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 2
