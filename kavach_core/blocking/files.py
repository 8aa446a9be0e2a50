"""The files of a sandbox, as threads work on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Unpack

import trio

from kavach_core import files
from kavach_core.blocking.calls import call, hold, plain
from kavach_core.blocking.options import as_async
from kavach_core.blocking.process import ReceiveStream, SendStream
from kavach_core.files import FileOptions
from kavach_core.files.arguments import StrPath
from kavach_core.portal import Mirror
from kavach_core.types import User

Data = bytes | bytearray | memoryview | str | Iterable[bytes]


class SandboxFiles(Mirror[files.SandboxFiles]):
    """The files of a live box. Usable by several threads at once.

    See ``kavach_core.files.SandboxFiles``: paths, options and errors are the same.
    """

    read = plain(files.SandboxFiles.read)
    read_text = plain(files.SandboxFiles.read_text)
    list = plain(files.SandboxFiles.list)
    stat = plain(files.SandboxFiles.stat)
    exists = plain(files.SandboxFiles.exists)
    mkdir = plain(files.SandboxFiles.mkdir)
    remove = plain(files.SandboxFiles.remove)
    rename = plain(files.SandboxFiles.rename)
    upload = plain(files.SandboxFiles.upload)
    download = plain(files.SandboxFiles.download)

    def write(
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

        Args:
            path: the file.
            data: bytes, text (as UTF-8), or bytes as they come, iterated in a worker thread.
            mode: permission bits; None leaves them to an old file and gives a new one 0o644.
            append: add to the end.
            create_parents: make the directories that are missing above it.
            options: see ``FileOptions``.

        Raises:
            NotRegularFile: when it is a device, a FIFO or a socket.
        """
        contents = as_async("data", data)
        call(
            self._portal,
            lambda: self._core.write(
                path, contents, mode=mode, append=append, create_parents=create_parents, **options
            ),
        )

    def open_read(
        self, path: StrPath, *, offset: int = 0, user: User | str | int | None = None
    ) -> AbstractContextManager[ReceiveStream]:
        """Open a file to be read piece by piece, however large it is: ``with files.open_read(path) as stream``.

        The stream gives b"" only at the end of the file. Errors are those of ``read``, also when it is read.

        Args:
            path: the file.
            offset: where to begin.
            user: as in ``FileOptions``.
        """
        return self._source(self._core.open_read(path, offset=offset, user=user))

    def open_write(
        self,
        path: StrPath,
        *,
        mode: int | None = None,
        append: bool = False,
        create_parents: bool = False,
        user: User | str | int | None = None,
    ) -> AbstractContextManager[SendStream]:
        """Open a file to be written piece by piece: ``with files.open_write(path) as stream``.

        It is written when the block is left, and is left as it was when that is by an error. Arguments and errors are
        those of ``write``.
        """
        manager = self._core.open_write(path, mode=mode, append=append, create_parents=create_parents, user=user)
        return self._sink(manager)

    @contextmanager
    def _source(self, manager: AbstractAsyncContextManager[trio.abc.ReceiveStream]) -> Iterator[ReceiveStream]:
        with hold(self._portal, manager) as stream:
            yield ReceiveStream(self._portal, stream)

    @contextmanager
    def _sink(self, manager: AbstractAsyncContextManager[trio.abc.SendStream]) -> Iterator[SendStream]:
        with hold(self._portal, manager) as stream:
            yield SendStream(self._portal, stream)
