"""The OCI runtime spec of boxes: hardened, the same for every runtime, built from nothing the caller could smuggle in.

The caller's command, environment and user are not in it: they go to the agent, when the command is started. So
a spec holds no secret, and boxes of one configuration differ in their id and id range alone.

Sources: the OCI runtime-spec 1.0.2; user_namespaces(7); proc(5).
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kavach_core.oci.rootfs import AGENT_PATH, Bind, RootLayout
from kavach_core.oci.seccomp import no_namespaces
from kavach_core.policy import Limits

# The agent switches users and kills; SETPCAP lets it empty the bounding set, then it drops that as well.
_AGENT_CAPABILITIES: Final = ("CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID")
_AGENT_OPEN_FILES: Final = 8192
_MOST_PROCESSES: Final = 4_194_304  # the kernel has no more ids
_INODES_PER_TMPFS: Final = 65_536

_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount", "user")

_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
)
_READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@frozen(kw_only=True)
class SpecInputs:
    """What makes one box different from another.

    Attributes:
        root: its root file system.
        agent: the agent's program on the host.
        limits: bounds of the policy; memory, CPU and the host's tasks are set on our cgroup, not here.
        hostname: its own name.
        cgroup_namespace: give the box a cgroup namespace; not every runtime has one.
        chooses_errno: see ``seccomp.no_namespaces``.
        host_counts_processes: the bound on processes is our cgroup's, which counts what it refuses, and not an rlimit.
    """

    root: RootLayout
    agent: Path
    limits: Limits
    hostname: str
    cgroup_namespace: bool
    chooses_errno: bool
    host_counts_processes: bool


def build_spec(inputs: SpecInputs) -> dict[str, Any]:
    """Build the ``config.json`` of a box, as plain data."""
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(inputs.root.path), "readonly": True},
        "hostname": inputs.hostname,
        "process": _process(inputs),
        "mounts": _mounts(inputs),
        "linux": _linux(inputs),
    }


def _process(inputs: SpecInputs) -> dict[str, Any]:
    capabilities = list(_AGENT_CAPABILITIES)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        "args": [AGENT_PATH],
        "env": [],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "rlimits": _rlimits(inputs),
        "noNewPrivileges": True,
        "oomScoreAdj": 1000,  # the kernel should take the box before anything of the host's
    }


def _rlimits(inputs: SpecInputs) -> list[dict[str, Any]]:
    limits = inputs.limits
    wanted = {"RLIMIT_CORE": (0, 0)}
    if limits.open_files is not None:
        # The soft limit is the commands'; the agent itself works up to the hard one and lowers it for them.
        wanted["RLIMIT_NOFILE"] = (limits.open_files, max(limits.open_files, _AGENT_OPEN_FILES))
    if limits.pids is not None:
        bound = _MOST_PROCESSES if inputs.host_counts_processes else limits.pids
        wanted["RLIMIT_NPROC"] = (bound, bound)
    return [_rlimit(name, soft, hard) for name, (soft, hard) in wanted.items()]


def _rlimit(name: str, soft: int, hard: int) -> dict[str, Any]:
    # Without CAP_SYS_RESOURCE a runtime cannot go above its own hard limit, and fails when told to.
    ceiling = resource.getrlimit(getattr(resource, name))[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    return {"type": name, "soft": soft, "hard": hard}


def _mounts(inputs: SpecInputs) -> list[dict[str, Any]]:
    return [
        _mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        _tmpfs("/dev/shm", inputs.limits, "noexec"),  # noqa: S108 - inside the box
        _bind(Bind(source=inputs.agent, target=AGENT_PATH)),
        *(_bind(bind) for bind in inputs.root.binds),
        *(_tmpfs(directory, inputs.limits) for directory in inputs.root.writable),
    ]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def _tmpfs(target: str, limits: Limits, *options: str) -> dict[str, Any]:
    size = [f"size={limits.tmp}"] if limits.tmp is not None else []
    bounds = [*size, f"nr_inodes={_INODES_PER_TMPFS}", "mode=1777"]
    return _mount(target, "tmpfs", "tmpfs", ["nosuid", "nodev", *options, *bounds])


def _bind(bind: Bind) -> dict[str, Any]:
    # rbind: in a user namespace the kernel refuses to bind a tree without the mounts that cover parts of it.
    return _mount(bind.target, "bind", str(bind.source), ["rbind", "ro", "nosuid", "nodev", "rprivate"])


def _linux(inputs: SpecInputs) -> dict[str, Any]:
    namespaces = [*_NAMESPACES, *(["cgroup"] if inputs.cgroup_namespace else [])]
    seccomp = no_namespaces(chooses_errno=inputs.chooses_errno)
    return {
        **({} if seccomp is None else {"seccomp": seccomp}),
        "namespaces": [{"type": name} for name in namespaces],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "rootfsPropagation": "private",
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READONLY),
    }
