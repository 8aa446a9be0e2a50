"""Carrying out a request: ``sandbox.files`` does the work, and a directory takes what is copied into it, as with cp."""

from __future__ import annotations

import errno
import os
import posixpath
from typing import TYPE_CHECKING

from kavach_core.control.wire import Copied, Direction, Request
from kavach_core.files.threads import in_thread
from kavach_core.guest_files import FileKind

if TYPE_CHECKING:
    from kavach_core.files import SandboxFiles, Transferred


async def copy(files: SandboxFiles, request: Request) -> Copied:
    """Copy what a request asks for.

    Cancellation: as for ``SandboxFiles.upload`` and ``download``.

    Raises:
        OSError: what either kernel says.
        KavachError: as ``SandboxFiles`` does.
    """
    if request.direction is Direction.UPLOAD:
        target = await _remote_target(files, request)
        return _copied(target, await files.upload(request.local, target, user=request.user))
    target = await in_thread(_local_target, request)
    return _copied(target, await files.download(request.remote, target, user=request.user))


async def _remote_target(files: SandboxFiles, request: Request) -> str:
    try:
        about = await files.stat(request.remote, user=request.user)
    except FileNotFoundError:
        is_directory = False
    else:
        is_directory = about.kind is FileKind.DIRECTORY
    return _target(request.remote, request.local, request, is_directory=is_directory)


def _local_target(request: Request) -> str:
    return _target(request.local, request.remote, request, is_directory=os.path.isdir(request.local))  # noqa: PTH112 - stays text


def _target(target: str, source: str, request: Request, *, is_directory: bool) -> str:
    """Return the new name of what is copied.

    Raises:
        NotADirectoryError: when it has to be in a directory, and there is none.
    """
    if not is_directory:
        if request.inside:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target)
        return target
    name = posixpath.basename(source.rstrip("/"))
    # What has no name of its own is what is in it, as with cp.
    return target if name in ("", ".", "..") else posixpath.join(target, name)


def _copied(path: str, done: Transferred) -> Copied:
    return Copied(
        path=path,
        files=done.files,
        directories=done.directories,
        symlinks=done.symlinks,
        size=done.size,
        skipped_count=done.skipped_count,
        skipped=done.skipped,
    )
