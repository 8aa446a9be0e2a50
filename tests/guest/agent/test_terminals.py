"""Terminals: what a command finds, what is typed, sizes, the end, and flow control; also in boxes of real runtimes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.agent.agent_host import Agent, Fifo
    from tests.guest.agent.conftest import Launch

EOF, SIGNAL, KILL, CLOSE, RESIZE = 0x04, 0x06, 0x07, 0x08, 0x0A
STARTED, G_EOF, EXITED, KILLED, END = 0x82, 0x84, 0x86, 0x88, 0x8A
WINDOW = 262_144
SIZE = (30, 100)


def size(rows: int, columns: int) -> bytes:
    return struct.pack("<HH", rows, columns)


def read_until(agent: Agent, channel: int, word: bytes) -> None:
    while word not in agent.channels[channel].out:
        assert agent.frame() is not None


def test_all_three_streams_are_the_terminal(anywhere: Agent) -> None:
    text = "test -t 0 && test -t 1 && test -t 2 && stty size && echo err >&2"
    outcome = anywhere.run("sh", "-c", text, tty=SIZE)
    assert (outcome.out, outcome.err, outcome.exit) == (b"30 100\r\nerr\r\n", b"", (0, 0))
    assert [(frame.type, frame.stream) for frame in outcome.frames[:2]] == [(STARTED, 0), (G_EOF, 2)]


def test_it_is_the_commands_and_nobody_elses(anywhere: Agent) -> None:
    outcome = anywhere.run("sh", "-c", 'stat -c "%u %a" "$(tty)"', tty=SIZE)
    assert outcome.out == b"%d 600\r\n" % anywhere.uid


def test_the_command_leads_the_session_of_its_terminal(agent: Agent) -> None:
    outcome = agent.run("sh", "-c", 'exec cat "/proc/$$/stat"', tty=SIZE)
    fields = outcome.out.split()
    (pid,) = outcome.of(STARTED)[0].numbers
    assert fields[4:6] == [b"%d" % pid] * 2
    assert fields[6] != b"0"
    assert fields[7] == b"%d" % pid


def test_no_other_descriptor_reaches_the_command(agent: Agent) -> None:
    assert "fds 0 1 2\r\n" in agent.run_guest("self", tty=SIZE).out.decode()


@pytest.mark.parametrize(("typed", "shown"), [(b"line\n", b"line\r\nline\r\n"), (b"half", b"halfhalf"), (b"", b"")])
def test_the_end_of_input_is_typed(anywhere: Agent, typed: bytes, shown: bytes) -> None:
    channel = anywhere.start("cat", tty=SIZE, stdin=True)
    anywhere.stdin(channel, typed)
    anywhere.send(EOF, channel)
    outcome = anywhere.finish(channel)
    assert (outcome.out, outcome.exit) == (shown, (0, 0))


def test_the_end_of_input_waits_for_what_came_before(anywhere: Agent) -> None:
    channel = anywhere.start("sh", "-c", "stty -echo; echo ready; wc -c", tty=SIZE, stdin=True)
    read_until(anywhere, channel, b"ready")
    anywhere.stdin(channel, (b"x" * 99 + b"\n") * 5000)
    anywhere.send(EOF, channel)
    assert anywhere.finish(channel).out == b"ready\r\n500000\r\n"


def test_a_raw_terminal_gets_the_bytes_as_they_are(anywhere: Agent) -> None:
    # gVisor turns these into signals in any mode.
    data = bytes(byte for byte in range(256) if byte not in b"\x03\x1a\x1c")
    text = f"stty raw -echo; echo ready; head -c {len(data) + 1} | od -An -tu1 -v -w256"
    channel = anywhere.start("sh", "-c", text, tty=SIZE, stdin=True)
    read_until(anywhere, channel, b"ready")
    anywhere.stdin(channel, data)
    anywhere.send(EOF, channel)
    words = anywhere.finish(channel).out.split()[1:]
    assert [int(word) for word in words] == [*data, 4]


def test_nobody_types_without_stdin(anywhere: Agent) -> None:
    channel = anywhere.start("cat", tty=SIZE)
    anywhere.wait(channel, STARTED)
    anywhere.sync()
    assert not anywhere.channels[channel].of(EXITED)
    assert anywhere.kill(channel) == 0
    assert anywhere.finish(channel).exit == (1, 9)


def test_an_interrupt_can_be_typed(anywhere: Agent) -> None:
    channel = anywhere.start("sh", "-c", "echo ready; exec sleep 1000", tty=SIZE, stdin=True)
    read_until(anywhere, channel, b"ready")
    anywhere.stdin(channel, b"\x03")
    assert anywhere.finish(channel).exit == (1, 2)


def test_what_comes_after_the_last_holder_is_thrown_away(agent: Agent) -> None:
    text = "echo ready; exec <&- >&- 2>&-; trap 'exit 7' USR1; while :; do sleep 0.01; done"
    channel = agent.start("sh", "-c", text, tty=SIZE, stdin=True)
    agent.wait(channel, STARTED)
    while not [eof for eof in agent.channels[channel].of(G_EOF) if eof.stream == 1]:
        assert agent.frame() is not None
    agent.stdin(channel, bytes(WINDOW * 2))
    agent.send(EOF, channel)
    agent.send(RESIZE, channel, size(1, 1))
    agent.send(SIGNAL, channel, b"\x0a\x00")
    assert agent.finish(channel).exit == (0, 7)


# ---- sizes ----

WATCHER = """
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
print("ready", flush=True)
for _ in range(2):
    signal.sigwait([signal.SIGWINCH])
    print(*os.get_terminal_size(1), flush=True)
