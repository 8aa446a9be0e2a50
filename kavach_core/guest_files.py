"""The contract between core and what works on the files of a box.

Like the rest of the contract for plugins: one frozen request for each call. Paths are bytes, as the kernel of the
box takes them, and absolute. They are resolved inside the box, so a link can lead nowhere else.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import trio
from attrs import frozen

from kavach_core.types import User


class FileKind(enum.StrEnum):
    """What a name in a directory stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character_device"
    BLOCK_DEVICE = "block_device"
    OTHER = "other"


@frozen(kw_only=True)
class FileStat:
    """What is known of a file in a box. All of it is the box's word.

    Attributes:
        name: its name, without the directory.
        kind: what it is.
        mode: permission bits, with the set-id and sticky bits.
        uid: its owner, in the ids of the box.
        gid: its group.
        size: bytes.
        modified_ns: when its contents changed last, in nanoseconds since 1970.
        target: what a symbolic link says, or None.
    """

    name: str
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    modified_ns: int
    target: str | None = None

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return self.kind is FileKind.FILE

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return self.kind is FileKind.DIRECTORY

    @property
    def is_symlink(self) -> bool:
        """True for a symbolic link."""
        return self.kind is FileKind.SYMLINK

    @property
    def modified(self) -> float:
        """When its contents changed last, in seconds since 1970."""
        return self.modified_ns / 1e9


@frozen(kw_only=True)
class FileRequest:
    """What every call says.

    Attributes:
        user: who does it, in the ids of the box; its permissions hold.
        path: absolute path in the box.
    """

    user: User
    path: bytes


@frozen(kw_only=True)
class StatRequest(FileRequest):
    """Ask about a file.

    Attributes:
        follow_symlinks: of a symbolic link, tell about what it leads to.
    """

    follow_symlinks: bool = True


@frozen(kw_only=True)
class ListRequest(FileRequest):
    """List a directory.

    Attributes:
        limit: how many names it may have.
    """

    limit: int


@frozen(kw_only=True)
class ReadRequest(FileRequest):
    """Read a regular file.

    Attributes:
        offset: where to begin.
        limit: how many bytes to read, or None for all.
        cut: stop at the limit; False makes more bytes than that an error.
    """

    offset: int = 0
    limit: int | None = None
    cut: bool = False


@frozen(kw_only=True)
class WriteRequest(FileRequest):
    """Write a regular file.

    Attributes:
        mode: permission bits; None leaves them to an old file and gives a new one 0644.
        append: add to it instead of replacing it.
        create_parents: make the directories that are missing above it.
    """

    mode: int | None = None
    append: bool = False
    create_parents: bool = False


@frozen(kw_only=True)
class MkdirRequest(FileRequest):
    """Make a directory.

    Attributes:
        mode: permission bits.
        parents: make the directories that are missing above it.
        exist_ok: be content with one that is there.
    """

    mode: int
    parents: bool = False
    exist_ok: bool = False


@frozen(kw_only=True)
class RemoveRequest(FileRequest):
    """Remove a file or a directory.

    Attributes:
        recursive: of a directory, with all in it.
    """

    recursive: bool = False


@frozen(kw_only=True)
class RenameRequest(FileRequest):
    """Give a file another name.

    Attributes:
        target: absolute path of the new name.
    """

    target: bytes


@frozen(kw_only=True)
class PackRequest(FileRequest):
    """Send a file or a directory as a tree. A link at ``path`` itself is followed; those in the tree are told."""


@frozen(kw_only=True)
class UnpackRequest(FileRequest):
    """Make a tree at ``path``; one into a directory that is there is merged with it.

    Attributes:
        create_parents: make the directories that are missing above it.
    """

    create_parents: bool = False


@frozen(kw_only=True)
class TreeEntry:
    """A name in a tree. The root comes first and has no name.

    What follows belongs to it: of a file its contents, as ``bytes``, up to ``TreeMark.CLOSE``; of a directory
    what is in it, up to ``TreeMark.UP``; of anything else nothing.

    Attributes:
        kind: what it is.
        name: without the directory.
        mode: permission bits.
        target: what a symbolic link says.
    """

    kind: FileKind
    name: bytes = b""
    mode: int = 0
    target: bytes = b""


class TreeMark(enum.Enum):
    """What ends what an entry has begun."""

    CLOSE = "close"
    UP = "up"


TreeEvent = TreeEntry | TreeMark | bytes
"""One step on the way through a tree, depth first."""


class TreeReader(Protocol):
    """A tree as it comes from a box."""

    async def receive(self) -> Sequence[TreeEvent]:
        """Return what comes next, at least one event, or none after the last.

        Raises:
            OSError: what the kernel of the box said about a file.
            FileOperationFailed: when the tree is not complete, or is none.
            SandboxGone: when the box has ended.
        """


class TreeWriter(Protocol):
    """A tree on its way to a box."""

    async def send(self, events: Sequence[TreeEvent]) -> None:
        """Send what comes next.

        Raises:
            OSError: what the kernel of the box said about a file.
            FileOperationFailed: when it was not taken.
            SandboxGone: when the box has ended.
        """


class GuestFiles(Protocol):
    """The files of one box. Every method may be called by several tasks at once.

    Everywhere: a cancelled call is over in the box, too, when it returns. Errors are what the kernel of the
        box said, as the built-in ``OSError`` for it with the path in the box; FileOperationFailed when it
        could not be done to its end; SandboxGone when the box has ended.
    """

    async def stat(self, request: StatRequest) -> FileStat:
        """Tell about a file."""

    async def list(self, request: ListRequest) -> tuple[FileStat, ...]:
        """List a directory in any order, links not followed.

        Raises:
            FileTooLarge: when it has more names than the limit.
        """

    def read(self, request: ReadRequest) -> AbstractAsyncContextManager[trio.abc.ReceiveStream]:
        """Open a regular file for reading. The stream ends only where the file, or what was asked for, does.

        Raises:
            FileTooLarge: when there are more bytes than the limit; also later, by the stream.
            NotRegularFile: when it is neither a file nor a directory; that is an IsADirectoryError.
        """

    def write(self, request: WriteRequest) -> AbstractAsyncContextManager[trio.abc.SendStream]:
        """Open a regular file for writing. It is written when the block is left; an error there leaves the old file.

        Raises:
            NotRegularFile: when there is something that is neither a file nor a directory; also later.
        """

    async def mkdir(self, request: MkdirRequest) -> None:
        """Make a directory."""

    async def remove(self, request: RemoveRequest) -> None:
        """Remove a file or a directory; of a symbolic link itself."""

    async def rename(self, request: RenameRequest) -> None:
        """Rename, replacing what had the new name, as ``rename(2)``."""

    def pack(self, request: PackRequest) -> AbstractAsyncContextManager[TreeReader]:
        """Open a file or a directory to be read as a tree.

        Raises:
            FileTooLarge: when directories are nested too deeply; also later.
        """

    def unpack(self, request: UnpackRequest) -> AbstractAsyncContextManager[TreeWriter]:
        """Open a place for a tree. It is complete when the block is left; see ``TreeEntry`` for what to send.

        Where nothing was, nothing is there after an error. Merged with a directory that was there, each file
        is complete or is not there.
        """


@runtime_checkable
class FileSession(Protocol):
    """What a session has beside ``Session`` when its backend has the capability ``files``."""

    @property
    def files(self) -> GuestFiles:
        """The files of the box."""
