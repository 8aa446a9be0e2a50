"""Listing the processes of a box, and the CPU time of a command; also in boxes of real runtimes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.agent.agent_frames import Process
    from tests.guest.agent.agent_host import Agent, Fifo
    from tests.guest.agent.conftest import Launch

EOF, SIGNAL, CLOSE, PROCESSES, CPU = 0x04, 0x06, 0x08, 0x0B, 0x0C
STARTED, EXITED, END, PROCESS, LISTED, G_CPU = 0x82, 0x86, 0x8A, 0x8B, 0x8C, 0x8D
LARGEST = 2**64 - 1


def read_until(agent: Agent, channel: int, word: bytes) -> None:
    while word not in agent.channels[channel].out:
        assert agent.frame() is not None


def started(agent: Agent, channel: int) -> int:
    if not agent.channels[channel].of(STARTED):
        agent.wait(channel, STARTED)
    return agent.channels[channel].of(STARTED)[0].numbers[0]


# ---- PROCESSES ----


def test_an_idle_box_has_none(anywhere: Agent) -> None:
    """But what has ended a moment ago, and is not collected yet."""
    anywhere.run("true")
    assert [process for process in anywhere.processes() if process.state not in "ZX"] == []


def test_what_is_told_of_a_process(anywhere: Agent) -> None:
    channel = anywhere.start(
        "python3", "-c", "x = bytes(40_000_000); print('ready'); input()", stdin=True, label=LARGEST
    )
    other = anywhere.start("cat", stdin=True)
    pid, other_pid = started(anywhere, channel), started(anywhere, other)
    anywhere.stdin(other, b"ready\n")
    read_until(anywhere, other, b"ready")
    anywhere.stdin(channel, b"")
    found = {process.pid: process for process in anywhere.processes()}
    assert set(found) == {pid, other_pid}
    assert (found[pid].label, found[other_pid].label) == (LARGEST, 0)
    cat = found[other_pid]
    assert (cat.uid, cat.threads, cat.name) == (anywhere.uid, 1, b"cat")
    assert cat.state in "SRD"
    assert 50_000 < cat.rss_bytes < 1 << 30


def live(box: Agent) -> list[Process]:
    return [process for process in box.processes() if process.state not in "ZX"]


def test_those_left_behind_keep_their_label(box: Agent, fifos: Callable[[], Fifo]) -> None:
    for label in (7, 8):
        fifo = fifos()
        assert box.run_guest("daemon", fifo.path, label=label).exit == (0, 0)
        fifo.alive(1)
    found = live(box)
    while any(process.parent != 1 for process in found):  # who has made the daemon ends just after it
        found = live(box)
    assert [(process.label, process.parent, process.name) for process in found] == [(7, 1, b"guest"), (8, 1, b"guest")]


def test_a_name_is_told_as_it_is(anywhere: Agent) -> None:
    name = ") S 1 (\n\\"
    text = 'printf "%s" "$0" >/proc/$$/comm; echo ready; read x'
    channel = anywhere.start("sh", "-c", text, name, stdin=True, label=3)
    read_until(anywhere, channel, b"ready")
    (process,) = [process for process in anywhere.processes() if process.label == 3]
    assert process.name == name.encode()
    assert process.parent == (1 if anywhere.boxed else anywhere.process.pid)


def test_zombies_are_told(agent: Agent) -> None:
    text = (
        "import os\nif os.fork() == 0: os._exit(0)\nos.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)\n"
        "print('ready', flush=True)\ninput()"
    )
    channel = agent.start("python3", "-c", text, stdin=True, label=5)
    read_until(agent, channel, b"ready")
    states = {process.state for process in agent.processes() if process.label == 5}
    assert "Z" in states
    assert len(states) == 2


def test_one_listing_at_a_time(agent: Agent) -> None:
    for _ in range(100):
        agent.start("sleep", "1000")
    agent.send_raw(struct.pack("<IBBHI", 0, PROCESSES, 0, 0, 0) * 2)
    assert "PROCESSES" in agent.broken()


def test_other_channels_are_served_during_a_listing(agent: Agent) -> None:
    for _ in range(300):
        agent.start("/bin/sleep", "1000", label=1)
    agent.sync()
    agent.send(PROCESSES)
    quick = agent.start("echo", "meanwhile")
    agent.send(PROCESSES + 1, quick)
    told = 0
    before = None
    while (frame := agent.frame()) is not None and frame.type != LISTED:
        told += frame.type == PROCESS
        if frame.channel == quick and frame.type == STARTED:
            before = told
    assert before is not None
    assert before < told
    assert told >= 300
    assert agent.finish(quick).out == b"meanwhile\n"


def test_a_host_that_does_not_read_gets_it_all_later(agent: Agent) -> None:
    channels = [agent.start("/bin/sleep", "1000", label=number) for number in range(1, 401)]
    agent.wait_all(channels, STARTED)
    busy = agent.start("yes")
    seen = set()
    for _ in range(5):
        seen |= {process.label for process in agent.processes()}
        agent.credit(busy, 100_000)
    assert set(range(1, 401)) <= seen


# ---- CPU ----

BURN = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"


def test_time_of_the_living_and_of_the_waited_for(anywhere: Agent) -> None:
    channel = anywhere.start("sh", "-c", f"{BURN}; echo one; read x; sh -c '{BURN}'; echo two; read x", stdin=True)
    first = anywhere.cpu(channel)
    read_until(anywhere, channel, b"one")
    second = anywhere.cpu(channel)
    anywhere.stdin(channel, b"\n")
    read_until(anywhere, channel, b"two")
    third = anywhere.cpu(channel)
    assert 0 <= first < second < third < 100
    assert second > 0.02
    assert third > second * 1.3
    anywhere.stdin(channel, b"\n")
    outcome = anywhere.finish(channel)
    user, system, _ = outcome.usage
    assert third == pytest.approx((user + system) / 1e6, abs=0.06)


def test_time_of_an_orphan_that_the_agent_has_waited_for(marked: Agent) -> None:
    """Double-forked: no process of the command has it in its own account."""
    text = f"(setsid sh -c '{BURN}; {BURN}; echo gone' &); cat"
    channel = marked.start("sh", "-c", text, stdin=True)
    marked.cpu(channel)
    read_until(marked, channel, b"gone")
    while len([process for process in marked.processes() if process.name == b"sh"]) > 1:
        pass
    assert marked.cpu(channel) > 0.05


def test_an_orphan_is_not_followed_without_a_question(box: Agent) -> None:
    text = f"(setsid sh -c '{BURN}; {BURN}; echo gone' &); cat"
    channel = box.start("sh", "-c", text, stdin=True)
    read_until(box, channel, b"gone")
    while len([process for process in box.processes() if process.name == b"sh"]) > 1:
        pass
    assert box.cpu(channel) < 0.05


def test_commands_have_accounts_of_their_own(anywhere: Agent) -> None:
    idle = anywhere.start("cat", stdin=True)
    busy = anywhere.start("sh", "-c", f"{BURN}; {BURN}; {BURN}; echo done; cat", stdin=True)
    anywhere.cpu(idle)
    anywhere.cpu(busy)
    read_until(anywhere, busy, b"done")
    assert anywhere.cpu(busy) > 0.1 > anywhere.cpu(idle)


def test_each_question_is_answered_once_and_before_the_end(agent: Agent) -> None:
    channel = agent.start("true")
    agent.send_raw(struct.pack("<IBBHI", 0, CPU, 0, 0, channel) * 1000)
    outcome = agent.finish(channel)
    answers = outcome.of(G_CPU)
    assert 0 < len(answers) <= 1000
    assert outcome.frames[-1].type == END
    agent.send(CPU, channel)
    assert agent.sync() == []


def test_questions_are_answered_after_the_exit(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("holder", fifo.path)
    fifo.alive(1)
    agent.wait(channel, EXITED)
    for _ in range(3):
        agent.cpu(channel)
    agent.send_raw(struct.pack("<IBBHI", 0, CPU, 0, 0, channel) * 3)
    agent.send(CLOSE, channel)
    outcome = agent.finish(channel)
    assert len(outcome.of(G_CPU)) == 6


def test_questions_do_not_disturb_many_exits(launch: Launch) -> None:
    agent = launch().greet()
    watched = agent.start("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do (true &); done; cat", stdin=True)
    agent.cpu(watched)
    channels = [agent.start("sh", "-c", "(true &) ; (true &)") for _ in range(50)]
    for channel in channels:
        assert agent.finish(channel).exit == (0, 0)
    agent.send(EOF, watched)
    assert agent.finish(watched).exit == (0, 0)
