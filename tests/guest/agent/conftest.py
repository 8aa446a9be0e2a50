"""A second reading of the guest protocol: a host written from the document alone, for these tests.

Every frame that an agent sends in any test passes `Agent._check`, so each test also tests the rules
about order, credit and shape. The agent runs in three ways: as process 1 of a real user and pid
namespace, as it ships and with the address and undefined-behaviour sanitizers, and plain with those.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[2] / "plugins" / "kavach_guest"
SOURCES = PACKAGE / "agent"
DEADLINE = 30.0  # against a hang, far above what anything takes

HELLO, START, DATA, EOF, CREDIT, SIGNAL, KILL, CLOSE, PING = range(1, 10)
G_HELLO, STARTED, G_DATA, G_EOF, G_CREDIT, EXITED, FAILED, KILLED, PONG, END = range(0x81, 0x8B)
ERROR = 0x8F
ARG, ENV, CWD, UID, GID, GROUP, STDIN, UMASK = range(1, 9)
WINDOW = 262_144
GREETING = b"KVCH\x01\x00\x00\x00"
OF_NO_CHANNEL = {G_HELLO, PONG, ERROR}
PAYLOAD_SIZES = {
    G_HELLO: (8, 8),
    STARTED: (4, 4),
    G_DATA: (1, 65536),
    G_EOF: (0, 0),
    G_CREDIT: (4, 4),
    EXITED: (32, 32),
    FAILED: (8, 8),
    KILLED: (4, 4),
    PONG: (0, 64),
    END: (0, 0),
    ERROR: (0, 256),
}


def kill_tree(pid: int) -> None:
    """Kill a process and, first, its descendants: a box outlives whoever has started it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return
    for child in children:
        kill_tree(int(child))
    os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Frame:
    """One frame, either way."""

    type: int
    channel: int = 0
    payload: bytes = b""
    stream: int = 0

    def encode(self) -> bytes:
        """Return it as bytes."""
        header = struct.pack("<IBBHI", len(self.payload), self.type, self.stream, 0, self.channel)
        return header + self.payload

    @property
    def numbers(self) -> tuple[int, ...]:
        """The payload as u32 values."""
        return struct.unpack(f"<{len(self.payload) // 4}I", self.payload)


def tagged(tag: int, value: bytes | int) -> bytes:
    """Encode one field of START."""
    raw = struct.pack("<I", value) if isinstance(value, int) else value
    return struct.pack("<BI", tag, len(raw)) + raw


@dataclass
class Outcome:
    """Everything that came for one channel."""

    frames: list[Frame] = field(default_factory=list)

    def of(self, *types: int) -> list[Frame]:
        """Select by type."""
        return [frame for frame in self.frames if frame.type in types]

    def output(self, stream: int) -> bytes:
        """Join the DATA of one stream."""
        return b"".join(frame.payload for frame in self.of(G_DATA) if frame.stream == stream)

    @property
    def out(self) -> bytes:
        """Standard output."""
        return self.output(1)

    @property
    def err(self) -> bytes:
        """Standard error."""
        return self.output(2)

    @property
    def exit(self) -> tuple[int, int]:
        """Kind (0 exit, 1 signal) and code."""
        (exited,) = self.of(EXITED)
        kind, code = struct.unpack_from("<II", exited.payload)
        return kind, code

    @property
    def usage(self) -> tuple[int, int, int]:
        """User and system time in microseconds, and bytes of memory."""
        (exited,) = self.of(EXITED)
        user, system, rss = struct.unpack_from("<QQQ", exited.payload, 8)
        return user, system, rss

    @property
    def failure(self) -> tuple[int, ...] | None:
        """Stage and errno of FAILED."""
        failed = self.of(FAILED)
        return failed[0].numbers if failed else None


