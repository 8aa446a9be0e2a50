"""A file tool that says whatever a test wants, and the host's end that listens to it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import trio
from kavach_guest.files import AgentFiles

from kavach_core.errors import SandboxGone
from kavach_core.files import SandboxFiles
from kavach_core.types import ExecRequest, GuestExit, User

ENTRY, DATA, CLOSE, UP, FINISHED, FAILED = range(1, 7)
FILE, DIRECTORY, SYMLINK, FIFO = 1, 2, 3, 4
NOBODY = User(uid=65534, gid=65534)
OK = GuestExit(exit_code=0)


def record(type_: int, payload: bytes = b"") -> bytes:
    return struct.pack("<II", len(payload), type_) + payload


def entry(name: bytes = b"", kind: int = FILE, target: bytes = b"", mode: int = 0o644) -> bytes:
    fixed = struct.pack("<HHHHIIIQq", kind, len(name), len(target), 0, mode, 0, 0, 0, 0)
    return record(ENTRY, fixed + name + target)


def data(contents: bytes) -> bytes:
    return record(DATA, contents)


def file(name: bytes, contents: bytes = b"x", mode: int = 0o644) -> bytes:
    return entry(name, mode=mode) + (data(contents) if contents else b"") + record(CLOSE)


def failed(reason: int, path: bytes = b"") -> bytes:
    return record(FAILED, struct.pack("<I", reason) + path)


DONE = record(FINISHED)
TREE = entry(b"", DIRECTORY, mode=0o755)


class Reader(trio.abc.ReceiveStream):
    """What the tool says; after it the end of its output, or nothing any more."""

    def __init__(self, pieces: Iterable[bytes], *, ends: bool, gone: bool) -> None:
        self._pieces = iter(pieces)
        self._ends = ends
        self._gone = gone

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next piece."""
        del max_bytes
        await trio.lowlevel.checkpoint()
        piece = next(self._pieces, b"")
        if not piece and self._gone:
            raise SandboxGone("the box has ended")
        if not piece and not self._ends:
            await trio.sleep_forever()
        return piece

    async def aclose(self) -> None:
        """Do nothing."""


class Writer(trio.abc.SendStream):
    """What the tool hears: so many bytes, and then it has ended or takes nothing any more."""

    def __init__(self, takes: float, *, breaks: bool) -> None:
        self.heard = bytearray()
        self.closed = False
        self._takes = takes
        self._breaks = breaks

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take it, or not."""
        await trio.lowlevel.checkpoint()
        if len(self.heard) + len(data) > self._takes:
            if self._breaks:
                raise trio.BrokenResourceError
            await trio.sleep_forever()
        self.heard += data

    async def wait_send_all_might_not_block(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


class Tool:
    """A file tool that says what it is told to. Starts as often as it is asked to."""

    def __init__(
        self,
        *pieces: bytes,
        ends: bool = True,
        gone: bool = False,
        ended: GuestExit | None = OK,
        takes: float = math.inf,
        breaks: bool = False,
    ) -> None:
        self.pid = 7
        self.killed = False
        self.closed = False
        self.signals: list[int] = []
        self.request: ExecRequest | None = None
        self.stdin: Writer | None = None
        self.stdout = Reader(pieces, ends=ends, gone=gone)
        self._takes, self._breaks = takes, breaks
        self._ended = ended

    async def start(self, request: ExecRequest) -> Any:  # noqa: ANN401 - a GuestProcess as far as it is used
        """Be started."""
        self.request = request
        if request.stdin:
            self.stdin = Writer(self._takes, breaks=self._breaks)
        return self

    async def wait(self) -> GuestExit:
        """End, or never."""
        await trio.lowlevel.checkpoint()
        if self._ended is None and not self.killed:
            await trio.sleep_forever()
        return self._ended or GuestExit(exit_code=None, signal=9)

    async def send_signal(self, number: int) -> None:
        """Be woken."""
        self.signals.append(number)

    async def kill(self) -> None:
        """Be killed."""
        self.killed = True

    async def aclose(self) -> None:
        """Be let go."""
        self.closed = True


def files(tool: Tool) -> SandboxFiles:
    return SandboxFiles(
        AgentFiles(tool.start), cwd="/work", user=NOBODY, sandbox_id="00ff", require_running=lambda: None
    )
