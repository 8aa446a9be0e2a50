"""Ranges of host user ids: each box gets 65,536 that no other box and no user of the host has.

A range is taken by an exclusive lock on a file, so it comes free by itself when its owner dies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from typing import Final

from kavach_core.errors import CreateError
from kavach_core.oci.workspace import base_directory

SIZE: Final = 65_536
# Above what distributions give to users, subordinate ids (from 100,000) and systemd-nspawn (to 1,879,048,191 it
# allocates by hash and checks for collisions); below 2**31, where some file systems begin to misread ids.
_FIRST: Final = 0x4000_0000
_COUNT: Final = 8192
_ATTEMPTS: Final = 512


class IdRange:
    """A range of ids that is held until ``release``.

    Attributes:
        first: the host's id for id 0 of the box.
    """

    def __init__(self, first: int, lock: int) -> None:
        self.first = first
        self._lock = lock

    @classmethod
    def take(cls) -> IdRange:
        """Take a free range.

        Raises:
            CreateError: when none was found.
        """
        directory = base_directory() / "ids"
        directory.mkdir(mode=0o700, exist_ok=True)
        start = secrets.randbelow(_COUNT)
        for step in range(_ATTEMPTS):
            slot = (start + step) % _COUNT
            lock = os.open(directory / str(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return cls(_FIRST + slot * SIZE, lock)
        raise CreateError("no free range of user ids", stage="ids", hint="close some sandboxes")

    def release(self) -> None:
        """Give the range back. May be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
