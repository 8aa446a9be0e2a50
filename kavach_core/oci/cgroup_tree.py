"""The cgroup of one box, as a tree of directories: make it, find who is in it, kill them, remove it.

    /kavach-WORD           of this process, see ``kavach_core.reaper.instance``
    /kavach-WORD/ID        ours: limits, counters, the last word when something has to die
    /kavach-WORD/ID/box    the runtime's, removed by it

Version 1 of cgroups has these in every hierarchy, version 2 once; what is written where is worked out in
``cgroups``. Only ``os`` is needed here, so that a box can be started without importing more.
"""

from __future__ import annotations

import os

from kavach_core.reaper.groups import kill_member, members, remove_group

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Setting = tuple[str, str, str, bool]


class CgroupTree:
    """Our cgroup of one box, in every hierarchy.

    Args:
        name: name of our group, below that of this process.
        roots: mount points of all hierarchies.
        settings: what to write: mount point, file, value, and whether the file may be missing; an empty file name
            only makes the group.
    """

    def __init__(self, name: str, *, roots: Sequence[str], settings: Sequence[Setting]) -> None:
        self.name = name
        self._roots = roots
        self._settings = settings

    @property
    def path_for_runtime(self) -> str:
        """The ``cgroupsPath`` to give to the runtime."""
        return f"/{self.name}/box"

    def create(self) -> None:
        """Make the group and write its settings; what fails is undone.

        Raises:
            OSError: when the host does not allow it.
        """
        try:
            for root in dict.fromkeys(setting[0] for setting in self._settings):
                if "/" in self.name:
                    _make(f"{root}/{os.path.dirname(self.name)}")
                os.mkdir(f"{root}/{self.name}")
            for root, file, value, optional in self._settings:
                if file:
                    _write(f"{root}/{self.name}/{file}", value, optional=optional)
        except OSError:
            self.remove()
            raise

    def pids(self) -> set[int]:
        """Return the host's ids of the processes in our group and below it."""
        return {pid for directory in self._directories() for pid in members(directory)}

    def processes_of_runtime(self) -> list[int]:
        """Return those in the runtime's group, as one hierarchy has them."""
        return list(members(f"{self._settings[0][0]}/{self.name}/box")) if self._settings else []

    def kill(self) -> None:
        """Send SIGKILL to every process of the box, once."""
        for pid in self.pids():
            self.kill_member(pid)

    def kill_member(self, pid: int) -> None:
        """Kill ``pid`` if it is in our group: the number alone may have gone to another process."""
        kill_member(pid, self.name)

    def write(self, settings: Sequence[Setting]) -> None:
        """Write further settings.

        Raises:
            OSError: when the host does not allow it.
        """
        for root, file, value, optional in settings:
            _write(f"{root}/{self.name}/{file}", value, optional=optional)

    def remove(self) -> list[str]:
        """Remove the group from every hierarchy. Return what is still there, empty when all is gone."""
        return remove_group(self._roots, self.name)

    def _directories(self) -> Iterator[str]:
        for root in self._roots:
            yield f"{root}/{self.name}/box"
            yield f"{root}/{self.name}"


def _make(path: str) -> None:
    """Make a group that may be there: that of this process, which its first box makes."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return


def _write(path: str, value: str, *, optional: bool) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if optional:
            return
        raise
    try:
        os.write(file, value.encode())
    finally:
        os.close(file)
