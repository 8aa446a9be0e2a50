"""A second reading of the guest protocol: a host written from the document alone, for these tests.

Every frame that an agent sends in any test passes `Agent._check`, so each test also tests the rules about order,
credit and shape.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import cast

from agent_frames import (
    ARG,
    CPU,
    CREDIT,
    CWD,
    DATA,
    DRAINED,
    END,
    ENV,
    ERROR,
    EXITED,
    FAILED,
    G_CPU,
    G_CREDIT,
    G_DATA,
    G_EOF,
    G_HELLO,
    GID,
    GREETING,
    GROUP,
    HELLO,
    KILL,
    KILL_REST,
    KILLED,
    LABEL,
    LISTED,
    OF_NO_CHANNEL,
    PAYLOAD_SIZES,
    PING,
    PONG,
    PROCESS,
    PROCESSES,
    START,
    STARTED,
    STDIN,
    TOOL,
    TTY,
    UID,
    UMASK,
    WINDOW,
    Frame,
    Outcome,
    Process,
    tagged,
)

DEADLINE = 30.0  # against a hang, far above what anything takes


def kill_tree(pid: int) -> None:
    """Kill a process and, first, its descendants: a box outlives whoever has started it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return
    for child in children:
        kill_tree(int(child))
    os.kill(pid, signal.SIGKILL)


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
        self._reopened: dict[int, int] = defaultdict(int)
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
        """Build the payload of START; `fields` are named as in the document, and `raw` comes last as it is."""
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
        if "tty" in fields:
            parts.append(tagged(TTY, struct.pack("<HH", *cast("tuple[int, int]", fields["tty"]))))
        if "tool" in fields:
            parts.append(tagged(TOOL, b"\x01" if fields["tool"] else b"\x00"))
        if "label" in fields:
            parts.append(tagged(LABEL, struct.pack("<Q", fields["label"])))
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
        allowed = {G_DATA: (1, 2), G_EOF: (1, 2), DRAINED: (1, 2)}.get(frame.type, (0,))
        assert frame.stream in allowed, frame
        assert (frame.channel == 0) == (frame.type in OF_NO_CHANNEL), frame
        if frame.type in OF_NO_CHANNEL:
            self.others.append(frame)
            return
        outcome = self.channels[frame.channel]
        before = outcome.of
        assert not before(END) or frame.type in (KILLED, END), frame
        assert len(before(END)) <= self._reopened[frame.channel], frame
        assert bool(outcome.frames) == (frame.type not in (STARTED, FAILED)), frame
        if frame.type == G_DATA:
            left = self._credit[frame.channel, frame.stream] = self._credit[frame.channel, frame.stream] - len(
                frame.payload
            )
            assert left >= 0, "beyond the credit"
        if frame.type in (G_DATA, G_EOF):
            assert all(eof.stream != frame.stream for eof in before(G_EOF)), "after EOF"
        if frame.type == DRAINED:
            assert before(EXITED), "DRAINED before EXITED"
            assert all(told.stream != frame.stream for told in before(G_EOF, DRAINED)), "DRAINED twice, or after EOF"
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

    def kill_rest(self, channel: int) -> int:
        """Send KILL_REST for a channel that has ended; return what KILLED says, once it has ended again."""
        self._reopened[channel] += 1
        self.send(KILL_REST, channel)
        (remaining,) = self.wait(channel, KILLED).numbers
        self.wait(channel, END)
        return remaining

    def processes(self) -> list[Process]:
        """Ask which processes there are."""
        self.send(PROCESSES)
        found = []
        while (frame := self.frame()) is not None and frame.type != LISTED:
            if frame.type == PROCESS:
                found.append(Process.parse(frame.payload))
        assert frame is not None, f"the agent ended: {self.others} {self.errors()}"
        return found

    def cpu(self, channel: int) -> float:
        """Ask for the seconds of CPU time that the command has used."""
        self.send(CPU, channel)
        (microseconds,) = struct.unpack("<Q", self.wait(channel, G_CPU).payload)
        return float(microseconds) / 1e6

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
