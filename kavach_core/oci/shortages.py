"""Want of memory in a cgroup: of version 1, told by an event that outlives whoever was killed for it.

Only ``os`` is needed here, so that a box can be started without importing more.
Source: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst, section 10, and cgroup-v2.rst.
"""

from __future__ import annotations

import os

_TABLE_BYTES = 4096


class Shortages:
    """Tells when a group has met the limit on memory and could not free any.

    Args:
        group: directory of the group, in a hierarchy of version 1.

    Raises:
        OSError: when the event cannot be asked for.
    """

    def __init__(self, group: str) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            _register(self._event, group)
        except FileNotFoundError:
            self.close()  # this kernel tells nobody: what it counts itself has to do
        except OSError:
            self.close()
            raise

    @property
    def are_told(self) -> bool:
        """False when this kernel tells nobody, or nobody asks any more."""
        return self._event >= 0

    def have_come(self) -> bool:
        """Say whether there was one since the last call."""
        if self._event < 0:
            return False
        try:
            return os.eventfd_read(self._event) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Ask no more."""
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


def killed_for_memory(group: str) -> bool:
    """Say whether the kernel has killed somebody in a group of version 2, or below it, for want of memory."""
    try:
        events = os.open(f"{group}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        lines = os.read(events, _TABLE_BYTES).splitlines()
    finally:
        os.close(events)
    return any(line.startswith(b"oom_kill ") and line != b"oom_kill 0" for line in lines)


def _register(event: int, group: str) -> None:
    control = os.open(f"{group}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        register = os.open(f"{group}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(register, f"{event} {control}".encode())
        finally:
            os.close(register)
    finally:
        os.close(control)
