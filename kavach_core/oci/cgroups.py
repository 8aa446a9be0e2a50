"""How this host has its cgroups, which settings make a policy's limits of them, and how the counters are read.

Our own group of a box stands above the one that the runtime makes, so that limits and counters outlive the box.
Version 1 has this pair in every hierarchy, version 2 once. Counters are read here because the runtime removes
its own group before anyone can.
Sources: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from kavach_core.policy import Limits
from kavach_core.types import Usage

_CPU_PERIOD_US: Final = 100_000
_NANO: Final = 1e-9
_MICRO: Final = 1e-6
_V1_CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuacct")

Setting = tuple[str, str, str, bool]


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


@frozen(kw_only=True)
class CgroupPlan:
    """What the cgroup of a box consists of.

    Attributes:
        roots: mount points of all hierarchies.
        settings: what ``CgroupTree`` writes.
        settings_once_booted: what it writes when the box has booted.
    """

    roots: tuple[str, ...]
    settings: tuple[Setting, ...]
    settings_once_booted: tuple[Setting, ...]


def plan_cgroup(
    layout: CgroupLayout, limits: Limits, *, host_tasks: int | None, booted_tasks: int | None = None
) -> CgroupPlan:
    """Work out the cgroup of a box.

    Args:
        layout: how the host has its cgroups.
        limits: memory and cpus are taken from here.
        host_tasks: bound on tasks of the host, the runtime's own threads included; None = unbounded.
        booted_tasks: the bound once the runtime has booted the box; None = no other.
    """
    tasks = "max" if host_tasks is None else str(host_tasks)
    settings = _settings_v1(layout, limits, tasks) if layout.version == 1 else _settings_v2(layout, limits, tasks)
    pids = str(layout.hierarchies.get("pids") or layout.unified)
    return CgroupPlan(
        roots=tuple(map(str, layout.roots)),
        settings=tuple(settings),
        settings_once_booted=() if booted_tasks is None else ((pids, "pids.max", str(booted_tasks), False),),
    )


def _settings_v1(layout: CgroupLayout, limits: Limits, tasks: str) -> Iterator[Setting]:
    memory, pids, cpu, cpuacct = (str(layout.hierarchies.get(name, "")) for name in _V1_CONTROLLERS)
    if pids:
        yield (pids, "pids.max", tasks, False)
    if memory:
        yield (memory, "", "", False)
    if cpuacct:
        yield (cpuacct, "", "", False)
    if limits.memory is not None:
        yield (memory, "memory.limit_in_bytes", str(limits.memory), False)
        # Missing where the kernel does not account swap; then there is none to bound.
        yield (memory, "memory.memsw.limit_in_bytes", str(limits.memory), True)
    if limits.cpus is not None:
        yield (cpu, "cpu.cfs_quota_us", str(round(limits.cpus * _CPU_PERIOD_US)), False)


def _settings_v2(layout: CgroupLayout, limits: Limits, tasks: str) -> Iterator[Setting]:
    unified = str(layout.unified)
    yield (unified, "", "", False)
    controllers = _wanted_controllers(layout)
    if controllers:
        yield (unified, "../cgroup.subtree_control", " ".join(f"+{name}" for name in controllers), False)
    if "pids" in layout.claimed:
        yield (unified, "pids.max", tasks, False)
    if limits.memory is not None:
        yield (unified, "memory.max", str(limits.memory), False)
        yield (unified, "memory.swap.max", "0", True)
    if limits.cpus is not None:
        yield (unified, "cpu.max", f"{round(limits.cpus * _CPU_PERIOD_US)} {_CPU_PERIOD_US}", False)


def _wanted_controllers(layout: CgroupLayout) -> list[str]:
    return sorted(layout.claimed & {"memory", "pids", "cpu"})


def enable_controllers(layout: CgroupLayout) -> None:
    """Let groups below the root have the controllers we set limits with; nothing to do on version 1.

    Raises:
        OSError: when the host does not allow it.
    """
    if layout.version == 1 or layout.unified is None:
        return
    control = layout.unified / "cgroup.subtree_control"
    present = control.read_text().split()
    missing = [name for name in _wanted_controllers(layout) if name not in present]
    if missing:
        control.write_text(" ".join(f"+{name}" for name in missing))


def read_usage(layout: CgroupLayout, name: str) -> Usage:
    """Read the counters of our group ``name``; what this host does not count is None."""
    return _usage_v1(layout, name) if layout.version == 1 else _usage_v2(layout, name)


def _usage_v1(layout: CgroupLayout, name: str) -> Usage:
    memory, pids, _, cpuacct = (layout.hierarchies.get(c, Path("/nonexistent")) / name for c in _V1_CONTROLLERS)
    # With equal limits the one on memory and swap together is met first, and counts on its own.
    hits = [_read_number(memory / file) for file in ("memory.failcnt", "memory.memsw.failcnt")]
    return Usage(
        cpu_seconds=_seconds(_read_number(cpuacct / "cpuacct.usage"), _NANO),
        cpu_user_seconds=_seconds(_read_number(cpuacct / "cpuacct.usage_user"), _NANO),
        cpu_system_seconds=_seconds(_read_number(cpuacct / "cpuacct.usage_sys"), _NANO),
        memory_bytes=_read_number(memory / "memory.usage_in_bytes"),
        memory_peak_bytes=_read_number(memory / "memory.max_usage_in_bytes"),
        memory_limit_hits=None if hits[0] is None else sum(hit or 0 for hit in hits),
        pids=_read_number(pids / "pids.current"),
        pids_peak=_read_number(pids / "pids.peak"),
    )


def _usage_v2(layout: CgroupLayout, name: str) -> Usage:
    group = (layout.unified or Path("/nonexistent")) / name
    cpu, events = _read_table(group / "cpu.stat"), _read_table(group / "memory.events")
    return Usage(
        cpu_seconds=_seconds(cpu.get("usage_usec"), _MICRO),
        cpu_user_seconds=_seconds(cpu.get("user_usec"), _MICRO),
        cpu_system_seconds=_seconds(cpu.get("system_usec"), _MICRO),
        memory_bytes=_read_number(group / "memory.current"),
        memory_peak_bytes=_read_number(group / "memory.peak"),
        memory_limit_hits=events.get("max"),
        oom_kills=events.get("oom_kill"),
        pids=_read_number(group / "pids.current"),
        pids_peak=_read_number(group / "pids.peak"),
    )


def _seconds(count: int | None, unit: float) -> float | None:
    return None if count is None else count * unit


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
