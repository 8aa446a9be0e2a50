"""How often a box has met its limits, as the kernel counts it: cheap to ask, and still known when the box is gone.

The kernel counts in places that differ. Version 2 counts kills for want of memory in our group. Version 1
counts them, and refused processes, in the group of the process concerned, which is the runtime's and goes
with the box; there our own group is asked for an event at each shortage, which outlives it.
Sources: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst (section 10), cgroup-v2.rst, and
kernel/cgroup/pids.c (refusals are counted at the limit from Linux 6.11 on, where the process is before that).
"""

from __future__ import annotations

import os
from typing import Final

from kavach_core.oci.cgroups import CgroupLayout
from kavach_core.oci.shortages import Shortages
from kavach_core.types import LimitEvents

_TABLE_BYTES: Final = 4096


class Counters:
    """What our group of one box counts, from its creation on.

    Args:
        layout: how the host has its cgroups.
        name: name of our group, which has to be there already.
        refusals: it is our group that bounds processes, so that it counts those that are refused.

    Raises:
        OSError: when an event cannot be asked for.
    """

    def __init__(self, layout: CgroupLayout, name: str, *, refusals: bool = True) -> None:
        version_1 = layout.version == 1
        memory, pids = (str(layout.hierarchies.get(c) or layout.unified) for c in ("memory", "pids"))
        self._shortages = Shortages(f"{memory}/{name}") if version_1 else None
        kills = f"{memory}/{name}/box/memory.oom_control" if version_1 else f"{memory}/{name}/memory.events"
        self._kills = _Table("oom_kill", kills)
        ours = () if version_1 else (f"{pids}/{name}/pids.events",)
        self._refusals = _Table("max", *(*ours, f"{pids}/{name}/box/pids.events") if refusals else ())
        self._owing = False
        self._untold = False

    def read(self) -> LimitEvents:
        """Return the counters as they are, or were when the box ended."""
        self._count_kills()
        self._refusals.update()
        return LimitEvents(
            oom_kills=(self._kills.value or 0) + 1 if self._untold else self._kills.value,
            pids_refusals=self._refusals.value,
        )

    def _count_kills(self) -> None:
        """Look at the table of kills, unless nothing can have changed: this is asked twice for each command."""
        # The shortage first: its kill is then counted by a look that comes later, and never missed.
        short = self._shortages is not None and self._shortages.have_come()
        self._owing = self._owing or short
        known = self._kills.value
        if known is not None and not self._owing and self._shortages is not None and self._shortages.are_told:
            return
        if self._kills.update():
            self._untold = False
            self._owing = self._owing and self._kills.value == known  # the shortage comes before its kill
        else:
            self._untold = self._untold or short

    def close(self) -> None:
        """Keep the last values, and nothing open. To be called while our group is still there."""
        self.read()
        self._kills.close()
        self._refusals.close()
        if self._shortages is not None:
            self._shortages.close()


class _Table:
    """One number of a flat keyed file, the largest where several files have it; the last known when they are gone.

    Attributes:
        value: the number, or None as long as no file had it.
    """

    def __init__(self, key: str, *paths: str) -> None:
        self.value: int | None = None
        self._key = f"{key} ".encode()
        self._missing = list(paths)  # the runtime makes its group only while it starts
        self._open: list[int] = []
        self._texts: list[bytes | None] = []
        self._closed = False

    def update(self) -> bool:
        """Read it; False when no file has it any more, or yet."""
        if self._missing:
            self._open_missing()
        texts = [self._read(descriptor) for descriptor in self._open]
        if texts and texts == self._texts:
            return True
        found = [number for number in map(self._number, texts) if number is not None]
        self._texts = texts if len(found) == len(texts) else []
        self.value = max(found, default=self.value) if self.value is None else max([self.value, *found])
        return bool(found)

    def _open_missing(self) -> None:
        for path in [] if self._closed else list(self._missing):
            try:
                self._open.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
            self._missing.remove(path)

    def _read(self, descriptor: int) -> bytes | None:
        try:
            return os.pread(descriptor, _TABLE_BYTES, 0)
        except OSError:  # its group has been removed
            return None

    def _number(self, text: bytes | None) -> int | None:
        lines = (text or b"").splitlines()
        return next((int(line[len(self._key) :]) for line in lines if line.startswith(self._key)), None)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()
        self._closed = True
