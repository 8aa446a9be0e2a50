"""The cgroup of one box: our own, above the one the runtime makes, so that limits and counters outlive the box.

    /kavach-ID        ours: limits, counters, the last word when something has to die
    /kavach-ID/box    the runtime's, removed by it

Version 1 has this pair in every hierarchy, version 2 once. Counters are read here because the runtime removes
its own group before anyone can.
Sources: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from kavach_core.policy import Limits
from kavach_core.types import Usage

_CPU_PERIOD_US: Final = 100_000
_V1_CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuacct")


@frozen(kw_only=True)
class CgroupLayout:
    """How this host has its cgroups.

    Attributes:
        hierarchies: mount point of each version 1 hierarchy, by controller; empty on a pure version 2 host.
        unified: mount point of the version 2 hierarchy, or None.
        claimed: controllers that version 2 really has.
    """

    hierarchies: Mapping[str, Path]
    unified: Path | None
    claimed: frozenset[str]

    @property
    def version(self) -> int:
        """1 when the memory controller is on version 1, else 2."""
        return 1 if "memory" in self.hierarchies else 2

    @property
    def roots(self) -> list[Path]:
        """Every hierarchy's mount point, once each."""
        found = dict.fromkeys(self.hierarchies.values())
        if self.unified is not None:
            found[self.unified] = None
        return list(found)

    def has(self, controller: str) -> bool:
        """Say whether limits of ``controller`` can be set."""
        return controller in self.hierarchies or controller in self.claimed


def detect_layout(mountinfo: Path = Path("/proc/self/mountinfo")) -> CgroupLayout:
    """Read how this host has its cgroups mounted."""
    hierarchies: dict[str, Path] = {}
    unified = None
    for line in mountinfo.read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        point = Path(fields.split(" ")[4])
        if kind == "cgroup2" and unified is None:
            unified = point
        elif kind == "cgroup":
            for option in options.split(","):
                hierarchies.setdefault(option.removeprefix("name="), point)
    return CgroupLayout(hierarchies=_only_controllers(hierarchies), unified=unified, claimed=_claimed(unified))


def _only_controllers(hierarchies: dict[str, Path]) -> dict[str, Path]:
    mount_options = {"rw", "ro", "xattr", "noprefix", "clone_children", "none"}
    return {name: point for name, point in hierarchies.items() if name not in mount_options and "=" not in name}


def _claimed(unified: Path | None) -> frozenset[str]:
    if unified is None:
        return frozenset()
    try:
        return frozenset((unified / "cgroup.controllers").read_text().split())
    except OSError:
        return frozenset()


