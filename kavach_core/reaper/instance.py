"""The private directory and cgroup of one process that uses kavach, for as long as it lives.

    BASE/instance-WORD/
        owner      locked by the process for as long as it lives; the kernel lets go of the lock with the process
        ledger     what it has made: see ``ledger``
        bundles/   one directory for each box, named by its id
        state/     what the runtimes keep
    /kavach-WORD   its cgroup, above those of its boxes, in each hierarchy

A watchdog is there before any of this.
"""

from __future__ import annotations

import _thread
import fcntl
import os

from kavach_core.reaper import identity
from kavach_core.reaper.files import make_directory
from kavach_core.reaper.groups import remove_directory
from kavach_core.reaper.ledger import NAME as LEDGER
from kavach_core.reaper.ledger import Ledger
from kavach_core.reaper.watchdog import Watchdog

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "instance-"
FRESH_PREFIX = f".{PREFIX}"
OWNER = "owner"
_GROUP_PREFIX = "kavach-"
_PARTS = ("bundles", "state")
_MODE = 0o711  # the runtime reads bundles with the unprivileged ids of the box
_LAST_ATTEMPT_SECONDS = 3.0


class Instance:
    """What this process has of the host beside its boxes. The watchdog is a child of this process.

    Args:
        base: the directory that all instances share.
        watchdog: path of its program.
        roots: mount points of all cgroup hierarchies.

    Raises:
        OSError: when it cannot be made; nothing of it is left.

    Attributes:
        path: its directory.
        group: name of its cgroup, made by the first box.
        ledger: what its boxes are written into.
    """

    def __init__(self, base: str, *, watchdog: str, roots: Sequence[str]) -> None:
        word = os.urandom(8).hex()
        owner = identity.own()
        self.path = f"{base}/{PREFIX}{word}"
        self.group = group_of(self.path)
        self._roots = roots
        self._lock = -1
        fresh = f"{FRESH_PREFIX}{word}-{owner['pid']}-{owner['start']}-{owner['namespace']}"
        watched = [base, f"{PREFIX}{word}", fresh, self.group, str(owner["pid"]), *roots]
        self._watched = (watchdog, watched)
        self._watchdog = Watchdog(*self._watched)
        self._guarding = _thread.allocate_lock()
        try:
            self._make(f"{base}/{fresh}", owner)
        except OSError:
            if self._lock >= 0:
                os.close(self._lock)
            self._watchdog.dismiss()  # which removes what there is
            raise

    def _make(self, fresh: str, owner: dict[str, object]) -> None:
        make_directory(fresh, _MODE)
        for part in _PARTS:
            make_directory(f"{fresh}/{part}", _MODE)
        self._lock = os.open(f"{fresh}/{OWNER}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.ledger = Ledger(fresh, owner)
        # Under its own name only now: who sees it unlocked may take its owner for dead.
        os.rename(fresh, self.path)
        self.ledger.relocate(self.path)

    def guard(self) -> None:
        """See that there is a watchdog: somebody may have killed it. To be called before anything is made.

        Raises:
            OSError: when there is none and another cannot be started.
        """
        with self._guarding:
            if not self._watchdog.is_alive():
                fallen, self._watchdog = self._watchdog, Watchdog(*self._watched)
                fallen.dismiss()

    @property
    def watchdog_pid(self) -> int:
        """The process that looks after it."""
        return self._watchdog.pid

    @property
    def descriptors(self) -> frozenset[int]:
        """What it keeps open in this process."""
        return frozenset({self._lock, self.ledger.descriptor, *self._watchdog.descriptors})

    def remove(self) -> list[str]:
        """Remove all of it, boxes that are still there included, and see the watchdog off.

        Returns:
            What could not be removed in time. The watchdog goes on trying, and whoever sweeps next.
        """
        left = [] if self._remove_empty() else self._remove_rest()
        self.ledger.close()
        os.close(self._lock)
        self._watchdog.dismiss()
        return left

    def _remove_empty(self) -> bool:
        """Remove it as it is when all its boxes have ended well; False when there is more."""
        for root in self._roots:
            if not remove_directory(f"{root}/{self.group}"):
                return False
        try:
            for name in os.listdir(f"{self.path}/state"):
                os.rmdir(f"{self.path}/state/{name}")  # a runtime's state root
            for part in _PARTS:
                os.rmdir(f"{self.path}/{part}")
            os.unlink(f"{self.path}/{LEDGER}")
            os.unlink(f"{self.path}/{OWNER}")
            os.rmdir(self.path)
        except OSError:
            return False
        return True

    def _remove_rest(self) -> list[str]:
        from kavach_core.reaper.remains import remove_instance_of_the_dead  # noqa: PLC0415 - hardly ever needed

        seconds = _LAST_ATTEMPT_SECONDS
        return remove_instance_of_the_dead(self.path, group=self.group, roots=self._roots, seconds=seconds)

    def abandon(self) -> None:
        """Let go of it in a forked child, whose it is not: neither lock nor pipe must outlive their owner there."""
        self.ledger.close()
        os.close(self._lock)
        self._watchdog.abandon()


def group_of(path: str) -> str:
    """Return the name of the cgroup of the instance whose directory this is."""
    return f"{_GROUP_PREFIX}{path.rpartition(PREFIX)[2].partition('-')[0]}"
