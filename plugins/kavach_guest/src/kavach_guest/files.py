"""The files of a box, worked on by the file tool: each call is a short command of its own in the box."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from kavach_core.errors import FileTooLarge
from kavach_core.guest_files import (
    FileStat,
    ListRequest,
    MkdirRequest,
    PackRequest,
    ReadRequest,
    RemoveRequest,
    RenameRequest,
    StatRequest,
    TreeEvent,
    UnpackRequest,
    WriteRequest,
)
from kavach_guest import file_records
from kavach_guest.file_call import FileCall, Start, file_call
from kavach_guest.file_records import MAX_DATA, Entry, RecordViolation

_ALL: Final = 2**64 - 1
_AS_IT_IS: Final = 65_536
"""A mode that is none."""

_LISTING_BYTES: Final = 32 * 1024 * 1024
"""What the names in a directory and the targets of its links may take together."""


class AgentFiles:
    """A GuestFiles that starts the agent's file tool for each call. See ``kavach_core.guest_files.GuestFiles``.

    Args:
        start: starts the agent's own program as a command.
    """

    def __init__(self, start: Start) -> None:
        self._start = start

    async def stat(self, request: StatRequest) -> FileStat:
        """Tell about a file."""
        async with file_call(self._start, request, b"stat", _flag(request.follow_symlinks), request.path) as call:
            entries = await _entries(call, 1)
            if len(entries) != 1 or entries[0].name:
                call.refuse("no answer")
            return entries[0].as_stat(request.path.rstrip(b"/").rpartition(b"/")[2])

    async def list(self, request: ListRequest) -> tuple[FileStat, ...]:
        """List a directory."""
        async with file_call(self._start, request, b"list", _number(request.limit), request.path) as call:
            entries = await _entries(call, request.limit)
            if not all(entry.name for entry in entries):
                call.refuse("a file without a name")
            return tuple(entry.as_stat(entry.name) for entry in entries)

    @asynccontextmanager
    async def read(self, request: ReadRequest) -> AsyncIterator[trio.abc.ReceiveStream]:
        """Open a file for reading."""
        limit = _ALL if request.limit is None else request.limit
        words = (b"read", _number(request.offset), _number(limit), _flag(request.cut), request.path)
        async with file_call(self._start, request, *words) as call:
            source = FileSource(call, limit)
            await source.open()
            yield source

    @asynccontextmanager
    async def write(self, request: WriteRequest) -> AsyncIterator[trio.abc.SendStream]:
        """Open a file for writing."""
        mode = _AS_IT_IS if request.mode is None else request.mode
        words = (b"write", _number(mode), _flag(request.append), _flag(request.create_parents), request.path)
        async with file_call(self._start, request, *words, feed=True) as call:
            yield FileSink(call)
            await call.finish()

    async def mkdir(self, request: MkdirRequest) -> None:
        """Make a directory."""
        words = (b"mkdir", _number(request.mode), _flag(request.parents), _flag(request.exist_ok), request.path)
        async with file_call(self._start, request, *words) as call:
            await _entries(call, 0)

    async def remove(self, request: RemoveRequest) -> None:
        """Remove a file or a directory."""
        async with file_call(self._start, request, b"remove", _flag(request.recursive), request.path) as call:
            await _entries(call, 0)

    async def rename(self, request: RenameRequest) -> None:
        """Rename a file."""
        async with file_call(self._start, request, b"rename", request.path, request.target) as call:
            await _entries(call, 0)

    @asynccontextmanager
    async def pack(self, request: PackRequest) -> AsyncIterator[TreeSource]:
        """Open a tree for reading."""
        async with file_call(self._start, request, b"pack", request.path) as call:
            yield TreeSource(call)

    @asynccontextmanager
    async def unpack(self, request: UnpackRequest) -> AsyncIterator[TreeSink]:
        """Open a place for a tree."""
        words = (b"unpack", _flag(request.create_parents), request.path)
        async with file_call(self._start, request, *words, feed=True) as call:
            yield TreeSink(call)
            await call.finish()


def _flag(value: bool) -> bytes:  # noqa: FBT001 - it is all there is
    return b"1" if value else b"0"


def _number(value: int) -> bytes:
    return b"%d" % value


async def _entries(call: FileCall, limit: int) -> list[Entry]:
    """Receive entries until the tool is done."""
    entries: list[Entry] = []
    size = 0
    while records := await call.receive():
        for record in records:
            if not isinstance(record, Entry) or len(entries) == limit:
                call.refuse("an answer that nobody asked for")
            entries.append(record)
            size += len(record.name) + len(record.target)
        if size > _LISTING_BYTES:
            raise FileTooLarge("the names in the directory are too long to list", filename="")
    return entries


class FileSource(trio.abc.ReceiveStream):
    """The contents of a file. They end only where the tool says that they do.

    Args:
        call: the run of the tool.
        limit: how many bytes may come.
    """

    def __init__(self, call: FileCall, limit: int) -> None:
        self._call = call
        self._left = limit
        self._pieces: deque[bytes] = deque()

    async def open(self) -> None:
        """Wait until the tool has opened the file; errors as for ``receive_some``."""
        records = await self._call.receive()
        if not records or not isinstance(records[0], Entry):
            self._call.refuse("contents of nothing")
        self._take(records[1:])

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes, at least one, or b"" at the end.

        Cancellation: nothing is lost.

        Raises:
            OSError: what the kernel of the box says.
            FileTooLarge: when there is more than was asked for.
            FileOperationFailed: when the file was not sent to its end.
            SandboxGone: when the box has ended.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        if not self._pieces:
            self._take(await self._call.receive())
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if max_bytes is not None and len(piece) > max_bytes:
            self._pieces.appendleft(piece[max_bytes:])
            piece = piece[:max_bytes]
        return piece

    def _take(self, records: Sequence[object]) -> None:
        for record in records:
            if not isinstance(record, bytes):
                self._call.refuse("no contents")
            self._left -= len(record)
            if self._left < 0:
                self._call.refuse("more than was asked for")
            self._pieces.append(record)

    async def aclose(self) -> None:
        """Do nothing: the stream ends with its block."""
        await trio.lowlevel.checkpoint()


class FileSink(trio.abc.SendStream):
    """What becomes the contents of a file."""

    def __init__(self, call: FileCall) -> None:
        self._call = call

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Cancelled, the file will not be written.

        Raises:
            OSError: what the kernel of the box says.
            FileOperationFailed: when the tool has ended.
            SandboxGone: when the box has ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await _send_contents(self._call, data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return: whether it would block is known when it does."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Do nothing: the file is written when the block is left."""
        await trio.lowlevel.checkpoint()


async def _send_contents(call: FileCall, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data).cast("B")
    for start in range(0, len(view), MAX_DATA):
        piece = view[start : start + MAX_DATA]
        await call.send(file_records.data_header(len(piece)), piece)


class TreeSource:
    """A tree as the tool sends it. See ``kavach_core.guest_files.TreeReader``."""

    def __init__(self, call: FileCall) -> None:
        self._call = call

    async def receive(self) -> list[TreeEvent]:
        """Return the next events, none after the last."""
        try:
            return [file_records.as_tree_event(record) for record in await self._call.receive()]
        except RecordViolation as violation:
            self._call.refuse(str(violation))


class TreeSink:
    """A tree as the tool gets it. See ``kavach_core.guest_files.TreeWriter``."""

    def __init__(self, call: FileCall) -> None:
        self._call = call

    async def send(self, events: Sequence[TreeEvent]) -> None:
        """Send the next events."""
        for event in events:
            if isinstance(event, bytes):
                await _send_contents(self._call, event)
            else:
                await self._call.send(file_records.encode_event(event))
