"""Carrying out a plan: what one box holds of the host is made before its runtime starts and removed after it has ended.

Everything here is quick and does not wait; waiting is the caller's. Little is imported, so that a box can be
started early.
"""

from __future__ import annotations

import json
import os
import time

from kavach_core.oci.cgroup_tree import CgroupTree
from kavach_core.oci.idrange import IdRange
from kavach_core.reaper.files import make_directory, mounts_below, remove_path
from kavach_core.reaper.groups import kill, open_member

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from typing import Any

    from kavach_core.oci.cgroup_tree import Setting
    from kavach_core.reaper.instance import Instance

# With NUL in them they cannot be part of any path or argument.
STATE = "\0state\0"
BUNDLE = "\0bundle\0"
BOX_ID = "\0id\0"
RUNTIME_MARK = f"{BUNDLE}/runtime"
"""Where ``kavach-seal`` notes which process the runtime is, before it becomes that."""

_NICE_STEP = 19  # as in the agent's spawn.c
_MODE = 0o711  # the runtime reads the bundle with the unprivileged ids of the box


class BoxPlan:
    """How boxes of one kind are started: plain data, the same for all of them, which can be kept as JSON.

    Attributes:
        base: the directory that all instances share.
        backend: what callers call it.
        runtime: what the runtime is called.
        watchdog: the program that looks after what a killed process leaves.
        run_command: its command line to boot a box and stay with it, with STATE, BUNDLE and BOX_ID for the box's own.
        spec: the OCI spec, but for the id range and the cgroup.
        cgroup_roots: mount points of all hierarchies.
        cgroup_settings: what ``CgroupTree`` writes.
        cgroup_settings_once_booted: what it writes when the box has booted.
    """

    __slots__ = (
        "backend",
        "base",
        "cgroup_roots",
        "cgroup_settings",
        "cgroup_settings_once_booted",
        "run_command",
        "runtime",
        "spec",
        "watchdog",
    )

    def __init__(  # noqa: PLR0913 - a record
        self,
        *,
        base: str,
        backend: str,
        runtime: str,
        watchdog: str,
        run_command: list[str],
        spec: dict[str, Any],
        cgroup_roots: list[str],
        cgroup_settings: list[Setting],
        cgroup_settings_once_booted: list[Setting],
    ) -> None:
        self.base = base
        self.backend = backend
        self.runtime = runtime
        self.watchdog = watchdog
        self.run_command = run_command
        self.spec = spec
        self.cgroup_roots = cgroup_roots
        self.cgroup_settings = cgroup_settings
        self.cgroup_settings_once_booted = cgroup_settings_once_booted

    def as_data(self) -> dict[str, Any]:
        """Return the plan as plain data, of which ``from_data`` makes it again."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> BoxPlan | None:
        """Make a plan of what ``as_data`` has returned; None when that was another version's."""
        return cls(**data) if data.keys() == set(cls.__slots__) else None


class Launch:
    """What one box holds of the host.

    Args:
        plan: how it is started.
        box_id: its id.
        instance: what this process has of the host.

    Raises:
        OSError: when something cannot be made; what was made is gone again.
        CreateError: when there is no free range of ids.
    """

    def __init__(self, plan: BoxPlan, *, box_id: str, instance: Instance) -> None:
        self.plan = plan
        self.box_id = box_id
        self.bundle = f"{instance.path}/bundles/{box_id}"
        self._ledger = instance.ledger
        self._state = f"{instance.path}/state/{plan.runtime}"
        group = f"{instance.group}/{box_id}"
        self.cgroup = CgroupTree(group, roots=plan.cgroup_roots, settings=plan.cgroup_settings)
        self._ids = IdRange.take(plan.base)
        try:
            instance.guard()
            self._ledger.announce(box_id, self._record())
            make_directory(self.bundle, _MODE)
            self._write_spec()
            self.cgroup.create()
        except OSError:
            self.remove()
            raise

    def _record(self) -> dict[str, Any]:
        return {
            "backend": self.plan.backend,
            "runtime": self.plan.runtime,
            "group": self.cgroup.name,
            "bundle": self.bundle,
            "state": self._state,
            "created": time.time(),
        }

    @property
    def command(self) -> list[str]:
        """The runtime's command line to boot the box and stay with it."""
        return self._fill_in(self.plan.run_command)

    def has_booted(self) -> None:
        """Bound the box as tightly as its runtime could not have borne, and let its agent go before its commands.

        Raises:
            OSError: when the host does not allow it.
        """
        self.cgroup.write(self.plan.cgroup_settings_once_booted)
        self._prefer_agent()

    def _prefer_agent(self) -> None:
        """Raise the agent's priority by what it lowers that of its commands, so that these have the usual one.

        It counts only inside the box's own cgroup. Where the box is more than one process of the host, as gVisor's is,
        the host's priorities mean nothing in it.
        """
        processes = self.cgroup.processes_of_runtime()
        if len(processes) != 1:
            return
        try:
            os.setpriority(os.PRIO_PROCESS, processes[0], -_NICE_STEP)
        except OSError:
            return  # without the right to it, commands are nicer than others, which harms nobody

    def _fill_in(self, template: list[str]) -> list[str]:
        return [
            part.replace(STATE, self._state).replace(BUNDLE, self.bundle).replace(BOX_ID, self.box_id)
            for part in template
        ]

    def _write_spec(self) -> None:
        mapping = [{"containerID": 0, "hostID": self._ids.first, "size": self._ids.size}]
        own = {"uidMappings": mapping, "gidMappings": mapping, "cgroupsPath": self.cgroup.path_for_runtime}
        spec = {**self.plan.spec, "linux": {**self.plan.spec["linux"], **own}}
        text = json.dumps(spec, separators=(",", ":"))  # json.dump would write it word by word
        with open(f"{self.bundle}/config.json", "x", encoding="utf-8") as file:
            file.write(text)

    def kill(self) -> int | None:
        """Kill process 1 of the box, and with it all others; the runtime then cleans up after itself.

        Returns:
            A pidfd of process 1, which the caller closes; None when that is not known.
        """
        try:
            with open(f"{self.bundle}/pid", encoding="ascii") as file:
                pid = int(file.read())
        except (OSError, ValueError):
            self.cgroup.kill()  # crun writes the file only after it has started the box
            return None
        handle = open_member(pid, self.cgroup.name)
        if handle is not None:
            kill(handle)
        return handle

    def _state_left(self) -> list[str]:
        """Return what the runtime keeps of the box; once it has ended, what it has left."""
        try:
            return [f"{self._state}/{name}" for name in os.listdir(self._state) if self.box_id in name]
        except FileNotFoundError:
            return []

    def remove(self) -> list[str]:
        """Remove what is there of a dead box whose runtime has ended, whoever made it.

        Returns:
            What is still there. May be called again until that is nothing.
        """
        left = self.cgroup.remove()
        if not left:  # as long as somebody is in it, the rest tells who
            left = self._remove_files()
        if not left:
            self._ids.release()
            self._ledger.strike(self.box_id)
        return left

    def _remove_files(self) -> list[str]:
        state = self._state_left()
        mounted = mounts_below(self._state) if state else []
        return mounted or [path for path in (*state, self.bundle) if not remove_path(path)]
