"""Stopping all processes of a box at once and letting them go on, by its cgroup: no signal, and nothing of it is asked.

Version 1 has a hierarchy of its own for it and may need several attempts while processes are being started; version 2
has it in every group. Sources: the kernel's Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and
cgroup-v2.rst.
"""

from __future__ import annotations

from pathlib import Path

from kavach_core.oci.cgroups import CgroupLayout


def can_freeze(layout: CgroupLayout) -> bool:
    """Say whether this host can stop a box."""
    return "freezer" in layout.hierarchies or layout.version == 2  # noqa: PLR2004 - the version that always can


class Freezer:
    """The freezer of our group of one box.

    Args:
        layout: how the host has its cgroups.
        name: name of our group.
    """

    def __init__(self, layout: CgroupLayout, name: str) -> None:
        self._version_1 = layout.version == 1
        self._group = (layout.hierarchies.get("freezer") if self._version_1 else layout.unified) or Path("/nonexistent")
        self._group = self._group / name

    def freeze(self) -> bool:
        """Try to freeze; True once every process stands still. To be repeated until then.

        Raises:
            OSError: when the host cannot.
        """
        if self._version_1:
            self._write("freezer.state", "FROZEN")
        else:
            self._write("cgroup.freeze", "1")
        return self.is_frozen()

    def is_frozen(self) -> bool:
        """Say whether it stands still; False when that cannot be told."""
        try:
            if self._version_1:
                return self._read("freezer.state") == "FROZEN"
            return "frozen 1" in self._read("cgroup.events").splitlines()
        except OSError:
            return False

    def thaw(self) -> None:
        """Let all go on.

        Raises:
            OSError: when the group is no more.
        """
        if self._version_1:
            self._write("freezer.state", "THAWED")
        else:
            self._write("cgroup.freeze", "0")

    def _write(self, file: str, value: str) -> None:
        with (self._group / file).open("r+", encoding="ascii", buffering=1) as target:  # never made where it is missing
            target.write(value)

    def _read(self, file: str) -> str:
        return (self._group / file).read_text().strip()
