"""Who a process is, for ever: its number alone may be another's tomorrow, or be another's in a container next door."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from typing import Any

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NAMESPACE = "/proc/self/ns/pid"
_START_AFTER_NAME = 19  # field 22 of proc(5)'s stat; the name before it may hold anything


def own() -> dict[str, Any]:
    """Return the identity of this process: ``boot``, ``namespace``, ``pid``, ``start``."""
    pid = os.getpid()
    return {"boot": _boot(), "namespace": namespace(), "pid": pid, "start": start_of(pid)}


def is_dead(identity: dict[str, Any]) -> bool:
    """Say whether a process is known to have ended. What cannot be told from here counts as alive."""
    try:
        if identity["boot"] != _boot():
            return True
        return bool(identity["namespace"] == namespace() and start_of(identity["pid"]) != identity["start"])
    except (KeyError, TypeError):
        return False


def _boot() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def namespace() -> int:
    """Return which pid namespace this process is in."""
    return os.stat(_NAMESPACE).st_ino


def start_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot; None when there is none of that number."""
    try:
        with open(f"/proc/{int(pid)}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError, OverflowError):
        return None
    # A zombie has ended: it holds nothing any more, and whoever should reap it may never do so.
    return int(fields[_START_AFTER_NAME]) if fields and fields[0] not in (b"Z", b"X") else None
