"""START: what a command gets, how it is found, how it ends, and every way it can fail to start."""

from __future__ import annotations

import errno
import os
import re
import signal
import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.agent.conftest import Agent, Fifo, Launch

STARTED, G_DATA, EXITED, FAILED, END = 0x82, 0x83, 0x86, 0x87, 0x8A
START, SIGNAL = 0x02, 0x06
ARG, ENV, CWD, UID, GID, GROUP, STDIN, UMASK, TTY, TOOL, LABEL = range(1, 12)
REQUEST, RESOURCES, IDENTITY, DIRECTORY, PROGRAM = range(1, 6)


def tagged(tag: int, value: bytes | int) -> bytes:
    data = struct.pack("<I", value) if isinstance(value, int) else value
    return struct.pack("<BI", tag, len(data)) + data


def script(path: Path, text: str = "", mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_both_outputs_and_the_exit_code(agent: Agent) -> None:
    outcome = agent.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (outcome.out, outcome.err, outcome.exit) == (b"out\n", b"err\n", (0, 3))
    assert outcome.frames[0].type == STARTED
    assert outcome.frames[-1].type == END


@pytest.mark.parametrize("code", [0, 1, 127, 255])
def test_exit_codes(agent: Agent, code: int) -> None:
    assert agent.run("sh", "-c", f"exit {code}").exit == (0, code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, 64])
def test_death_by_its_own_signal(agent: Agent, number: int) -> None:
    assert agent.run("sh", "-c", f"kill -{int(number)} $$").exit == (1, number)


def test_started_tells_the_pid(agent: Agent) -> None:
    outcome = agent.run("sh", "-c", "echo $$")
    assert outcome.of(STARTED)[0].numbers == (int(outcome.out),)


