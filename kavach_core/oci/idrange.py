"""Ranges of host user ids: each box gets 65,536 that no other box and no user of the host has.

A range is taken by an exclusive lock on a file, so it comes free by itself when its owner dies.
"""

from __future__ import annotations

import fcntl
import os

from kavach_core.errors import CreateError

SIZE = 65_536
# Above what distributions give to users, subordinate ids (from 100,000) and most of what systemd-nspawn takes, which
# looks for collisions by itself; below 2**31, where some file systems begin to misread ids.
_FIRST = 0x4000_0000
_COUNT = 8192
_ATTEMPTS = 512


class IdRange:
    """A range of ids that is held until ``release``.

    Attributes:
        first: the host's id for id 0 of the box.
        size: how many ids.
    """

    size = SIZE

    def __init__(self, first: int, lock: int) -> None:
        self.first = first
        self._lock = lock

    @classmethod
    def take(cls, base: str) -> IdRange:
        """Take a free range; the locks are below the directory ``base``.

        Raises:
            CreateError: when none was found.
            OSError: when the locks cannot be made.
        """
        directory = f"{base}/ids"
        os.makedirs(directory, 0o700, exist_ok=True)
        start = int.from_bytes(os.urandom(2), "big")
        for step in range(_ATTEMPTS):
            slot = (start + step) % _COUNT
            lock = _lock(f"{directory}/{slot}")
            if lock is not None:
                return cls(_FIRST + slot * SIZE, lock)
        raise CreateError("no free range of user ids", stage="ids", hint="close some sandboxes")

    def release(self) -> None:
        """Give the range back. May be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def prune(base: str, *, dry_run: bool) -> int:
    """Remove the locks below ``base`` that nobody holds, or with ``dry_run`` only count them. Return how many."""
    directory = f"{base}/ids"
    removed = 0
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        lock = _lock(f"{directory}/{name}")
        if lock is not None:
            if not dry_run:
                os.unlink(f"{directory}/{name}")  # ours, so whoever has opened it meanwhile sees that it has gone
            os.close(lock)
            removed += 1
    return removed


def _lock(path: str) -> int | None:
    """Take the lock ``path``, making the file if need be; None when another has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):  # another's, or pruned between the opening and the lock
        os.close(lock)
        return None
    os.close(lock)
    return None
