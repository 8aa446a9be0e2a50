"""Terminals: a command that has one, and a person's own terminal lent to a shell in a box."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kavach_core as kavach_api
from kavach_core import TerminalSize
from kavach_core.cli.kept_plans import SWITCH
from kavach_core.cli.signals import ENDING
from kavach_core.errors import ConfigError

WAIT_SECONDS = 30


# --- by the interface ---------------------------------------------------------------------------


async def test_a_command_in_a_terminal(backend: str) -> None:
    """All three streams are it, it controls the session, and it is the command's own."""
    script = (
        "test -t 0 && test -t 1 && test -t 2 && echo all; stty size; echo $TERM; echo e >&2; true >/dev/tty; echo $?"
    )
    controls = (
        "0" if backend != "gvisor" else "2"
    )  # its /dev/tty always answers EIO; the terminal controls all the same
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.shell(script, tty=TerminalSize(rows=33, columns=101), timeout=30)
    lines = [line for line in result.stdout.split("\r\n") if "/dev/tty" not in line]
    assert lines == ["all", "33 101", "xterm", "e", controls, ""]
    assert result.stderr == ""


async def test_what_is_typed_and_the_end_of_it(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("cat", tty=True, input="line\n", timeout=30)
        assert (result.outcome, result.stdout) == ("ok", "line\r\nline\r\n")  # the echo, and what cat says
        unread = await sandbox.exec("true", tty=True, timeout=30)
        assert unread.ok


async def test_keys_that_send_signals(backend: str) -> None:
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("sh", "-c", "echo up; exec sleep 1000", tty=True, stdin=True) as process,
    ):
        assert process.stdin is not None
        seen = b""
        async for output in process:
            seen += output.data
            if b"up" in seen:
                break
        await process.stdin.send_all(b"\x03")
        assert (await process.wait()).signal == signal.SIGINT


async def test_a_new_size_is_told(backend: str) -> None:
    script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.1; done"
    async with (
        kavach_api.open_sandbox(backend=backend) as sandbox,
        await sandbox.spawn("sh", "-c", script, tty=True) as process,
    ):
        seen = b""
        async for output in process:
            seen += output.data
            if seen == b"up\r\n":
                await process.resize(rows=7, columns=9)
        assert seen == b"up\r\n7 9\r\n"


@pytest.mark.parametrize("size", [(0, 80), (24, 0), (24, 65536), (-1, 1)])
async def test_a_size_that_cannot_be(size: tuple[int, int]) -> None:
    async with kavach_api.open_sandbox() as sandbox:
        with pytest.raises(ConfigError, match="tty"):
            await sandbox.exec("true", tty=TerminalSize(rows=size[0], columns=size[1]))
        async with await sandbox.spawn("cat", tty=True, stdin=True) as process:
            with pytest.raises(ConfigError, match="tty"):
                await process.resize(rows=size[0], columns=size[1])


async def test_a_kill_and_a_deadline_end_what_has_a_terminal(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.shell("trap '' HUP TERM INT; setsid sleep 1000 & echo up; cat", tty=True, timeout=2)
        assert (result.outcome, result.stdout) == ("timeout", "up\r\n")
        assert await sandbox.processes() == ()


# --- by the command -----------------------------------------------------------------------------


class Person:
    """Somebody at a terminal."""

    def __init__(self, command: list[str | Path], pass_fds: tuple[int, ...] = ()) -> None:
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("<HHHH", 30, 90, 0, 0))
        self.terminal = terminal
        self.before = termios.tcgetattr(terminal)
        self.seen = b""
        self.process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, "TERM": "vt220"},
            pass_fds=pass_fds,
        )

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait_for(self, text: bytes) -> None:
        """Read until ``text`` has been shown."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} was not shown, but {self.seen!r}"
            self.seen += os.read(self.master, 65_536)

    def type_until(self, key: bytes, text: bytes) -> None:
        """Press a key again and again until ``text`` has been shown."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} was not shown, but {self.seen!r}"
            self.type(key)
            if select.select([self.master], [], [], 0.5)[0]:
                self.seen += os.read(self.master, 65_536)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def status(self) -> int:
        """Wait for the command's end."""
        return self.process.wait(WAIT_SECONDS)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.terminal) == self.before

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, columns, 0, 0))
        os.kill(self.process.pid, signal.SIGWINCH)  # the kernel tells only who has it as controlling terminal

    def leave(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.terminal)


Sit = Callable[..., Person]