class Agent:
    """A running agent and the host's end of its two pipes."""

    def __init__(self, command: list[str], *, boxed: bool, guest: Path, nofile: str = "") -> None:
        self.boxed = boxed
        self.guest = str(guest)
        self.uid = 1000 if boxed else os.getuid()
        self.gid = 1000 if boxed else os.getgid()
        self.channels: dict[int, Outcome] = defaultdict(Outcome)
        self.others: list[Frame] = []
        self._last = 0
        self._credit: dict[tuple[int, int], int] = defaultdict(lambda: WINDOW)
        self.stdin_credit: dict[int, int] = defaultdict(lambda: WINDOW)
        self._incoming = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by dispose
        limit = ["prlimit", f"--nofile={nofile}"] if nofile else []
        self.process = subprocess.Popen(
            limit + command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=86", "UBSAN_OPTIONS": "print_stacktrace=1"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to = self.process.stdin.fileno()
        self.back = self.process.stdout.fileno()
        os.set_blocking(self.to, False)

    # ---- sending ----

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        end = time.monotonic() + DEADLINE
        view = memoryview(data)
        while view:
            if not select.select([], [self.to], [], max(0.0, end - time.monotonic()))[1]:
                raise AssertionError("the agent does not read")
            view = view[os.write(self.to, view[:65536]) :]

    def send(self, type_: int, channel: int = 0, payload: bytes = b"", stream: int = 0) -> None:
        """Send one frame."""
        self.send_raw(Frame(type_, channel, payload, stream).encode())

    def credit(self, channel: int, amount: int, stream: int = 1) -> None:
        """Grant credit."""
        self._credit[channel, stream] += amount
        self.send(CREDIT, channel, struct.pack("<I", amount), stream)

    def stdin(self, channel: int, data: bytes) -> None:
        """Send within the credit, waiting for more."""
        for at in range(0, len(data), 65536):
            piece = data[at : at + 65536]
            while self.stdin_credit[channel] < len(piece):
                self.wait(channel, G_CREDIT)
            self.stdin_credit[channel] -= len(piece)
            self.send(DATA, channel, piece)

    def request(self, *argv: str | bytes, **fields: object) -> bytes:
        """Build the payload of START; `env`, `cwd`, `uid`, `gid`, `groups`, `stdin`, `umask`, `raw`."""
        parts = [tagged(ARG, os.fsencode(argument)) for argument in argv]
        env = fields.get("env", [b"PATH=/usr/local/bin:/usr/bin:/bin"])
        assert isinstance(env, list)
        parts += [tagged(ENV, variable) for variable in env]
        parts.append(tagged(UID, int(str(fields.get("uid", self.uid)))))
        parts.append(tagged(GID, int(str(fields.get("gid", self.gid)))))
        groups = fields.get("groups", [])
        assert isinstance(groups, list)
        parts += [tagged(GROUP, group) for group in groups]
        if "cwd" in fields:
            parts.append(tagged(CWD, os.fsencode(str(fields["cwd"]))))
        if fields.get("stdin"):
            parts.append(tagged(STDIN, b"\x01"))
        if "umask" in fields:
            parts.append(tagged(UMASK, int(str(fields["umask"]))))
        raw = fields.get("raw", b"")
        assert isinstance(raw, bytes)
        return b"".join(parts) + raw

    def next_channel(self) -> int:
        """Take the next channel number."""
        self._last += 1
        return self._last

    def start_payload(self, payload: bytes) -> int:
        """Send START with any payload."""
        channel = self.next_channel()
        self.send(START, channel, payload)
        return channel

    def start(self, *argv: str | bytes, **fields: object) -> int:
        """Send START; return the channel."""
        return self.start_payload(self.request(*argv, **fields))

    def start_guest(self, *argv: str, **fields: object) -> int:
        """Start a mode of `guest.c`."""
        return self.start(self.guest, *argv, **fields)

    # ---- receiving ----

    def _parse(self) -> Frame | None:
        if len(self._incoming) < 12:
            return None
        length, type_, stream, reserved, channel = struct.unpack_from("<IBBHI", self._incoming)
        assert reserved == 0
        low, high = PAYLOAD_SIZES[type_]
        assert low <= length <= high
        if len(self._incoming) < 12 + length:
            return None
        payload = self._incoming[12 : 12 + length]
        self._incoming = self._incoming[12 + length :]
        return Frame(type_, channel, payload, stream)

    def _check(self, frame: Frame) -> None:
        allowed = {G_DATA: (1, 2), G_EOF: (1, 2)}.get(frame.type, (0,))
        assert frame.stream in allowed, frame
        assert (frame.channel == 0) == (frame.type in OF_NO_CHANNEL), frame
        if frame.type in OF_NO_CHANNEL:
            self.others.append(frame)
            return
        outcome = self.channels[frame.channel]
        before = outcome.of
        assert not before(END), frame
        assert bool(outcome.frames) == (frame.type not in (STARTED, FAILED)), frame
        if frame.type == G_DATA:
            left = self._credit[frame.channel, frame.stream] = self._credit[frame.channel, frame.stream] - len(
                frame.payload
            )
            assert left >= 0, "beyond the credit"
        if frame.type in (G_DATA, G_EOF):
            assert all(eof.stream != frame.stream for eof in before(G_EOF)), "after EOF"
        if frame.type == EXITED:
            assert not before(EXITED), "EXITED twice"
        if frame.type == G_CREDIT:
            (amount,) = frame.numbers
            assert amount > 0
            self.stdin_credit[frame.channel] += amount
        if frame.type == END and not outcome.failure:
            assert before(EXITED), "END before EXITED"
        outcome.frames.append(frame)

    def frame(self) -> Frame | None:
        """Return the next frame, or None at the end of the stream."""
        end = time.monotonic() + DEADLINE
        while (frame := self._parse()) is None:
            if not select.select([self.back], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError("nothing comes from the agent")
            data = os.read(self.back, 1 << 20)
            if not data:
                assert not self._incoming, "a truncated frame"
                return None
            self._incoming += data
        self._check(frame)
        return frame

    def wait(self, channel: int, type_: int) -> Frame:
        """Read until a new frame of this type comes for the channel."""
        while (frame := self.frame()) is not None:
            if frame.channel == channel and frame.type == type_:
                return frame
        raise AssertionError(f"the agent ended: {self.others} {self.errors()}")

    def wait_all(self, channels: list[int], type_: int) -> None:
        """Read until each channel has had a frame of this type."""
        for channel in channels:
            if not self.channels[channel].of(type_):
                self.wait(channel, type_)

    def finish(self, channel: int, *, grant: bool = True) -> Outcome:
        """Read to the END of the channel, granting credit as output comes."""
        outcome = self.channels[channel]
        while not outcome.of(END):
            frame = self.frame()
            assert frame is not None, f"the agent ended: {self.others} {self.errors()}"
            if grant and frame.channel == channel and frame.type == G_DATA:
                self.credit(channel, len(frame.payload), frame.stream)
        return outcome

    def run(self, *argv: str | bytes, **fields: object) -> Outcome:
        """Start and finish a command."""
        return self.finish(self.start(*argv, **fields))

    def run_guest(self, *argv: str, **fields: object) -> Outcome:
        """Start and finish a mode of `guest.c`."""
        return self.run(self.guest, *argv, **fields)

    def sync(self) -> list[Frame]:
        """Return what the agent sent before the answer to a PING made now."""
        token = os.urandom(8)
        self.send(PING, 0, token)
        frames = []
        while (frame := self.frame()) is not None:
            if frame.type == PONG and frame.payload == token:
                return frames
            frames.append(frame)
        raise AssertionError(f"the agent ended: {self.others} {self.errors()}")

    def greet(self) -> Agent:
        """Exchange HELLO."""
        self.send(HELLO, 0, GREETING)
        first = self.frame()
        assert first == Frame(G_HELLO, 0, GREETING)
        return self

    def kill(self, channel: int) -> int:
        """Send KILL; return what KILLED says."""
        self.send(KILL, channel)
        (remaining,) = self.wait(channel, KILLED).numbers
        return remaining

    # ---- the end ----

    def errors(self) -> str:
        """Return what it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def hang_up(self) -> int:
        """Close the agent's stdin and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE)

    def broken(self) -> str:
        """Read to the end of the stream, which has to be an ERROR and exit status 2."""
        while self.frame() is not None:
            pass
        assert self.process.wait(DEADLINE) == 2, self.errors()
        assert self.others[-1].type == ERROR
        assert self.errors() == ""
        return self.others[-1].payload.decode()

    def dispose(self) -> None:
        """End it, whatever state it is in; a healthy one says nothing on its standard error."""
        assert self.process.stdout is not None
        try:
            if self.process.poll() is None:
                assert self.hang_up() == 0, self.errors()
            assert self.errors() == ""
        finally:
            if self.process.poll() is None:
                kill_tree(self.process.pid)
            self.process.wait()
            self.process.stdout.close()
            self.process.stdin.close() if self.process.stdin else None
            self._errors.close()


class Fifo:
    """The proof of life and death: commands hold it open, see `guest.c`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        path.chmod(0o666)
        self._end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def alive(self, count: int) -> None:
        """Wait until that many processes have said that they hold it."""
        while count > 0:
            assert select.select([self._end], [], [], DEADLINE)[0], "nobody holds the FIFO"
            count -= len(os.read(self._end, count))

    def read(self, count: int) -> bytes:
        """Wait for so many bytes."""
        data = b""
        while len(data) < count:
            assert select.select([self._end], [], [], DEADLINE)[0], "nobody writes"
            data += os.read(self._end, count - len(data))
        return data

    def all_dead(self) -> bool:
        """Tell, now, whether no process holds it."""
        try:
            while os.read(self._end, 65536):
                pass
        except BlockingIOError:
            return False
        return True

    def send(self, data: bytes) -> None:
        """Write from outside."""
        with Path(self.path).open("wb", buffering=0) as writer:
            writer.write(data)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._end)


@dataclass(frozen=True)
class Programs:
    """What is compiled once for all tests, in a folder that every user may read."""

    folder: Path
    guest: Path
    box: Path
    agents: dict[str, Path]


def _cc(*arguments: str) -> None:
    subprocess.run(["cc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *arguments], check=True)


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    folder = Path(tempfile.mkdtemp(prefix="kavach-agent-tests-"))
    folder.chmod(0o755)
    agents = {"release": folder / "agent", "sanitized": folder / "agent-sanitized"}
    result = Programs(folder, folder / "guest", folder / "box", agents)
    subprocess.run([sys.executable, str(PACKAGE / "hatch_build.py"), agents["release"]], check=True)
    units = sorted(str(path) for path in SOURCES.glob("*.c") if not path.name.startswith("fuzz_"))
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    _cc("-std=c11", "-Wconversion", *sanitize, *units, "-o", str(agents["sanitized"]))
    _cc("-O1", "-static", "-pthread", str(HERE / "guest.c"), "-o", str(result.guest))
    _cc("-O1", str(HERE / "box.c"), "-o", str(result.box))
    yield result
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def agent_sources() -> Path:
    """The folder of the agent's sources."""
    return SOURCES


@pytest.fixture(scope="session")
def build_script() -> Path:
    """The build hook, which is a command as well."""
    return PACKAGE / "hatch_build.py"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a user namespace of many ids needs root")
PLAIN = [pytest.param(("plain", "sanitized"), id="plain-sanitized")]
BOXED = [
    pytest.param(("boxed", build), id=f"boxed-{build}", marks=[pytest.mark.needs_root, needs_root])
    for build in ("release", "sanitized")
]

Launch = Callable[..., Agent]


def _launch(programs: Programs, way: tuple[str, str]) -> Iterator[Launch]:
    mode, build = way
    boxed = mode == "boxed"
    program = str(programs.agents[build])
    command = [str(programs.box), program] if boxed else [program, "--plain"]
    started: list[Agent] = []

    def launch(*arguments: str, nofile: str = "") -> Agent:
        agent = Agent(command + list(arguments), boxed=boxed, guest=programs.guest, nofile=nofile)
        started.append(agent)
        return agent

    yield launch
    for agent in started:
        agent.dispose()


@pytest.fixture(params=PLAIN + BOXED)
def launch(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Launch]:
    """Start agents that have not been greeted yet."""
    yield from _launch(programs, request.param)


@pytest.fixture
def agent(launch: Launch) -> Agent:
    """One agent after the exchange of HELLO, in each of the three ways."""
    return launch().greet()


@pytest.fixture(params=BOXED)
def launch_box(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Launch]:
    yield from _launch(programs, request.param)


@pytest.fixture
def box(launch_box: Launch) -> Agent:
    """One agent as process 1 of a real box."""
    return launch_box().greet()


@pytest.fixture
def shared(programs: Programs) -> Iterator[Path]:
    """A folder that commands of any user may write to."""
    folder = Path(tempfile.mkdtemp(dir=programs.folder))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def fifos(shared: Path) -> Iterator[Callable[[], Fifo]]:
    """Make FIFOs that commands of any user may open."""
    made: list[Fifo] = []

    def make() -> Fifo:
        made.append(Fifo(shared / f"fifo{len(made)}"))
        return made[-1]

    yield make
    for fifo in made:
        fifo.close()


@pytest.fixture
def fifo(fifos: Callable[[], Fifo]) -> Fifo:
    return fifos()
