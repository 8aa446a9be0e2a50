"""Removing a tree that was begun, however deep it is, with two descriptors. Plain blocking code."""

from __future__ import annotations

import errno
import os
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Level:
    """A directory on the way down.

    Args:
        name: its name in the one above.
        descriptor: it.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.status = os.fstat(descriptor)
        self.left = os.listdir(descriptor)


def remove_tree(name: str, parent: int) -> None:
    """Remove the directory ``name`` of the directory ``parent`` with all in it. No link is followed.

    Raises:
        OSError: when something cannot be removed, or was moved meanwhile.
    """
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        levels = [_Level(name, descriptor)]
        while True:
            level = levels[-1]
            if level.left:
                child = level.left.pop()
                if not _unlink(child, descriptor):
                    descriptor = _move(descriptor, child)
                    levels.append(_Level(child, descriptor))
                continue
            levels.pop()
            if not levels:
                break
            descriptor = _move(descriptor, "..")
            if not os.path.samestat(os.fstat(descriptor), levels[-1].status):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), level.name)
            os.rmdir(level.name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)


def _unlink(name: str, parent: int) -> bool:
    """Remove what is no directory; False when it is one."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        return False
    return True


def _move(descriptor: int, name: str) -> int:
    """Open a directory beside another and close that."""
    moved = os.open(name, _DIRECTORY, dir_fd=descriptor)
    os.close(descriptor)
    return moved
