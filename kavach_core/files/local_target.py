"""A place on the host where a tree from a box is made. Plain blocking code: it runs in a worker thread.

The tree is hostile, whoever hands it over. Each name is made with ``O_EXCL`` or its like, relative to the
descriptor of a directory that was made here before, so no link is ever followed: neither one of the tree nor
one of the host. All is made under a hidden name beside its place, and moved there when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Never

from attrs import frozen

from kavach_core.errors import FileOperationFailed, FileTooLarge, NotRegularFile
from kavach_core.files.links import stays_inside
from kavach_core.files.removal import remove_tree
from kavach_core.files.transferred import MAX_DEPTH, Tally
from kavach_core.guest_files import FileKind, TreeEntry, TreeEvent, TreeMark

_MAX_NAME: Final = 255
_MAX_TARGET: Final = 4095
_ORDINARY_BITS: Final = 0o777
_OWNER_BITS: Final = 0o700
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen(kw_only=True)
class Bounds:
    """What a tree may have.

    Attributes:
        max_bytes: bytes of all files together.
        max_entries: names.
        outside_links: make links, too, that lead out of the tree.
    """

    max_bytes: int
    max_entries: int
    outside_links: bool


@frozen
class _Open:
    """A file or a directory that is being made."""

    descriptor: int
    entry: TreeEntry


class LocalTarget:
    """A tree that is being made at ``path``.

    Args:
        path: where it is to be; a regular file there is replaced by a file, an empty directory by a directory.
        bounds: what it may have.

    Attributes:
        tally: what was made so far.

    Raises:
        OSError: when there is no such place.
    """

    def __init__(self, path: str, bounds: Bounds) -> None:
        self.tally = Tally()
        self._path = path
        self._bounds = bounds
        self._hidden = f".kavach-{secrets.token_hex(8)}"
        self._made: FileKind | None = None
        self._directories: list[_Open] = []
        self._file: _Open | None = None
        self._complete = False
        parent, self._name = os.path.split(path.rstrip("/"))
        self._parent = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def apply(self, events: Sequence[TreeEvent]) -> None:
        """Make what comes next.

        Raises:
            OSError: what the host's kernel says.
            NotRegularFile: when something stands in its place that is neither a file nor a directory.
            FileTooLarge: when there is more than the bounds allow.
            FileOperationFailed: when the events are no tree.
        """
        for event in events:
            if isinstance(event, bytes):
                self._write(event)
            elif event is TreeMark.CLOSE:
                self._close_file()
            elif event is TreeMark.UP:
                self._leave()
            else:
                self._add(event)

    def commit(self) -> None:
        """Put the tree in its place.

        Raises:
            OSError: when it cannot be put there.
            FileOperationFailed: when it is not complete.
        """
        if not self._complete:
            self._refuse("it has no end")
        os.rename(self._hidden, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self._made = None

    def close(self) -> None:
        """Let go of it; what was not committed is removed. May be called again.

        Raises:
            OSError: when something cannot be removed.
        """
        for thing in (*self._directories, *([self._file] if self._file else [])):
            os.close(thing.descriptor)
        self._directories.clear()
        self._file = None
        if self._parent < 0:
            return
        try:
            self._remove()
        finally:
            os.close(self._parent)
            self._parent = -1

    def _remove(self) -> None:
        made, self._made = self._made, None
        with contextlib.suppress(FileNotFoundError):
            if made is FileKind.DIRECTORY:
                remove_tree(self._hidden, self._parent)
            elif made is not None:
                os.unlink(self._hidden, dir_fd=self._parent)

    def _refuse(self, what: str) -> Never:
        raise FileOperationFailed(f"what the box sent for {self._path!r} makes no sense: {what}", stage="files")

    def _add(self, entry: TreeEntry) -> None:
        if self._complete or self._file is not None:
            self._refuse("a name where none can be")
        if self.tally.entries >= self._bounds.max_entries:
            message = f"the tree for {self._path!r} has more than {self._bounds.max_entries} names"
            raise FileTooLarge(message, filename=self._path, hint="raise max_entries")
        if not self._directories:
            self._begin(entry)
            return
        if not _is_name(entry.name):
            self._refuse("an impossible name")
        try:
            self._make(entry, entry.name, self._directories[-1].descriptor)
        except FileExistsError:
            self._refuse("a name comes twice")

    def _begin(self, entry: TreeEntry) -> None:
        if entry.name or entry.kind not in (FileKind.FILE, FileKind.DIRECTORY):
            self._refuse("its root is no root")
        self._refuse_occupied(entry.kind)
        self._made = entry.kind  # before it is, so that it cannot be missed
        self._make(entry, os.fsencode(self._hidden), self._parent)

    def _refuse_occupied(self, kind: FileKind) -> None:
        """Check that nothing is lost in the place of the tree but a file in favour of a file."""
        if self._name in ("", ".", ".."):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._path)
        try:
            mode = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            if kind is FileKind.FILE:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
            if any(Path(self._path).iterdir()):
                raise FileExistsError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self._path)
        elif kind is FileKind.DIRECTORY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._path)
        elif not stat.S_ISREG(mode):
            raise NotRegularFile(f"{self._path!r} is no regular file, and is not replaced", filename=self._path)

    def _make(self, entry: TreeEntry, name: bytes, parent: int) -> None:
        match entry.kind:
            case FileKind.FILE:
                self._file = _Open(os.open(name, _NEW_FILE, 0o600, dir_fd=parent), entry)
                self.tally.files += 1
            case FileKind.DIRECTORY:
                self._make_directory(entry, name, parent)
            case FileKind.SYMLINK:
                self._link(entry, parent)
            case _:
                self.tally.skip(self._below(name))

    def _make_directory(self, entry: TreeEntry, name: bytes, parent: int) -> None:
        if len(self._directories) == MAX_DEPTH:
            raise FileTooLarge(f"the tree for {self._path!r} is nested too deeply", filename=self._path)
        os.mkdir(name, _OWNER_BITS, dir_fd=parent)
        self._directories.append(_Open(os.open(name, _DIRECTORY, dir_fd=parent), entry))
        self.tally.directories += 1

    def _link(self, entry: TreeEntry, parent: int) -> None:
        target = entry.target
        if not 0 < len(target) <= _MAX_TARGET or b"\0" in target:
            self._refuse("an impossible link")
        if self._bounds.outside_links or stays_inside(target, len(self._directories) - 1):
            os.symlink(target, entry.name, dir_fd=parent)
            self.tally.symlinks += 1
        else:
            self.tally.skip(self._below(entry.name))

    def _below(self, name: bytes) -> bytes:
        """Return the path of ``name`` below the root of the tree."""
        return b"/".join((*(directory.entry.name for directory in self._directories[1:]), name))

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._refuse("contents of nothing")
        self.tally.size += len(data)
        if self.tally.size > self._bounds.max_bytes:
            message = f"what the box sent for {self._path!r} has more than {self._bounds.max_bytes} bytes"
            raise FileTooLarge(message, filename=self._path, hint="raise max_bytes")
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file.descriptor, rest) :]

    def _close_file(self) -> None:
        if self._file is None:
            self._refuse("an end of nothing")
        descriptor, mode = self._file.descriptor, self._file.entry.mode
        os.fchmod(descriptor, mode & _ORDINARY_BITS)
        self._file = None
        os.close(descriptor)
        self._complete = not self._directories

    def _leave(self) -> None:
        """Close a directory. Its owner may always enter and clear it, or nobody could remove it."""
        if self._file is not None or not self._directories:
            self._refuse("an end of nothing")
        directory = self._directories[-1]
        os.fchmod(directory.descriptor, directory.entry.mode & _ORDINARY_BITS | _OWNER_BITS)
        self._directories.pop()
        os.close(directory.descriptor)
        self._complete = not self._directories


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= _MAX_NAME and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