def test_usage_is_the_commands_own(agent: Agent) -> None:
    busy = agent.run("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    user, system, rss = busy.usage
    assert user + system > 10_000
    assert 100_000 < rss < 1 << 32


def test_what_a_command_finds(agent: Agent) -> None:
    out = agent.run_guest("self").out.decode()
    pid = re.search(r"pid (\d+)", out)
    assert pid
    assert f"pid {pid[1]} sid {pid[1]} pgid {pid[1]}\n" in out
    assert "fds 0 1 2\n" in out
    assert "ignored\n" in out
    assert "blocked\n" in out
    assert "umask 22\n" in out
    assert "cwd /\n" in out
    assert "reopen ok\n" in out


def test_ignored_signals_of_whoever_started_the_agent_do_not_reach_commands(
    launch: Launch,
) -> None:
    ignored = {signal.SIGINT, signal.SIGUSR1, signal.SIGTERM}
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        agent = launch()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "ignored\nblocked\n" in agent.greet().run_guest("self").out.decode()


def test_arguments_arrive_byte_for_byte(agent: Agent) -> None:
    arguments = [b"", b"two words", b"-", b"\xff\xfe\n", b"$(id)", b"x" * 100_000, b""]
    outcome = agent.run(agent.guest, "args", *arguments)
    assert outcome.out == b"".join(argument + b"\0" for argument in arguments)


def test_the_environment_is_exactly_the_given_one(agent: Agent) -> None:
    env = [b"A=1", b"EMPTY=", b"TWICE=1", b"TWICE=2", b"EQ==x=", b"BYTES=\xff\n"]
    assert agent.run_guest("env", env=env).out == b"".join(item + b"\0" for item in env)
    assert agent.run_guest("env", env=[]).out == b""


def test_a_start_of_the_largest_size(agent: Agent) -> None:
    # The kernel's own limit is 128 KiB for a single argument.
    arguments = [b"y" * 100_000] * 10
    short = agent.request(agent.guest, "args", *arguments)
    arguments.append(b"z" * (1_048_576 - len(short) - 5))
    payload = agent.request(agent.guest, "args", *arguments)
    assert len(payload) == 1_048_576
    outcome = agent.finish(agent.start_payload(payload))
    assert outcome.out == b"".join(argument + b"\0" for argument in arguments)


def test_very_many_arguments(agent: Agent) -> None:
    count = 50_000
    outcome = agent.run(agent.guest, "args", *["a"] * count, env=[b"X=1"] * 1000)
    assert outcome.out == b"a\0" * count
    # As many as a START can hold are more than the kernel takes: its error, not ours.
    fixed = agent.request(agent.guest)
    payload = fixed + tagged(ARG, b"") * ((1_048_576 - len(fixed)) // 5)
    failed = agent.finish(agent.start_payload(payload))
    assert failed.failure in [None, (PROGRAM, errno.E2BIG)]


def test_working_directory_and_umask(agent: Agent, shared: Path) -> None:
    outcome = agent.run_guest("self", cwd=shared, umask=0o27)
    assert f"cwd {shared}\n" in outcome.out.decode()
    assert "umask 27\n" in outcome.out.decode()
    agent.run("sh", "-c", "touch made", cwd=shared, umask=0o77)
    assert (shared / "made").stat().st_mode & 0o777 == 0o600


def test_stdin_is_empty_when_not_asked_for(agent: Agent) -> None:
    assert agent.run_guest("sink").out == b"0 0\n"
    assert agent.run("readlink", "/proc/self/fd/0").out == b"/dev/null\n"


# ---- the search along PATH ----


def path(*folders: Path | str) -> list[bytes]:
    return [b"PATH=" + ":".join(map(str, folders)).encode()]


def test_path_is_searched_in_order(agent: Agent, shared: Path) -> None:
    for name in ("one", "two"):
        (shared / name).mkdir(mode=0o755)
        script(shared / name / "tool", f"#!/bin/sh\necho {name}\n")
    env = path(shared / "none", shared / "two", shared / "one")
    assert agent.run("tool", env=env).out == b"two\n"


def test_without_path_the_default_is_used(agent: Agent) -> None:
    assert agent.run("true", env=[]).exit == (0, 0)


def test_the_path_is_the_requests_own(agent: Agent, shared: Path) -> None:
    assert agent.run("true", env=path(shared)).failure == (PROGRAM, errno.ENOENT)


def test_an_empty_path_element_is_the_working_directory(agent: Agent, shared: Path) -> None:
    script(shared / "here", "#!/bin/sh\necho here\n")
    for env in ([b"PATH=/nowhere:"], [b"PATH=:/nowhere"], [b"PATH=/a::/b"], [b"PATH="]):
        assert agent.run("here", env=env, cwd=shared).out == b"here\n"


def test_a_name_with_a_slash_is_not_searched(agent: Agent, shared: Path) -> None:
    script(shared / "tool", "#!/bin/sh\necho slash\n")
    assert agent.run("./tool", cwd=shared).out == b"slash\n"
    assert agent.run("./tool", cwd="/", env=path(shared)).failure == (PROGRAM, errno.ENOENT)


def test_permission_denied_is_remembered_over_not_found(agent: Agent, shared: Path) -> None:
    (shared / "one").mkdir(mode=0o755)
    script(shared / "one" / "tool", mode=0o644)
    env = path(shared / "one", shared / "two")
    assert agent.run("tool", env=env).failure == (PROGRAM, errno.EACCES)
    script(shared / "tool", "#!/bin/sh\necho found\n")
    assert agent.run("tool", env=path(shared / "one", shared)).out == b"found\n"


def test_an_unknown_format_is_an_error_and_no_script(agent: Agent, shared: Path) -> None:
    script(shared / "tool", "echo never\n")
    assert agent.run("tool", env=path(shared)).failure == (PROGRAM, errno.ENOEXEC)
    assert agent.run(str(shared / "tool")).failure == (PROGRAM, errno.ENOEXEC)


def test_folders_that_are_too_long_are_passed_over(agent: Agent) -> None:
    assert agent.run("true", env=path("/" + "x" * 5000, "/" + "y" * 300, "/bin")).exit == (0, 0)


# ---- the agent's own program ----


def test_the_tool_is_the_agents_own_program(agent: Agent) -> None:
    outcome = agent.run("/nonexistent", "--nothing", env=[], tool=True)
    assert (outcome.exit, outcome.out) == ((0, 2), b"")
    assert outcome.err.startswith(b"kavach-agent: ")
    assert outcome.err.count(b"\n") == 1


def test_a_tool_that_is_none(agent: Agent) -> None:
    assert agent.run("echo", "plain", tool=False, label=2**64 - 1).out == b"plain\n"


# ---- failures ----


def required() -> bytes:
    return tagged(ARG, b"true") + tagged(UID, os.getuid()) + tagged(GID, os.getgid())


BAD_REQUESTS = {
    "empty": b"",
    "no arg": tagged(UID, 0) + tagged(GID, 0),
    "no uid": tagged(ARG, b"true") + tagged(GID, 0),
    "no gid": tagged(ARG, b"true") + tagged(UID, 0),
    "unknown tag": required() + tagged(12, b""),
    "tag 0": required() + tagged(0, b""),
    "tag 255": required() + tagged(255, b"x"),
    "uid twice": required() + tagged(UID, 0),
    "gid twice": required() + tagged(GID, 0),
    "cwd twice": required() + tagged(CWD, b"/") * 2,
    "stdin twice": required() + tagged(STDIN, b"\0") * 2,
    "umask twice": required() + tagged(UMASK, 0) * 2,
    "nul in arg": required() + tagged(ARG, b"a\0b"),
    "nul in env": required() + tagged(ENV, b"A=\0"),
    "nul in cwd": required() + tagged(CWD, b"/\0"),
    "env without equals": required() + tagged(ENV, b"A"),
    "env without name": required() + tagged(ENV, b"=A"),
    "env empty": required() + tagged(ENV, b""),
    "cwd relative": required() + tagged(CWD, b"tmp"),
    "cwd empty": required() + tagged(CWD, b""),
    "uid short": tagged(ARG, b"true") + tagged(UID, b"\0\0\0") + tagged(GID, 0),
    "uid long": tagged(ARG, b"true") + tagged(UID, b"\0" * 5) + tagged(GID, 0),
    "uid -1": tagged(ARG, b"true") + tagged(UID, 0xFFFFFFFF) + tagged(GID, 0),
    "uid of the agent": tagged(ARG, b"true") + tagged(UID, 65520) + tagged(GID, 0),
    "gid -1": tagged(ARG, b"true") + tagged(UID, 0) + tagged(GID, 0xFFFFFFFF),
    "gid first marker": tagged(ARG, b"true") + tagged(UID, 0) + tagged(GID, 64512),
    "gid last marker": tagged(ARG, b"true") + tagged(UID, 0) + tagged(GID, 64512 + 1007),
    "group -1": required() + tagged(GROUP, 0xFFFFFFFF),
    "group a marker": required() + tagged(GROUP, 64600),
    "group short": required() + tagged(GROUP, b"\0"),
    "65 groups": required() + b"".join(tagged(GROUP, number) for number in range(65)),
    "stdin 2": required() + tagged(STDIN, b"\2"),
    "stdin long": required() + tagged(STDIN, b"\1\0"),
    "stdin empty": required() + tagged(STDIN, b""),
    "tool 2": required() + tagged(TOOL, b"\2"),
    "tool long": required() + tagged(TOOL, b"\1\0"),
    "tool twice": required() + tagged(TOOL, b"\0") * 2,
    "label short": required() + tagged(LABEL, 1),
    "label twice": required() + tagged(LABEL, b"12345678") * 2,
    "tty short": required() + tagged(TTY, b"\1\0\1"),
    "tty long": required() + tagged(TTY, b"\1\0\1\0\0"),
    "tty no rows": required() + tagged(TTY, b"\0\0\1\0"),
    "tty no columns": required() + tagged(TTY, b"\1\0\0\0"),
    "tty twice": required() + tagged(TTY, b"\1\0\1\0") * 2,
    "umask large": required() + tagged(UMASK, 0o1000),
    "cut header": required() + b"\1\0\0\0",
    "cut value": required() + b"\1\5\0\0\0abcd",
    "length overflow": required() + b"\1\xff\xff\xff\xffabcd",
}


@pytest.mark.parametrize("payload", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_bad_request_fails_at_stage_1(agent: Agent, payload: bytes) -> None:
    outcome = agent.finish(agent.start_payload(payload))
    assert outcome.failure == (REQUEST, errno.EINVAL)
    assert [frame.type for frame in outcome.frames] == [FAILED, END]
    assert agent.run("true").exit == (0, 0)


def test_a_missing_or_forbidden_working_directory(agent: Agent, shared: Path) -> None:
    (shared / "file").write_text("")
    (shared / "closed").mkdir(mode=0o700)
    assert agent.run("true", cwd=shared / "none").failure == (DIRECTORY, errno.ENOENT)
    assert agent.run("true", cwd=shared / "file").failure == (DIRECTORY, errno.ENOTDIR)
    if agent.boxed:  # decided as the command's user
        assert agent.run("true", cwd=shared / "closed").failure == (DIRECTORY, errno.EACCES)


def test_a_missing_or_forbidden_program(agent: Agent, shared: Path) -> None:
    script(shared / "plain", mode=0o644)
    assert agent.run("/nonexistent").failure == (PROGRAM, errno.ENOENT)
    assert agent.run("no-such-program").failure == (PROGRAM, errno.ENOENT)
    assert agent.run("").failure == (PROGRAM, errno.ENOENT)
    assert agent.run(str(shared / "plain")).failure == (PROGRAM, errno.EACCES)
    assert agent.run(str(shared)).failure == (PROGRAM, errno.EACCES)


def test_failures_leave_nothing_behind(agent: Agent) -> None:
    for _ in range(1200):  # more than there are slots
        agent.start("/nonexistent")
    last = agent.start("true")
    assert agent.finish(last).exit == (0, 0)
    assert all(agent.channels[channel].of(END) for channel in range(1, last))


def test_more_commands_than_slots_one_after_the_other(agent: Agent) -> None:
    for _ in range(1100):
        assert agent.run("/bin/true").exit == (0, 0)


def test_too_few_descriptors_fail_at_stage_2(launch: Launch) -> None:
    agent = launch(nofile="64:64").greet()
    channels = [agent.start("cat", stdin=True) for _ in range(30)]
    agent.wait_all(channels[:10], STARTED)
    failures = set()
    for channel in channels[10:]:
        if not agent.channels[channel].frames:
            while not agent.channels[channel].frames:
                agent.frame()
        failures.add(agent.channels[channel].failure)
    assert (RESOURCES, errno.EMFILE) in failures
    assert failures <= {None, (RESOURCES, errno.EMFILE)}


def test_the_descriptor_limit_of_commands_is_the_boxs(launch: Launch) -> None:
    agent = launch(nofile="64:1024").greet()
    waiting = [agent.start("cat", stdin=True) for _ in range(60)]
    agent.wait_all(waiting, STARTED)  # 180 descriptors: the agent has raised its own limit
    assert "nofile 64\n" in agent.run_guest("self").out.decode()


# ---- signals ----


@pytest.mark.parametrize("number", [1, 9, 15, 64])
def test_signal_to_the_first_process(agent: Agent, fifo: Fifo, number: int) -> None:
    channel = agent.start("sh", "-c", 'echo r > "$0"; exec sleep 1000', fifo.path)
    fifo.alive(1)
    agent.send(SIGNAL, channel, bytes([number, 0]))
    assert agent.finish(channel).exit == (1, number)


def test_signal_scope(agent: Agent, fifos: object) -> None:
    make = fifos
    assert callable(make)
    leader, member = make(), make()
    text = 'sh -c \'exec 3>"$0"; echo r >&3; exec sleep 1000\' "$1" & '
    text += 'trap "exit 5" USR1; exec 3>"$0"; echo r >&3; wait'
    channel = agent.start("sh", "-c", text, leader.path, member.path)
    leader.alive(1)
    member.alive(2 - 1)
    agent.send(SIGNAL, channel, bytes([signal.SIGUSR1, 0]))
    agent.wait(channel, EXITED)
    assert not member.all_dead()
    agent.kill(channel)
    assert agent.finish(channel).exit == (0, 5)

    second = agent.start("sh", "-c", 'sleep 1000 & exec 3>"$0"; echo r >&3; wait', leader.path)
    leader.alive(1)
    agent.send(SIGNAL, second, bytes([signal.SIGTERM, 1]))
    assert agent.finish(second).exit == (1, signal.SIGTERM)
