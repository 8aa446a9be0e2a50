"""A small filter that every box has: no namespaces of one's own, and no mounts.

A user namespace gives whoever makes it every capability inside it, and with that the parts of the kernel
where most ways out of a container have been found. On gVisor it lets a command remount what the box has read-
only. Nothing that runs in a box needs one.

Sources: the OCI runtime-spec 1.0.2, linux.seccomp; clone(2); seccomp(2).
"""

from __future__ import annotations

import errno
import platform
from typing import Any, Final

_ARCHITECTURES: Final = {
    "x86_64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
}

_REFUSED: Final = (
    "chroot",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "setns",
    "umount2",
    "unshare",
)

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of linux/sched.h
_NAMESPACE_FLAGS: Final = (0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000)


def no_namespaces(*, chooses_errno: bool) -> dict[str, Any] | None:
    """Return the filter as a spec's ``linux.seccomp``, or None on an architecture it is not written for.

    Args:
        chooses_errno: the runtime refuses a call with the error that the filter names. Where it does not (gVisor),
            clone3 has to be let through: threads are made with it. There the refusal of mounts is what counts.

    Only the machine's own ABI is let through: each further one would double what the runtime has to compile, and the
    calls of another have other numbers.
    """
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return None
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [architecture],
        "syscalls": [
            _refuse(*_REFUSED),
            *(_refuse("clone", args=[_has_flag(flag)]) for flag in _NAMESPACE_FLAGS),
            # Its flags are in memory, where a filter cannot look; a C library goes on to clone when it is told this.
            *([_refuse("clone3", number=errno.ENOSYS)] if chooses_errno else []),
        ],
    }


def _refuse(*names: str, number: int = errno.EPERM, args: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    return rule if args is None else {**rule, "args": args}


def _has_flag(flag: int) -> dict[str, Any]:
    return {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