"""


def test_a_new_size_is_told(anywhere: Agent) -> None:
    channel = anywhere.start("python3", "-c", WATCHER, tty=SIZE)
    read_until(anywhere, channel, b"ready\r\n")
    anywhere.send(RESIZE, channel, size(65535, 1))
    read_until(anywhere, channel, b"1 65535\r\n")
    anywhere.send(RESIZE, channel, size(24, 80))
    outcome = anywhere.finish(channel)
    assert outcome.out.endswith(b"ready\r\n1 65535\r\n80 24\r\n")
    anywhere.send(RESIZE, channel, size(1, 1))  # for a channel that has ended: ignored
    assert anywhere.sync() == []


def test_a_new_size_is_told_to_a_job_in_the_foreground(anywhere: Agent) -> None:
    text = 'set -m; python3 -c "$0"; echo over'
    channel = anywhere.start("sh", "-c", text, WATCHER, tty=SIZE)
    read_until(anywhere, channel, b"ready\r\n")
    anywhere.send(RESIZE, channel, size(2, 3))
    read_until(anywhere, channel, b"3 2\r\n")
    anywhere.send(RESIZE, channel, size(4, 5))
    assert anywhere.finish(channel).out.endswith(b"5 4\r\nover\r\n")


@pytest.mark.parametrize("wrong", [size(0, 1), size(1, 0)], ids=["rows", "columns"])
def test_a_terminal_has_a_size(agent: Agent, wrong: bytes) -> None:
    channel = agent.start("cat", tty=SIZE)
    agent.wait(channel, STARTED)
    agent.send(RESIZE, channel, wrong)
    assert "size" in agent.broken()


def test_only_a_terminal_has_a_size(agent: Agent) -> None:
    channel = agent.start("sleep", "1000", stdin=True)
    agent.wait(channel, STARTED)
    agent.send(RESIZE, channel, size(1, 1))
    assert "terminal" in agent.broken()


# ---- flow and end ----


def test_much_output_comes_whole(anywhere: Agent) -> None:
    assert anywhere.run("head", "-c", "1000000", "/dev/zero", tty=SIZE).out == bytes(1_000_000)


def test_output_stops_without_credit(agent: Agent) -> None:
    channel = agent.start("head", "-c", "1000000", "/dev/zero", tty=SIZE)
    while len(agent.channels[channel].out) < WINDOW:
        agent.frame()
    assert agent.run("echo", "another", tty=SIZE).out == b"another\r\n"
    assert agent.sync() == []
    assert len(agent.channels[channel].out) == WINDOW
    agent.credit(channel, 1_000_000)
    assert len(agent.finish(channel, grant=False).out) == 1_000_000


def test_who_is_left_behind_keeps_the_output_open(anywhere: Agent) -> None:
    text = "trap '' HUP; (head -c 1 >/dev/null; echo late) <&3 & exit 3"
    channel = anywhere.start("sh", "-c", f"exec 3<&0; {text}", tty=SIZE, stdin=True)
    anywhere.wait(channel, EXITED)
    assert not [eof for eof in anywhere.channels[channel].of(G_EOF) if eof.stream == 1]
    anywhere.stdin(channel, b"\n")
    outcome = anywhere.finish(channel)
    assert outcome.out.endswith(b"late\r\n")
    assert outcome.exit == (0, 3)


def test_close_hangs_nobody_up(agent: Agent, fifos: Callable[[], Fifo]) -> None:
    go, done = fifos(), fifos()
    text = 'read go <>"$0"; head -c 1000000 /dev/zero; echo over >"$1"; sleep 1000'
    channel = agent.start("sh", "-c", text, go.path, done.path, tty=SIZE)
    agent.wait(channel, STARTED)
    agent.send(CLOSE, channel)
    agent.sync()
    go.send(b"\n")
    assert done.read(5) == b"over\n"
    agent.send(SIGNAL, channel, b"\x09\x00")
    assert agent.finish(channel).frames[-1].type == END


def test_terminals_are_given_back(launch: Launch) -> None:
    agent = launch(nofile="40:40").greet()
    for stdin in (False, True) * 30:
        channel = agent.start("true", tty=SIZE, stdin=stdin)
        assert agent.finish(channel).exit == (0, 0)
    assert agent.run("/nonexistent", tty=SIZE).failure == (5, 2)
    channels = [agent.start("sleep", "1000", tty=SIZE, stdin=True) for _ in range(20)]
    for channel in channels:
        agent.send(KILL, channel)
    failures = {agent.finish(channel).failure for channel in channels}
    assert failures == {None, (2, 24)}
    assert agent.run("true", tty=SIZE).exit == (0, 0)


def test_a_command_that_replaces_ptmx_changes_nothing(each_runtime: Agent) -> None:
    box = each_runtime
    box.run("sh", "-c", "rm /dev/ptmx; mkfifo /dev/ptmx; mv /dev/pts /dev/elsewhere", uid=0, gid=0)
    assert box.run("stty", "size", tty=SIZE).out == b"30 100\r\n"