@pytest.fixture
def sit(kavach: Path) -> Iterator[Sit]:
    """Sit down at a terminal and run ``kavach run`` there."""
    people: list[Person] = []

    def start(*arguments: str) -> Person:
        people.append(Person([kavach, "run", *arguments]))
        return people[-1]

    yield start
    for person in people:
        person.leave()


def test_an_interactive_shell(backend: str, sit: Sit) -> None:
    person = sit("-b", backend, "-it", "--", "sh")
    person.wait_for(b"$ ")
    assert person.is_raw()
    person.type(b"stty size; echo $TERM $((6*7))\r")
    person.wait_for(b"30 90\r\nvt220 42\r\n")
    person.resize(20, 60)
    person.type(b"echo a-nap; sleep 1000\r")
    person.wait_for(b"\na-nap\r\n")
    person.seen = b""
    person.type_until(b"\x03", b"$ ")  # the shell may not have handed the terminal to its child yet
    person.type(b"\r")  # gVisor 20240729 leaves the key in the line besides sending the signal
    person.type(b"stty size; echo still $((1+1))\r")
    person.wait_for(b"20 60\r\nstill 2\r\n")
    person.type(b"exit 7\r")
    assert person.status() == 7
    assert person.is_as_before()


def test_an_interactive_python(sit: Sit) -> None:
    person = sit("-t", "--", "python3", "-q")
    person.wait_for(b">>> ")
    person.type(b"import sys; print(sys.stdin.isatty(), 2**70)\r")
    person.wait_for(b"True 1180591620717411303424\r\n>>> ")  # before it reads, the key would mean something else
    person.type(b"\x04")
    assert person.status() == 0
    assert person.is_as_before()


ENDED_BY = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGALRM,
    signal.SIGXCPU,
    signal.SIGRTMIN,
)


@pytest.mark.parametrize("number", ENDED_BY)
def test_the_terminal_is_restored_when_we_are_asked_to_end(sit: Sit, number: signal.Signals) -> None:
    person = sit("-t", "--", "sh", "-c", "echo up; sleep 1000")
    person.wait_for(b"up")
    assert person.is_raw()
    person.process.send_signal(number)
    assert person.status() == 128 + number
    assert person.is_as_before()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--timeout", "1", "-t", "--", "sleep", "1000"), 124),
        (("-t", "--", "no-such-program"), 127),
        (("-t", "--", "sh", "-c", "kill -9 $$"), 137),
        (("-t", "--output-limit", "64K", "--", "yes"), 137),
        (("-t", "--cpu-timeout", "0.3", "--", "sh", "-c", "while :; do :; done"), 124),
        (("-b", "nothing-like-it", "-t", "--", "sh"), 125),
    ],
)
def test_the_terminal_is_restored_at_every_end(sit: Sit, arguments: tuple[str, ...], status: int) -> None:
    person = sit(*arguments)
    deadline = time.monotonic() + WAIT_SECONDS
    while person.process.poll() is None and time.monotonic() < deadline:
        if select.select([person.master], [], [], 0.05)[0]:
            person.seen += os.read(person.master, 65_536)
    assert person.status() == status
    assert person.is_as_before()