class BoxCgroup:
    """Our cgroup of one box.

    Args:
        layout: how the host has its cgroups.
        sandbox_id: which box.
    """

    def __init__(self, layout: CgroupLayout, sandbox_id: str) -> None:
        self._layout = layout
        self._name = f"kavach-{sandbox_id}"

    @property
    def path_for_runtime(self) -> str:
        """The ``cgroupsPath`` to give to the runtime."""
        return f"/{self._name}/box"

    def create(self, limits: Limits, *, host_tasks: int | None) -> None:
        """Make the group and set its limits; what fails is undone.

        Args:
            limits: memory and cpus are taken from here.
            host_tasks: bound on tasks of the host, the runtime's own threads included; None = unbounded.

        Raises:
            OSError: when the host does not allow it.
        """
        try:
            if self._layout.version == 1:
                self._create_v1(limits, host_tasks)
            else:
                self._create_v2(limits, host_tasks)
        except OSError:
            self.remove()
            raise

    def _create_v1(self, limits: Limits, host_tasks: int | None) -> None:
        for root in {self._layout.hierarchies[name] for name in _V1_CONTROLLERS if name in self._layout.hierarchies}:
            (root / self._name).mkdir()
        _write(self._v1("pids") / "pids.max", "max" if host_tasks is None else host_tasks)
        if limits.memory is not None:
            memory = self._v1("memory")
            _write(memory / "memory.limit_in_bytes", limits.memory)
            swap = memory / "memory.memsw.limit_in_bytes"
            if swap.exists():  # absent where the kernel does not account swap; then there is nothing to bound
                _write(swap, limits.memory)
        if limits.cpus is not None:
            _write(self._v1("cpu") / "cpu.cfs_quota_us", round(limits.cpus * _CPU_PERIOD_US))

    def _create_v2(self, limits: Limits, host_tasks: int | None) -> None:
        assert self._layout.unified is not None  # noqa: S101 - version 2 is what this layout has
        _enable_controllers(self._layout.unified, self._layout.claimed & {"memory", "pids", "cpu"})
        group = self._layout.unified / self._name
        group.mkdir()
        _write(group / "pids.max", "max" if host_tasks is None else host_tasks)
        if limits.memory is not None:
            _write(group / "memory.max", limits.memory)
            swap = group / "memory.swap.max"
            if swap.exists():
                _write(swap, 0)
        if limits.cpus is not None:
            _write(group / "cpu.max", f"{round(limits.cpus * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")

    def usage(self) -> Usage:
        """Read the counters; what this host does not count is None."""
        return self._usage_v1() if self._layout.version == 1 else self._usage_v2()

    def _usage_v1(self) -> Usage:
        nanoseconds = _read_number(self._v1("cpuacct") / "cpuacct.usage")
        return Usage(
            cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
            memory_peak_bytes=_read_number(self._v1("memory") / "memory.max_usage_in_bytes"),
            memory_limit_hits=_read_number(self._v1("memory") / "memory.failcnt"),
            pids=_read_number(self._v1("pids") / "pids.current"),
        )

    def _usage_v2(self) -> Usage:
        assert self._layout.unified is not None  # noqa: S101 - as above
        group = self._layout.unified / self._name
        microseconds = _read_table(group / "cpu.stat").get("usage_usec")
        return Usage(
            cpu_seconds=None if microseconds is None else microseconds / 1e6,
            memory_peak_bytes=_read_number(group / "memory.peak"),
            memory_limit_hits=_read_table(group / "memory.events").get("oom_kill"),
            pids=_read_number(group / "pids.current"),
        )

    def kill(self) -> None:
        """Send SIGKILL to every process of the box, once."""
        for pid in self.pids():
            self.kill_member(pid)

    def kill_member(self, pid: int) -> None:
        """Kill ``pid`` if it is in our group: the number alone may have gone to another process."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if f"/{self._name}" in Path(f"/proc/{pid}/cgroup").read_text():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return  # it ended meanwhile, which is what was wanted
        finally:
            os.close(handle)

    def pids(self) -> set[int]:
        """Return the host's ids of the processes in our group and below it."""
        found: set[int] = set()
        for root in self._layout.roots:
            for directory in (root / self._name, root / self._name / "box"):
                found.update(_members(directory))
        return found

    def remove(self) -> list[Path]:
        """Remove the group from every hierarchy. Return what is still there, empty when all is gone."""
        ours = [root / self._name for root in self._layout.roots]
        return [path for group in ours for path in (group / "box", group) if not _rmdir(path)]

    def _v1(self, controller: str) -> Path:
        return self._layout.hierarchies.get(controller, Path("/nonexistent")) / self._name


def _enable_controllers(root: Path, controllers: frozenset[str]) -> None:
    control = root / "cgroup.subtree_control"
    missing = controllers - set(control.read_text().split())
    if missing:
        control.write_text(" ".join(f"+{name}" for name in sorted(missing)))


def _members(directory: Path) -> Iterator[int]:
    try:
        text = (directory / "cgroup.procs").read_text()
    except OSError:
        return
    # 0 stands for a process of another pid namespace, which cannot be ours.
    yield from (int(word) for word in text.split() if word != "0")


def _write(path: Path, value: object) -> None:
    path.write_text(str(value))


def _read_number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _read_table(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004 - name, value


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
