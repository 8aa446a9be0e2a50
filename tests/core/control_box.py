"""A box that can be asked for, one who serves it, and one who asks: what tests of the owner's socket share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from kavach_core.control.listening import listen
from kavach_core.control.server import Server
from kavach_core.control.wire import Copied, Direction, Refused, Request, decode_answer, encode_request
from kavach_core.files import Transferred
from kavach_core.guest_files import FileKind

BOX = "0123456789abcdef"
ASKED = Request(box=BOX, direction=Direction.UPLOAD, local="/etc/hosts", remote="x")
DONE = Copied(path="x", files=1, directories=0, symlinks=0, size=5, skipped_count=0)
BOUND_SECONDS = 30

Work = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Do no work."""


class Files:
    """Files of a box that notes what it is asked, and does what a test wants meanwhile."""

    def __init__(self, work: Work = nothing, directories: tuple[str, ...] = ()) -> None:
        self.work = work
        self.directories = directories
        self.calls: list[tuple[str, str, str]] = []
        self.began = trio.Event()
        self.cancelled = trio.Event()

    async def stat(self, path: str, **_: object) -> SimpleNamespace:
        if path not in self.directories:
            raise FileNotFoundError(2, "No such file or directory", path)
        return SimpleNamespace(kind=FileKind.DIRECTORY)

    async def upload(self, local: str, remote: str, **_: object) -> Transferred:
        return await self._do("upload", local, remote)

    async def download(self, remote: str, local: str, **_: object) -> Transferred:
        return await self._do("download", remote, local)

    async def _do(self, *call: str) -> Transferred:
        self.calls.append(call)  # type: ignore[arg-type]  # there are three
        self.began.set()
        try:
            await self.work()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return Transferred(files=1, directories=0, symlinks=0, size=5)


class Box:
    """A box that can be reached."""

    def __init__(self, files: Files, name: str = BOX) -> None:
        self.id = name
        self.files: Any = files


@asynccontextmanager
async def served(directory: Path, files: Files) -> AsyncIterator[str]:
    """Serve a box; give the path of the socket."""
    descriptor, path = listen(str(directory))
    box = Box(files)
    with trio.fail_after(BOUND_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server(descriptor, path, {BOX: box}.get).serve)
            yield path
            nursery.cancel_scope.cancel()
    assert not os.path.exists(path)  # noqa: ASYNC240, PTH110 - it does not block


async def say(path: str, data: bytes) -> bytes:
    """Say something and return all that is answered."""
    async with await trio.open_unix_socket(path) as stream:
        try:
            await stream.send_all(data)
            return b"".join([piece async for piece in stream])
        except trio.BrokenResourceError:
            return b""


async def ask_at(path: str, request: Request = ASKED) -> Copied | Refused:
    return decode_answer(await say(path, encode_request(request)))
