"""Finding instances whose owners have died, and removing them. Nothing that has a living owner is touched."""

from __future__ import annotations

import fcntl
import os
import time

from kavach_core.reaper import identity, ledger
from kavach_core.reaper.instance import FRESH_PREFIX, OWNER, PREFIX, group_of

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_MAKING_SECONDS = 60
_SWEEP_SECONDS = 5.0
_FRESH_FIELDS = 4


class Remains:
    """An instance whose owner has died.

    Attributes:
        path: its directory.
        owner: who it was, as far as that is known.
        boxes: the boxes that it had, as its ledger has them.
    """

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self._lock = lock
        self.owner, self.boxes = ledger.read(path)

    def remove(self, roots: Sequence[str]) -> list[str]:
        """Remove all of it. Return what is still there, which is left to the next sweep.

        Args:
            roots: mount points of all cgroup hierarchies.
        """
        from kavach_core.reaper.remains import remove_instance_of_the_dead  # noqa: PLC0415 - hardly ever needed

        return remove_instance_of_the_dead(self.path, group=group_of(self.path), roots=roots, seconds=_SWEEP_SECONDS)

    def close(self) -> None:
        """Let go of its lock."""
        if self._lock >= 0:
            os.close(self._lock)


def sweep(base: str, roots: Sequence[str]) -> None:
    """Remove what processes that have died left below ``base``: their boxes' processes, cgroups and files.

    What cannot be removed yet, because the kernel has not let go of it, is left to the next sweep.

    Args:
        base: the directory that all instances share.
        roots: mount points of all cgroup hierarchies.
    """
    for remains in find_remains(base):
        remains.remove(roots)


def find_remains(base: str) -> Iterator[Remains]:
    """Find the instances whose owners have died; each is locked until the next is asked for."""
    for name in os.listdir(base):
        path = f"{base}/{name}"
        lock = _lock_of_the_dead(name, path)
        if lock is None:
            continue
        remains = Remains(path, lock)
        try:
            yield remains
        finally:
            remains.close()


def find_living(base: str) -> Iterator[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]]:
    """Find the instances whose owners live: directory, owner, and boxes by id."""
    for name in os.listdir(base):
        if name.startswith(PREFIX):
            lock = _lock_of_the_dead(name, f"{base}/{name}")
            if lock is None:
                yield f"{base}/{name}", *ledger.read(f"{base}/{name}")
            elif lock >= 0:
                os.close(lock)


def _lock_of_the_dead(name: str, path: str) -> int | None:
    """Take the lock of an instance whose owner has died, -1 if there is none to take; None when he lives."""
    if not name.startswith(PREFIX):
        return -1 if name.startswith(FRESH_PREFIX) and _maker_is_dead(name, path) else None
    try:
        lock = os.open(f"{path}/{OWNER}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        # It has had one, so whoever was removing it was killed, or is about to be done.
        return -1 if os.path.isdir(path) else None
    except OSError:
        return None
    # A process that the owner forked may still hold it, but the boxes were the owner's.
    if _is_free(lock) or identity.is_dead(ledger.read(path)[0]):
        return lock
    os.close(lock)
    return None


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _maker_is_dead(name: str, path: str) -> bool:
    """Say whether the maker of an instance was killed before it had a lock: the name tells who it was."""
    fields = name.removeprefix(FRESH_PREFIX).split("-")
    if len(fields) == _FRESH_FIELDS and fields[1].isdigit() and fields[3] == str(identity.namespace()):
        return str(identity.start_of(int(fields[1]))) != fields[2]
    try:
        return time.time() - os.stat(path).st_mtime > _MAKING_SECONDS
    except FileNotFoundError:
        return False