def test_without_a_terminal_of_our_own(run_kavach: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = run_kavach("run", "-it", "--", "sh", "-c", "test -t 0 && read line && echo got $line", stdin=b"word\n")
    assert done.returncode == 0
    assert b"got word\r\n" in done.stdout


# --- with job control ---------------------------------------------------------------------------


JOB = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or the shell could not take its terminal back
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    if sys.argv[1] == "foreground":
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
def tell(what):
    os.write(3, f"{what}\\n".encode())
tell(job)
orders = os.fdopen(4)
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(0, os.getpid())
    tell(f"stopped by {os.WSTOPSIG(status)}")
    where = orders.readline().strip()
    if where == "foreground":
        os.tcsetpgrp(0, job)
    os.kill(job, signal.SIGTERM if where == "end" else signal.SIGCONT)
    if where == "end":
        os.kill(job, signal.SIGCONT)
tell(f"ended with {os.waitstatus_to_exitcode(status)}")
"""


class Shell(Person):
    """A small shell with job control, which has one job."""

    def __init__(self, where: str, command: list[str | Path]) -> None:
        news, tell = os.pipe()
        orders, order = os.pipe()
        wiring = 'exec 3>&"$1" 4<&"$2"; shift 2; exec "$@"'
        shell = [sys.executable, "-c", JOB, where, *command]
        super().__init__(["bash", "-c", wiring, "bash", str(tell), str(orders), *shell], pass_fds=(tell, orders))
        os.close(tell)
        os.close(orders)
        self._news = os.fdopen(news)
        self._order = order
        self.job = int(self.hear())

    def hear(self) -> str:
        """Wait for what the shell has to say of its job."""
        assert select.select([self._news], [], [], WAIT_SECONDS)[0], f"nothing happens; shown was {self.seen!r}"
        return self._news.readline().strip()

    def order(self, what: str) -> None:
        """Let the stopped job go on in the foreground or the background, or end it."""
        os.write(self._order, f"{what}\n".encode())

    def leave(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.job, signal.SIGKILL)
        super().leave()
        self._news.close()
        os.close(self._order)


@pytest.fixture
def job(kavach: Path) -> Iterator[Callable[..., Shell]]:
    """Have ``kavach run`` as the job of a shell."""
    shells: list[Shell] = []

    def start(where: str, *arguments: str) -> Shell:
        shells.append(Shell(where, [kavach, "run", "-b", "crun", *arguments]))
        return shells[-1]

    yield start
    for shell in shells:
        shell.leave()


ECHO = ("sh", "-c", "echo up; read line; echo got $line; sleep 1000")


@pytest.mark.needs_crun
def test_a_stop_gives_the_terminal_back_and_it_is_raw_again_in_the_foreground(job: Callable[..., Shell]) -> None:
    shell = job("foreground", "-it", "--", *ECHO)
    shell.wait_for(b"up")
    assert shell.is_raw()
    os.kill(shell.job, signal.SIGTSTP)
    assert shell.hear() == f"stopped by {int(signal.SIGTSTP)}"
    assert shell.is_as_before()
    shell.order("background")
    assert shell.hear() == f"stopped by {int(signal.SIGTTOU)}", "a terminal is for the foreground"
    assert shell.is_as_before()
    shell.resize(21, 61)
    shell.order("foreground")
    shell.type(b"word\r")
    shell.wait_for(b"got word\r\n")
    assert shell.is_raw()
    os.kill(shell.job, signal.SIGSTOP)
    assert shell.hear() == f"stopped by {int(signal.SIGSTOP)}"
    termios.tcsetattr(shell.terminal, termios.TCSANOW, shell.before)  # as shells do
    shell.order("end")
    assert shell.hear() == "ended with 143"
    assert shell.is_as_before()


@pytest.mark.needs_crun
def test_begun_in_the_background_it_waits_for_the_terminal(job: Callable[..., Shell]) -> None:
    shell = job("background", "-it", "--", *ECHO)
    assert shell.hear() == f"stopped by {int(signal.SIGTTOU)}"
    assert shell.is_as_before()
    shell.order("foreground")
    shell.wait_for(b"up")
    assert shell.is_raw()
    os.kill(shell.job, signal.SIGTERM)
    assert shell.hear() == "ended with 143"
    assert shell.is_as_before()


@pytest.mark.needs_crun
@pytest.mark.parametrize("kept", ["0", "1"])
def test_in_the_background_nothing_is_read(
    job: Callable[..., Shell], kept: str, monkeypatch: pytest.MonkeyPatch, run_kavach: Callable[..., object]
) -> None:
    """Both ways: what is typed is the shell's, and the command goes on instead of being stopped."""
    monkeypatch.setenv(SWITCH, kept)
    run_kavach("run", "-b", "crun", "--", "true")
    shell = job("background", "--", "sh", "-c", "echo up; sleep 1; echo over; exit 7")
    shell.type(b"typed\n")
    assert shell.hear() == "ended with 7"
    shell.wait_for(b"over")
    assert os.read(shell.terminal, 100) == b"typed\n"


# --- ways out -----------------------------------------------------------------------------------


@pytest.mark.needs_crun
def test_a_terminal_that_is_hung_up(kavach: Path, tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    script = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = ["run", "-b", "crun", "-it", "--", "sh", "-c", "echo up; sleep 1000"]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", script, kavach, *command],
            stdin=terminal,
            stdout=terminal,
            stderr=errors,
            start_new_session=True,
        )
    with process:
        os.close(terminal)
        assert select.select([master], [], [], WAIT_SECONDS)[0]
        assert b"up" in os.read(master, 100)
        os.close(master)
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGHUP
    assert (tmp_path / "errors").read_text() == ""


TRY_ALL = """
import os, resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    child = os.fork()
    if not child:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(0)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    elif os.WIFSIGNALED(status):
        print(int(number))
"""


def test_the_signals_that_end_us_are_those_that_would_end_anybody() -> None:
    """But for faults, whose handlers cannot return."""
    done = subprocess.run([sys.executable, "-c", TRY_ALL], check=True, capture_output=True)
    assert set(map(int, done.stdout.split())) == ENDING | {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
    }
