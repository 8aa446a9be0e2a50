"""``sandbox.files``: what callers do with the files of a box."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from typing import Final, TypeVar, Unpack

import trio

from kavach_core.errors import FieldProblem, FileOperationFailed, FileTimeout, FileTooLarge
from kavach_core.files.arguments import (
    DEFAULT_ENTRIES,
    DEFAULT_READ_BYTES,
    DEFAULT_TREE_BYTES,
    Arguments,
    FileOptions,
    StrPath,
)
from kavach_core.files.local_target import Bounds
from kavach_core.files.transfer import receive_tree, send_tree
from kavach_core.files.transferred import Transferred
from kavach_core.guest_files import (
    FileStat,
    GuestFiles,
    ListRequest,
    MkdirRequest,
    PackRequest,
    ReadRequest,
    RemoveRequest,
    RenameRequest,
    StatRequest,
    UnpackRequest,
    WriteRequest,
)
from kavach_core.types import User
from kavach_core.validation import is_encodable

Data = bytes | bytearray | memoryview | str | AsyncIterable[bytes]

S = TypeVar("S")

_NEW_DIRECTORY: Final = 0o755


class SandboxFiles:
    """The files of a live box. Usable by several tasks at once.

    Paths are those of the box; a relative one is relative to the sandbox's working directory. What is done is done by a
    process in the box, as the sandbox's user unless ``user`` says otherwise: its permissions hold, and a link
    leads nowhere but into the box. Each call takes the options of ``FileOptions`` too: ``user`` and
    ``timeout``.

    Everywhere:

    Cancellation: the work in the box has ended, and what it had begun is undone where that is possible,
        before Cancelled leaves the call.

    Raises:
        ConfigError: when an argument is wrong; nothing was started.
        OSError: what the kernel of the box says, as the built-in error for it (FileNotFoundError,
            PermissionError and so
            on), with the path in the box.
        FileTimeout: at the deadline.
        FileOperationFailed: when the work did not come to its end, for example because a process of the same
            user killed it.
        SandboxGone: when the box has ended.
        InvalidTransition: when the sandbox is not running.

    Args:
        files: the box's.
        cwd: the sandbox's working directory.
        user: the sandbox's user.
        sandbox_id: for errors.
        require_running: raises when the sandbox is not running.
    """

    def __init__(
        self, files: GuestFiles, *, cwd: str, user: User, sandbox_id: str, require_running: Callable[[], None]
    ) -> None:
        self._files = files
        self._cwd = cwd
        self._user = user
        self._sandbox_id = sandbox_id
        self._require_running = require_running

    async def read(
        self,
        path: StrPath,
        *,
        offset: int = 0,
        length: int | None = None,
        max_bytes: int = DEFAULT_READ_BYTES,
        **options: Unpack[FileOptions],
    ) -> bytes:
        """Return the contents of a file.

        Args:
            path: the file.
            offset: where to begin.
            length: return at most so many bytes; None for all up to the end.
            max_bytes: more than this is never read.
            options: see ``FileOptions``.

        Raises:
            FileTooLarge: when there are more than ``max_bytes`` to return.
            NotRegularFile: when it is a device, a FIFO or a socket.
        """
        call = self._arguments(options, offset=offset, length=length, max_bytes=max_bytes)
        target = call.path("path", path)
        call.check()
        cut = length is not None and length <= max_bytes
        limit = length if length is not None and cut else max_bytes
        request = ReadRequest(user=call.user, path=target, offset=offset, limit=limit, cut=cut)
        buffer = io.BytesIO()
        with self._watch(call, path):
            async with self._files.read(request) as stream:
                async for piece in stream:
                    buffer.write(piece)
                    if buffer.tell() > limit:
                        raise FileTooLarge(f"{str(path)!r} is larger than allowed", filename=str(path))
        return buffer.getvalue()

    async def read_text(
        self,
        path: StrPath,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        max_bytes: int = DEFAULT_READ_BYTES,
        **options: Unpack[FileOptions],
    ) -> str:
        """Return the contents of a file as text; line ends stay as they are.

        Args:
            path: the file.
            encoding: how it is encoded.
            errors: what to do about bytes that are no text, as in ``bytes.decode``.
            max_bytes: more than this is never read.
            options: see ``FileOptions``.

        Raises:
            UnicodeDecodeError: when it is no such text.
            FileTooLarge: as in ``read``.
            NotRegularFile: as in ``read``.
        """
        return (await self.read(path, max_bytes=max_bytes, **options)).decode(encoding, errors)

    async def write(
        self,
        path: StrPath,
        data: Data,
        *,
        mode: int | None = None,
        append: bool = False,
        create_parents: bool = False,
        **options: Unpack[FileOptions],
    ) -> None:
        """Write a file, which takes the place of an old one in one step when all of it has been written.

        Where that cannot be, the old file itself is overwritten: when ``path`` is a symbolic link, when the file has
        another owner or further names, or when its directory may not be written to; and with ``append`` it is added to.

        Args:
            path: the file.
            data: bytes, text (as UTF-8), or bytes as they come.
            mode: permission bits; None leaves them to an old file and gives a new one 0o644.
            append: add to the end.
            create_parents: make the directories that are missing above it.
            options: see ``FileOptions``.

        Raises:
            NotRegularFile: when it is a device, a FIFO or a socket.
        """
        call = self._arguments(options, mode=mode)
        contents = _checked(call, data)
        request = WriteRequest(
            user=call.user, path=call.path("path", path), mode=mode, append=append, create_parents=create_parents
        )
        call.check()
        with self._watch(call, path):
            async with self._files.write(request) as stream:
                await _send(stream, contents)

    def open_read(
        self, path: StrPath, *, offset: int = 0, user: User | str | int | None = None
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveStream]:
        """Open a file to be read piece by piece, however large it is: ``async with files.open_read(path) as stream``.

        The stream gives b"" only at the end of the file. Errors are those of ``read``, also when it is read.

        Args:
            path: the file.
            offset: where to begin.
            user: as in ``FileOptions``.
        """
        call = self._arguments({"user": user}, offset=offset)
        target = call.path("path", path)
        call.check()
        return self._named(self._files.read(ReadRequest(user=call.user, path=target, offset=offset)))

    def open_write(
        self,
        path: StrPath,
        *,
        mode: int | None = None,
        append: bool = False,
        create_parents: bool = False,
        user: User | str | int | None = None,
    ) -> AbstractAsyncContextManager[trio.abc.SendStream]:
        """Open a file to be written piece by piece: ``async with files.open_write(path) as stream``.

        It is written when the block is left, and is left as it was when that is by an error. Arguments and errors are
        those of ``write``.
        """
        call = self._arguments({"user": user}, mode=mode)
        target = call.path("path", path)
        call.check()
        request = WriteRequest(user=call.user, path=target, mode=mode, append=append, create_parents=create_parents)
        return self._named(self._files.write(request))

    async def list(
        self, path: StrPath = ".", *, max_entries: int = DEFAULT_ENTRIES, **options: Unpack[FileOptions]
    ) -> tuple[FileStat, ...]:
        """Return what is in a directory, sorted by name; symbolic links are told and not followed.

        Args:
            path: the directory.
            max_entries: how many names it may have.
            options: see ``FileOptions``.

        Raises:
            FileTooLarge: when it has more.
        """
        call = self._arguments(options, max_entries=max_entries)
        request = ListRequest(user=call.user, path=call.path("path", path), limit=max_entries)
        call.check()
        with self._watch(call, path):
            found = await self._files.list(request)
        return tuple(sorted(found, key=lambda entry: entry.name))

    async def stat(self, path: StrPath, *, follow_symlinks: bool = True, **options: Unpack[FileOptions]) -> FileStat:
        """Return what is known of a file.

        Args:
            path: the file.
            follow_symlinks: of a symbolic link, tell about what it leads to.
            options: see ``FileOptions``.
        """
        call = self._arguments(options)
        request = StatRequest(user=call.user, path=call.path("path", path), follow_symlinks=follow_symlinks)
        call.check()
        with self._watch(call, path):
            return await self._files.stat(request)

    async def exists(self, path: StrPath, *, follow_symlinks: bool = True, **options: Unpack[FileOptions]) -> bool:
        """Say whether there is such a file; False for a symbolic link that leads nowhere, unless it is not followed.

        Arguments are those of ``stat``. That it may not be looked at is an error and no answer.
        """
        try:
            await self.stat(path, follow_symlinks=follow_symlinks, **options)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def mkdir(
        self,
        path: StrPath,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        mode: int = _NEW_DIRECTORY,
        **options: Unpack[FileOptions],
    ) -> None:
        """Make a directory.

        Args:
            path: the directory.
            parents: make those that are missing above it, with 0o755.
            exist_ok: be content with a directory that is there.
            mode: permission bits.
            options: see ``FileOptions``.
        """
        call = self._arguments(options, mode=mode)
        target = call.path("path", path)
        call.check()
        with self._watch(call, path):
            await self._files.mkdir(
                MkdirRequest(user=call.user, path=target, mode=mode, parents=parents, exist_ok=exist_ok)
            )

    async def remove(
        self,
        path: StrPath,
        *,
        recursive: bool = False,
        missing_ok: bool = False,
        **options: Unpack[FileOptions],
    ) -> None:
        """Remove a file, a symbolic link itself, or a directory.

        Args:
            path: what to remove.
            recursive: a directory with all in it; otherwise it has to be empty.
            missing_ok: be content when it is not there.
            options: see ``FileOptions``.
        """
        call = self._arguments(options)
        request = RemoveRequest(user=call.user, path=call.path("path", path), recursive=recursive)
        call.check()
        with self._watch(call, path):
            try:
                await self._files.remove(request)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    async def rename(self, source: StrPath, target: StrPath, **options: Unpack[FileOptions]) -> None:
        """Give a file another name, in the same file system; what had that name is replaced, as by ``rename(2)``.

        Args:
            source: its name.
            target: its new name.
            options: see ``FileOptions``.
        """
        call = self._arguments(options)
        request = RenameRequest(user=call.user, path=call.path("source", source), target=call.path("target", target))
        call.check()
        with self._watch(call, source):
            await self._files.rename(request)

    async def upload(
        self, local: StrPath, remote: StrPath, *, create_parents: bool = False, **options: Unpack[FileOptions]
    ) -> Transferred:
        """Copy a file or a directory of the host to ``remote``, which is its new name and not the directory around it.

        Permission bits are kept but for the set-id bits, symbolic links are copied as links and not followed, and all
        belongs to the user in the box. A file replaces one that is there. A directory is merged with one that is there;
        otherwise it appears when it is complete.

        Args:
            local: what to copy; not a symbolic link itself.
            remote: its name in the box.
            create_parents: make the directories that are missing above ``remote``.
            options: see ``FileOptions``.

        Raises:
            OSError: also what the host's kernel says about ``local``.
            NotRegularFile: when ``local`` is neither a file nor a directory.
            FileTooLarge: when directories are nested more than 256 deep.
        """
        call = self._arguments(options)
        source = call.local("local", local)
        request = UnpackRequest(user=call.user, path=call.path("remote", remote), create_parents=create_parents)
        call.check()
        with self._watch(call, remote):
            return await send_tree(self._files, request, source)

    async def download(
        self,
        remote: StrPath,
        local: StrPath,
        *,
        max_bytes: int = DEFAULT_TREE_BYTES,
        max_entries: int = DEFAULT_ENTRIES,
        outside_links: bool = False,
        **options: Unpack[FileOptions],
    ) -> Transferred:
        """Copy a file or a directory of the box to ``local``, which is its new name and not the directory around it.

        What comes is taken for hostile: nothing is made but below ``local``, and it appears there when it is
        complete. A file replaces a regular file; a directory must not be there yet, unless it is empty.
        Permission bits are kept but for the set-id and sticky bits, and directories stay open to their owner.
        Devices, FIFOs and sockets are left out.

        Args:
            remote: what to copy; a symbolic link is followed, in the box.
            local: its name on the host.
            max_bytes: how many bytes all files may have.
            max_entries: how many names there may be.
            outside_links: also make symbolic links that are absolute or lead out of the tree: on the host they lead to
                the host's files. Otherwise they are left out.
            options: see ``FileOptions``.

        Raises:
            OSError: also what the host's kernel says about ``local``.
            FileTooLarge: when there is more than allowed, or directories are nested more than 256 deep.
            NotRegularFile: when ``remote``, or what is at ``local``, is neither a file nor a directory.
        """
        call = self._arguments(options, max_bytes=max_bytes, max_entries=max_entries)
        target = call.local("local", local)
        request = PackRequest(user=call.user, path=call.path("remote", remote))
        call.check()
        bounds = Bounds(max_bytes=max_bytes, max_entries=max_entries, outside_links=outside_links)
        with self._watch(call, remote):
            return await receive_tree(self._files, request, target, bounds)

    def _arguments(self, options: FileOptions, **numbers: object) -> Arguments:
        self._require_running()
        return Arguments(cwd=self._cwd, user=self._user, options=options, **numbers)

    @asynccontextmanager
    async def _named(self, opened: AbstractAsyncContextManager[S]) -> AsyncIterator[S]:
        """Say in errors which sandbox it was."""
        try:
            async with opened as stream:
                yield stream
        except FileOperationFailed as error:
            error.sandbox_id = error.sandbox_id or self._sandbox_id
            raise

    @contextmanager
    def _watch(self, call: Arguments, path: StrPath) -> Iterator[None]:
        """Keep to the deadline, and say in errors which sandbox it was."""
        with trio.move_on_after(float("inf") if call.timeout is None else call.timeout) as scope:
            try:
                yield
            except FileOperationFailed as error:
                error.sandbox_id = self._sandbox_id
                raise
        if scope.cancelled_caught:
            message = f"{str(path)!r}: not done within {call.timeout} seconds"
            raise FileTimeout(message, sandbox_id=self._sandbox_id, stage="files")


def _checked(call: Arguments, data: object) -> bytes | bytearray | memoryview | AsyncIterable[bytes]:
    """Return what is to be written, text as UTF-8."""
    if isinstance(data, (bytes, bytearray, memoryview, AsyncIterable)):
        return data
    if isinstance(data, str) and is_encodable(data):
        return data.encode(errors="surrogateescape")
    if isinstance(data, str):
        call.refuse(FieldProblem("data", "contains what is no character", "give it as bytes"))
    else:
        what = f"{type(data).__name__} is neither bytes, nor text, nor gives bytes as they come"
        call.refuse(FieldProblem("data", what))
    return b""


async def _send(stream: trio.abc.SendStream, data: bytes | bytearray | memoryview | AsyncIterable[bytes]) -> None:
    if not isinstance(data, AsyncIterable):
        await stream.send_all(data)
        return
    async with aclosing(data) if isinstance(data, AsyncGenerator) else nullcontext():
        async for piece in data:
            await stream.send_all(piece)
