"""Carrying out a plan: what one box holds of the host is made before its runtime starts and removed after it has ended.

Everything here is quick and does not wait; waiting is the caller's. Little is imported, so that a box can be
started early.
"""

from __future__ import annotations

import json
import os

from kavach_core.oci.cgroup_tree import CgroupTree
from kavach_core.oci.idrange import IdRange

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from typing import Any

    from kavach_core.oci.cgroup_tree import Setting

# With NUL in them they cannot be part of any path or argument.
STATE = "\0state\0"
BUNDLE = "\0bundle\0"
BOX_ID = "\0id\0"
RUNTIME_MARK = f"{BUNDLE}/runtime"
"""Where ``kavach-seal`` notes which process the runtime is, before it becomes that."""

_MODE = 0o711  # the runtime reads the bundle with the unprivileged ids of the box


class BoxPlan:
    """How boxes of one kind are started: plain data, the same for all of them, which can be kept as JSON.

    Attributes:
        base: the directory that all instances share.
        runtime: what the runtime is called.
        run_command: its command line to boot a box and stay with it, with STATE, BUNDLE and BOX_ID for the box's own.
        delete_command: likewise, to remove what a dead box has left. Never for a live one.
        spec: the OCI spec, but for the id range and the cgroup.
        cgroup_roots: mount points of all hierarchies.
        cgroup_settings: what ``CgroupTree`` writes.
    """

    __slots__ = ("base", "cgroup_roots", "cgroup_settings", "delete_command", "run_command", "runtime", "spec")

    def __init__(  # noqa: PLR0913 - a record
        self,
        *,
        base: str,
        runtime: str,
        run_command: list[str],
        delete_command: list[str],
        spec: dict[str, Any],
        cgroup_roots: list[str],
        cgroup_settings: list[Setting],
    ) -> None:
        self.base = base
        self.runtime = runtime
        self.run_command = run_command
        self.delete_command = delete_command
        self.spec = spec
        self.cgroup_roots = cgroup_roots
        self.cgroup_settings = cgroup_settings

    def as_data(self) -> dict[str, Any]:
        """Return the plan as plain data; ``BoxPlan(**data)`` makes it again."""
        return {name: getattr(self, name) for name in self.__slots__}


class Launch:
    """What one box holds of the host.

    Args:
        plan: how it is started.
        box_id: its id.
        instance: the private directory of this process, with ``bundles`` and ``state`` in it.

    Raises:
        OSError: when something cannot be made; what was made is gone again.
        CreateError: when there is no free range of ids.
    """

    def __init__(self, plan: BoxPlan, *, box_id: str, instance: str) -> None:
        self.plan = plan
        self.box_id = box_id
        self.bundle = f"{instance}/bundles/{box_id}"
        self._state = f"{instance}/state/{plan.runtime}"
        self.cgroup = CgroupTree(f"kavach-{box_id}", roots=plan.cgroup_roots, settings=plan.cgroup_settings)
        self._ids = IdRange.take(plan.base)
        try:
            os.mkdir(self.bundle, _MODE)
            self._write_spec()
            self.cgroup.create()
        except OSError:
            self.remove()
            raise

    @property
    def command(self) -> list[str]:
        """The runtime's command line to boot the box and stay with it."""
        return self._fill_in(self.plan.run_command)

    @property
    def delete_command(self) -> list[str]:
        """The runtime's command line to remove what the dead box has left."""
        return self._fill_in(self.plan.delete_command)

    def _fill_in(self, template: list[str]) -> list[str]:
        return [
            part.replace(STATE, self._state).replace(BUNDLE, self.bundle).replace(BOX_ID, self.box_id)
            for part in template
        ]

    def _write_spec(self) -> None:
        mapping = [{"containerID": 0, "hostID": self._ids.first, "size": self._ids.size}]
        own = {"uidMappings": mapping, "gidMappings": mapping, "cgroupsPath": self.cgroup.path_for_runtime}
        spec = {**self.plan.spec, "linux": {**self.plan.spec["linux"], **own}}
        with open(f"{self.bundle}/config.json", "x", encoding="utf-8") as file:
            json.dump(spec, file, separators=(",", ":"))

    def kill(self) -> None:
        """Kill process 1 of the box, and with it all others; the runtime then cleans up after itself."""
        try:
            with open(f"{self.bundle}/pid", encoding="ascii") as file:
                pid = int(file.read())
        except (OSError, ValueError):
            self.cgroup.kill()  # crun writes the file only after it has started the box
        else:
            self.cgroup.kill_member(pid)

    def state_is_left(self) -> bool:
        """Say whether the runtime has left something that it alone knows how to remove."""
        try:
            return any(self.box_id in name for name in os.listdir(self._state))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # who cannot look cannot say that nothing is left

    def is_repairable(self) -> bool:
        """Say whether the runtime has to be called to remove what it left: never while anything of the box lives."""
        return self.state_is_left() and not self.cgroup.pids()

    def clear_state(self) -> None:
        """Remove what the runtime itself has failed to: locks and sockets of a box that died while it started."""
        for name in os.listdir(self._state):
            if self.box_id in name and not _unlink(f"{self._state}/{name}"):
                _remove_directory(f"{self._state}/{name}")

    def remove(self) -> list[str]:
        """Remove what is ours, of a dead box. Return what is still there; may be called again until that is nothing."""
        left = self.cgroup.remove()
        if self.state_is_left():
            left.append(f"state of {self.plan.runtime} in {self._state}")
        if not _remove_directory(self.bundle):
            left.append(self.bundle)
        if not left:
            self._ids.release()
        return left


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _remove_directory(path: str) -> bool:
    """Remove a directory of plain files."""
    try:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
