"""A file or a directory of the host, read as a tree. Plain blocking code: it runs in a worker thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from typing import Final

from kavach_core.errors import FileTooLarge, NotRegularFile
from kavach_core.files.transferred import MAX_DEPTH, Tally
from kavach_core.guest_files import FileKind, TreeEntry, TreeEvent, TreeMark

_PIECE_BYTES: Final = 262_144
_BATCH_BYTES: Final = 1024 * 1024
_BATCH_EVENTS: Final = 1000
_ORDINARY_BITS: Final = 0o777
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Batches = Generator[list[TreeEvent], None, None]
_Events = Generator[TreeEvent, None, None]


def read_tree(path: str, tally: Tally) -> Batches:
    """Give what is at ``path`` in batches of a bounded size. Links are told and not followed.

    Args:
        path: a file or a directory.
        tally: counts what was given.

    Raises:
        OSError: what the host's kernel says.
        NotRegularFile: when ``path`` is neither.
        FileTooLarge: when directories are nested too deeply.
    """
    batch: list[TreeEvent] = []
    size = 0
    for event in _root(path, tally):
        batch.append(event)
        size += len(event) if isinstance(event, bytes) else 0
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_EVENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _root(path: str, tally: Tally) -> _Events:
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            yield _entry(FileKind.DIRECTORY, b"", status)
            yield from _directory(descriptor, b"", tally, depth=1)
        elif stat.S_ISREG(status.st_mode):
            yield _entry(FileKind.FILE, b"", status)
            yield from _contents(descriptor, tally)
        else:
            raise NotRegularFile(f"{path!r} is neither a file nor a directory", filename=path)
    finally:
        os.close(descriptor)


def _entry(kind: FileKind, name: bytes, status: os.stat_result) -> TreeEntry:
    return TreeEntry(kind=kind, name=name, mode=status.st_mode & _ORDINARY_BITS)


def _contents(descriptor: int, tally: Tally) -> _Events:
    tally.files += 1
    while piece := os.read(descriptor, _PIECE_BYTES):
        tally.size += len(piece)
        yield piece
    yield TreeMark.CLOSE


def _directory(descriptor: int, path: bytes, tally: Tally, *, depth: int) -> _Events:
    tally.directories += 1
    if depth > MAX_DEPTH:
        raise FileTooLarge(f"{os.fsdecode(path)!r} is nested too deeply", filename=os.fsdecode(path))
    for name in sorted(map(os.fsencode, os.listdir(descriptor))):
        yield from _child(descriptor, name, b"/".join((path, name) if path else (name,)), tally, depth=depth)
    yield TreeMark.UP


def _child(parent: int, name: bytes, path: bytes, tally: Tally, *, depth: int) -> _Events:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        tally.symlinks += 1
        yield TreeEntry(kind=FileKind.SYMLINK, name=name, target=os.readlink(name, dir_fd=parent))
        return
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        tally.skip(path)
        return
    descriptor = os.open(name, _FLAGS, dir_fd=parent)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            yield _entry(FileKind.DIRECTORY, name, status)
            yield from _directory(descriptor, path, tally, depth=depth + 1)
        elif stat.S_ISREG(status.st_mode):
            yield _entry(FileKind.FILE, name, status)
            yield from _contents(descriptor, tally)
        else:  # exchanged since it was looked at
            tally.skip(path)
    finally:
        os.close(descriptor)
