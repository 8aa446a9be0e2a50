"""The guest protocol as the document says it, for the host that these tests play: numbers, frames, what came back."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

HELLO, START, DATA, EOF, CREDIT, SIGNAL, KILL, CLOSE, PING, RESIZE, PROCESSES, CPU, KILL_REST = range(1, 14)
G_HELLO, STARTED, G_DATA, G_EOF, G_CREDIT, EXITED, FAILED = range(0x81, 0x88)
KILLED, PONG, END, PROCESS, LISTED, G_CPU, DRAINED = range(0x88, 0x8F)
ERROR = 0x8F
ARG, ENV, CWD, UID, GID, GROUP, STDIN, UMASK, TTY, TOOL, LABEL = range(1, 12)
WINDOW = 262_144
GREETING = b"KVCH\x01\x00\x02\x00"
OF_NO_CHANNEL = {G_HELLO, PONG, PROCESS, LISTED, ERROR}
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
    PROCESS: (41, 105),
    LISTED: (0, 0),
    G_CPU: (8, 8),
    DRAINED: (0, 0),
    ERROR: (0, 256),
}


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


@dataclass(frozen=True)
class Process:
    """The payload of PROCESS."""

    pid: int
    parent: int
    uid: int
    threads: int
    label: int
    cpu_us: int
    rss_bytes: int
    state: str
    name: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Process:
        """Decode it."""
        *numbers, state = struct.unpack_from("<IIIIQQQc", payload)
        return cls(*numbers, state=state.decode(), name=payload[41:])


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
