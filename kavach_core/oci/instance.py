"""The private directory of one process that uses kavach, which says by a lock whether its owner lives.

    instance-RANDOM/
        owner      locked by the process for as long as it lives; the kernel lets go of the lock with the process
        bundles/   one directory for each box, named by its id
        state/     what the runtimes keep

Only ``os`` and the like are needed here, so that a box can be started without importing more.
"""

from __future__ import annotations

import fcntl
import os
import string
import time

from kavach_core.oci.cgroup_tree import CgroupTree

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence

_MODE = 0o711  # the runtime reads bundles with the unprivileged ids of the box
_PREFIX = "instance-"
_PARTS = ("bundles", "state")
_ID_DIGITS = 16
_MAKING_SECONDS = 60


def make_instance(base: str) -> tuple[str, int]:
    """Make the directory of this process below ``base``. Return its path, and the lock to keep open.

    Raises:
        OSError: when it cannot be made.
    """
    name = os.urandom(8).hex()
    fresh = f"{base}/.{_PREFIX}{name}"
    os.mkdir(fresh, _MODE)
    for part in _PARTS:
        os.mkdir(f"{fresh}/{part}", _MODE)
    lock = os.open(f"{fresh}/owner", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Under its own name only now: who sees it unlocked may take its owner for dead.
    path = f"{base}/{_PREFIX}{name}"
    os.rename(fresh, path)
    return path, lock


def remove_instance(path: str, lock: int) -> None:
    """Remove the directory of this process, and let go of the lock."""
    try:
        for entry in os.scandir(f"{path}/state"):
            os.rmdir(entry.path)  # a runtime's state root, empty when all its boxes have ended well
        for part in _PARTS:
            os.rmdir(f"{path}/{part}")
        os.unlink(f"{path}/owner")
        os.rmdir(path)
    except OSError:
        _remove_tree(path)
    os.close(lock)


def sweep(base: str, cgroup_roots: Sequence[str]) -> None:
    """Remove what processes that have died left below ``base``: their boxes' processes, cgroups and files.

    What cannot be removed yet, because the kernel has not let go of it, is left to the next sweep. Nothing that has a
    living owner is touched.
    """
    for name in os.listdir(base):
        path = f"{base}/{name}"
        if _is_unowned(name, path) and _is_old(path):
            _remove_tree(path)  # whoever was making or removing it was killed: it has no box
        lock = _lock_of_the_dead(path) if name.startswith(_PREFIX) else None
        if lock is None:
            continue
        try:
            if _sweep_boxes(path, cgroup_roots):
                _remove_tree(path)
        finally:
            os.close(lock)


def _is_unowned(name: str, path: str) -> bool:
    if name.startswith(f".{_PREFIX}"):
        return True
    return name.startswith(_PREFIX) and not os.path.exists(f"{path}/owner")


def _is_old(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _MAKING_SECONDS
    except FileNotFoundError:
        return False


def _lock_of_the_dead(path: str) -> int | None:
    """Take the lock of an instance whose owner has died; None when he lives, or another is sweeping already."""
    try:
        lock = os.open(f"{path}/owner", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _sweep_boxes(path: str, cgroup_roots: Sequence[str]) -> bool:
    """Kill and remove the boxes of an instance; True when none is left."""
    gone = True
    try:
        boxes = os.listdir(f"{path}/bundles")
    except FileNotFoundError:
        return True  # its owner was killed while he removed it
    for box_id in boxes:
        if len(box_id) == _ID_DIGITS and not set(box_id) - set(string.hexdigits):
            cgroup = CgroupTree(f"kavach-{box_id}", roots=cgroup_roots, settings=())
            cgroup.kill()
            gone = not cgroup.remove() and gone
    return gone


def _remove_tree(path: str) -> None:
    import shutil  # noqa: PLC0415 - brings every compressor along

    shutil.rmtree(path, ignore_errors=True)
