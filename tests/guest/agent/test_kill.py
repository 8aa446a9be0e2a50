"""KILL and the end of the host: no process of the channel survives, and nobody else is touched."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.agent.conftest import Agent, Fifo

EOF, SIGNAL, KILL, CLOSE, KILL_REST = 0x04, 0x06, 0x07, 0x08, 0x0D
STARTED, EXITED, KILLED, END = 0x82, 0x86, 0x88, 0x8A
MakeFifo = Callable[[], "Fifo"]

# Mode of guest.c, further arguments, and how many processes at least hold the FIFO.
Tree = tuple[str, list[str], int]
OPEN: dict[str, Tree] = {  # these keep the channel open
    "stubborn": ("stubborn", [], 1),
    "stopped": ("stopped", [], 3),
    "headless": ("headless", [], 1),
    "holder": ("holder", [], 1),
}
TREES: dict[str, Tree] = {**OPEN, "daemon": ("daemon", [], 1)}
BOMBS: dict[str, Tree] = {
    "bomb": ("bomb", ["150"], 1),
    "sessionbomb": ("sessionbomb", ["150"], 1),
    "hopper": ("hopper", [], 1),
}


class Bystander:
    """Another channel, which has to live on and work."""

    def __init__(self, agent: Agent, fifo: Fifo) -> None:
        self.agent, self.fifo = agent, fifo
        self.channel = agent.start("cat", stdin=True)
        self.holder = agent.start_guest("stubborn", fifo.path)
        fifo.alive(1)

    def check(self) -> None:
        """Show that it lives and works."""
        assert not self.fifo.all_dead()
        assert not self.agent.channels[self.holder].of(EXITED)
        self.agent.stdin(self.channel, b"alive")
        self.agent.send(EOF, self.channel)
        assert self.agent.finish(self.channel).out == b"alive"


def start_tree(agent: Agent, fifo: Fifo, tree: Tree) -> int:
    mode, rest, holders = tree
    channel = agent.start_guest(mode, fifo.path, *rest)
    agent.wait(channel, STARTED)
    fifo.alive(holders)
    return channel


@pytest.mark.parametrize("tree", OPEN.values(), ids=OPEN.keys())
def test_kill_ends_every_process(agent: Agent, fifo: Fifo, tree: Tree) -> None:
    channel = start_tree(agent, fifo, tree)
    assert agent.kill(channel) == 0
    assert fifo.all_dead()
    assert agent.finish(channel).of(EXITED)


def kill_beside_another(agent: Agent, fifos: MakeFifo, tree: Tree) -> None:
    bystander = Bystander(agent, fifos())
    fifo = fifos()
    mode, rest, holders = tree
    # A parent that stays keeps the channel open whatever the tree does.
    text = '"$@" & exec sleep 1000'
    channel = agent.start("sh", "-c", text, "sh", agent.guest, mode, fifo.path, *rest)
    fifo.alive(holders)
    assert agent.kill(channel) == 0
    assert fifo.all_dead()
    assert agent.finish(channel).exit == (1, 9)
    bystander.check()


@pytest.mark.parametrize("mode", ["stubborn", "stopped", "headless"])
def test_kill_beside_another_channel(agent: Agent, fifos: MakeFifo, mode: str) -> None:
    kill_beside_another(agent, fifos, TREES[mode])


@pytest.mark.parametrize("mode", ["daemon", "holder"])
def test_kill_finds_daemons_by_their_marker(box: Agent, fifos: MakeFifo, mode: str) -> None:
    """Only in a box: plainly, an orphan in a session of its own cannot be told apart."""
    kill_beside_another(box, fifos, TREES[mode])


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside"])
@pytest.mark.parametrize("tree", BOMBS.values(), ids=BOMBS.keys())
def test_kill_beats_fork_bombs(box: Agent, fifos: MakeFifo, tree: Tree, *, alone: bool) -> None:
    bystander = None if alone else Bystander(box, fifos())
    fifo = fifos()
    mode, rest, _ = tree
    text = '"$@" & wait; exec sleep 1000'
    # A user of its own: RLIMIT_NPROC counts all processes of a user.
    fields = {"uid": 2000, "gid": 2000}
    channel = box.start("sh", "-c", text, "sh", box.guest, mode, fifo.path, *rest, **fields)
    fifo.alive(1)
    box.sync()
    assert box.kill(channel) == 0
    assert fifo.all_dead()
    assert box.finish(channel).exit == (1, 9)
    if bystander is not None:
        bystander.check()


@pytest.mark.parametrize(
    "backend",
    [pytest.param("runc", marks=pytest.mark.needs_runc), pytest.param("crun", marks=pytest.mark.needs_crun)],
)
def test_kill_beats_hundreds_that_never_rest(real_boxes: Callable[[str], Agent], backend: str) -> None:
    """Far more than a walk can meet before the agent has to yield the processor to them."""
    box, count = real_boxes(backend), "300"
    bystander = box.start("cat", stdin=True)
    box.run("mkfifo", "-m", "666", "/tmp/fifo")
    text = 'sleep 1000 </tmp/fifo & "$@" & wait; exec sleep 1000'
    channel = box.start("sh", "-c", text, "sh", box.guest, "sessionbomb", "/tmp/fifo", count, uid=2000, gid=2000)
    while len([process for process in box.processes() if process.uid == 2000]) < int(count) // 2:
        pass
    # On a busy machine the agent may be late all the same, and says so; then the bomb is hit by the next one.
    for _ in range(10):
        box.send(KILL, channel)
        if box.wait(channel, KILLED).numbers == (0,):
            break
    assert [process for process in box.processes() if process.uid == 2000 and process.state != "Z"] == []
    assert box.finish(channel).exit == (1, 9)
    box.stdin(bystander, b"alive")
    box.send(EOF, bystander)
    assert box.finish(bystander).out == b"alive"


def test_commands_yield_to_the_agent(box: Agent) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert int(box.run("nice").out) == min(own + 19, 19)


def test_a_stopped_bystander_stays_stopped(box: Agent, fifos: MakeFifo) -> None:
    """Beating a bomb may take stopping the whole box for a moment."""
    bystander = Bystander(box, fifos())
    box.wait_all([bystander.holder], STARTED)
    pid = box.channels[bystander.holder].of(STARTED)[0].numbers[0]
    box.send(SIGNAL, bystander.holder, b"\x13\x00")
    fifo = fifos()
    mode, rest, _ = BOMBS["sessionbomb"]
    text = '"$@" & wait; exec sleep 1000'
    command = ("sh", "-c", text, "sh", box.guest, mode, fifo.path, *rest)
    channel = box.start(*command, uid=2000, gid=2000)
    fifo.alive(1)
    assert box.kill(channel) == 0
    assert fifo.all_dead()
    assert b"\tT (stopped)\n" in box.run("grep", "State", f"/proc/{pid}/status").out
    bystander.check()


def test_kill_after_the_exit_ends_those_left_behind(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("holder", fifo.path)
    agent.wait(channel, EXITED)
    fifo.alive(1)
    assert agent.kill(channel) == 0
    assert fifo.all_dead()
    outcome = agent.finish(channel)
    assert outcome.exit == (0, 0)


def test_kill_spares_what_an_earlier_command_left(box: Agent, fifos: MakeFifo) -> None:
    left, victim = fifos(), fifos()
    assert box.run_guest("daemon", left.path).exit == (0, 0)
    left.alive(1)
    channel = box.start_guest("stubborn", victim.path)
    victim.alive(1)
    assert box.kill(channel) == 0
    assert victim.all_dead()
    assert not left.all_dead()


def test_each_kill_is_answered_once_and_before_the_end(agent: Agent, fifo: Fifo) -> None:
    channel = agent.start_guest("stubborn", fifo.path)
    fifo.alive(1)
    # At once: one that comes after the end is not answered any more.
    agent.send_raw(3 * struct.pack("<IBBHI", 0, KILL, 0, 0, channel))
    outcome = agent.finish(channel)
    assert [frame.numbers for frame in outcome.of(KILLED)] == [(0,)] * 3
    assert outcome.exit == (1, 9)
    assert outcome.frames[-1].type == END


def test_two_channels_are_killed_at_once(agent: Agent, fifos: MakeFifo) -> None:
    pairs = []
    for _ in range(2):
        fifo = fifos()
        pairs.append((agent.start_guest("stopped", fifo.path), fifo))
        fifo.alive(3)
    for channel, _ in pairs:
        agent.send(KILL, channel)
    for channel, fifo in pairs:
        outcome = agent.finish(channel)
        assert [frame.numbers for frame in outcome.of(KILLED)] == [(0,)]
        assert fifo.all_dead()


def test_a_command_can_start_while_another_is_killed(agent: Agent, fifos: MakeFifo) -> None:
    for _ in range(10):
        fifo = fifos()
        victim = agent.start_guest("stopped", fifo.path)
        fifo.alive(3)
        agent.send(KILL, victim)
        survivor = agent.start("echo", "unharmed")
        assert agent.finish(survivor).out == b"unharmed\n"
        agent.finish(victim)
        assert fifo.all_dead()


def test_a_name_cannot_pose_as_groups(box: Agent, fifos: MakeFifo) -> None:
    bystander = Bystander(box, fifos())
    fifo = fifos()
    name = "\nGroups:\t64600"
    text = 'printf "%s" "$2" > /proc/self/comm; exec 3>"$0"; echo r >&3; read x; read y'
    channel = box.start("sh", "-c", text, fifo.path, "", name, stdin=True)
    fifo.alive(1)
    assert box.kill(channel) == 0
    assert fifo.all_dead()
    bystander.check()


def test_the_marker_cannot_be_dropped(box: Agent, fifos: MakeFifo) -> None:
    """Neither by an unprivileged user nor in a user namespace, and KILL finds it there too."""
    for user in (0, 1000):
        bystander = Bystander(box, fifos())
        fifo = fifos()
        channel = box.start_guest("escape", fifo.path, uid=user, gid=user)
        fifo.alive(1)
        while b"dropped=" not in box.channels[channel].out:
            assert box.frame() is not None
        assert "dropped=0 groups=1" in box.channels[channel].out.decode()
        assert box.kill(channel) == 0
        assert fifo.all_dead()
        bystander.check()


def test_markers_of_living_processes_are_not_used_again(box: Agent, fifos: MakeFifo) -> None:
    """More commands than slots, while daemons of the first two live on."""
    left = [fifos(), fifos()]
    for fifo in left:
        assert box.run_guest("daemon", fifo.path).exit == (0, 0)
        fifo.alive(1)
    for _ in range(1020):
        box.run("/bin/true")
    seen = set()
    waiting = []
    for _ in range(20):
        channel = box.start("sh", "-c", "id -G; cat", stdin=True)
        while b"\n" not in box.channels[channel].out:
            box.frame()
        seen.add(box.channels[channel].out)
        waiting.append(channel)
    assert len(seen) == 20
    assert not seen & {b"1000 64512\n", b"1000 64513\n"}
    victim = fifos()
    channel = box.start_guest("stubborn", victim.path)
    victim.alive(1)
    assert box.kill(channel) == 0
    assert not any(fifo.all_dead() for fifo in left)


# ---- the end of the host ----


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_the_end_of_stdin_kills_everything(agent: Agent, fifo: Fifo, tree: Tree) -> None:
    start_tree(agent, fifo, tree)
    assert agent.hang_up() == 0
    assert fifo.all_dead()


@pytest.mark.parametrize("tree", BOMBS.values(), ids=BOMBS.keys())
def test_the_end_of_stdin_kills_bombs(box: Agent, fifo: Fifo, tree: Tree) -> None:
    start_tree(box, fifo, tree)
    assert box.hang_up() == 0
    assert fifo.all_dead()


def test_the_end_of_stdin_counts_while_output_is_stuck(agent: Agent, fifo: Fifo) -> None:
    agent.start_guest("stubborn", fifo.path)
    fifo.alive(1)
    for _ in range(8):
        agent.start("yes")
    agent.sync()
    assert agent.hang_up() == 0
    assert fifo.all_dead()


def test_a_host_that_stops_reading_is_gone(agent: Agent, fifo: Fifo) -> None:
    agent.start_guest("stubborn", fifo.path)
    fifo.alive(1)
    assert agent.process.stdout is not None
    agent.process.stdout.close()
    assert agent.process.wait(30) == 0
    assert fifo.all_dead()


# ---- what a channel that has ended has left behind ----


def test_kill_rest_ends_those_left_behind(box: Agent, fifos: MakeFifo) -> None:
    bystander, left = Bystander(box, fifos()), fifos()
    channel = box.start_guest("daemon", left.path)
    assert box.finish(channel).exit == (0, 0)
    assert not left.all_dead()
    assert box.kill_rest(channel) == 0
    assert left.all_dead()
    assert box.kill_rest(channel) == 0
    bystander.check()


def test_kill_rest_of_what_has_left_nobody(agent: Agent) -> None:
    channel = agent.start("true")
    agent.finish(channel)
    assert agent.kill_rest(channel) == 0
    failed = agent.start("/nowhere")
    assert agent.finish(failed).failure is not None
    assert agent.kill_rest(failed) == 0


def test_kill_rest_after_close(box: Agent, fifos: MakeFifo) -> None:
    """What was closed and still writes is found as well."""
    fifo = fifos()
    channel = box.start("sh", "-c", '"$@" & exit 0', "sh", box.guest, "stubborn", fifo.path)
    box.wait(channel, EXITED)
    fifo.alive(1)
    box.send(CLOSE, channel)
    box.wait(channel, END)
    assert not fifo.all_dead()
    assert box.kill_rest(channel) == 0
    assert fifo.all_dead()


def test_kill_rest_of_a_live_channel_is_an_error(agent: Agent) -> None:
    channel = agent.start("sleep", "1000")
    agent.wait(channel, STARTED)
    agent.send(KILL_REST, channel)
    assert "has not ended" in agent.broken()


def test_channels_stay_findable_after_kill_rest(box: Agent, fifos: MakeFifo) -> None:
    """The agent finds channels by their order, into which one comes back."""
    left = fifos()
    first = box.start_guest("daemon", left.path)
    assert box.finish(first).exit == (0, 0)
    others = [box.start("cat", stdin=True) for _ in range(3)]
    assert box.kill_rest(first) == 0
    for channel in others:
        box.stdin(channel, b"alive")
        box.send(EOF, channel)
        assert box.finish(channel).out == b"alive"
