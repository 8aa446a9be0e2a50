"""What a box may do and use: limits, presets, and how a caller's own limits go over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NewType

import attrs
from attrs import frozen

from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.validation import check_all, check_text, checked, number, optional

ByteSize = NewType("ByteSize", int)
"""A number of bytes; in configuration files and on the command line also ``512K``, ``512M``, ``2G``."""

_MIB = 1024 * 1024
_TIB = 1024**4

_bytes = optional(number(minimum=_MIB, maximum=_TIB, unit="bytes", integer=True))
_count = optional(number(minimum=1, maximum=1_000_000, unit="", integer=True))
_cpus = optional(number(minimum=0.01, maximum=4096, unit="CPUs"))


@frozen(kw_only=True)
class Limits:
    """Bounds on what a box may use. None leaves a bound to the policy.

    Attributes:
        memory: bytes of memory and swap together, 1 MiB and up.
        cpus: CPU seconds per second, 0.01 and up.
        pids: processes of the workload, 1 and up.
        open_files: open descriptors of one process.
        tmp: bytes that each of the writable directories (/tmp, /home, /work, /dev/shm) may hold.
    """

    memory: ByteSize | None = checked(_bytes, default=None)
    cpus: float | None = checked(_cpus, default=None)
    pids: int | None = checked(_count, default=None)
    open_files: int | None = checked(_count, default=None)
    tmp: ByteSize | None = checked(_bytes, default=None)

    def __attrs_post_init__(self) -> None:
        check_all(self)

    def over(self, defaults: Limits) -> Limits:
        """Return these limits, with each one that is None taken from ``defaults``."""
        own = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        return attrs.evolve(defaults, **own)


def check_limits(name: str, value: object) -> Iterator[FieldProblem]:
    """Check that a value is ``Limits``."""
    if not isinstance(value, Limits):
        yield FieldProblem(name, f"{type(value).__name__} is not a table of limits", "Limits(memory=..., pids=...)")


@frozen(kw_only=True)
class SandboxPolicy:
    """What is asked of a box beyond being one.

    Every box, whatever its policy, has its own namespaces and id range, a read-only root, no network but
    loopback, an unprivileged user, no capability, ``no_new_privs``, and an environment that starts empty.

    Attributes:
        name: the preset it comes from, or a name of the caller's.
        limits: the bounds that hold unless the caller sets others.
    """

    name: str = checked(check_text)
    limits: Limits = checked(check_limits, factory=Limits)

    def __attrs_post_init__(self) -> None:
        check_all(self)


def _preset(name: str, memory_mib: int, pids: int, tmp_mib: int, cpus: float | None) -> SandboxPolicy:
    limits = Limits(
        memory=ByteSize(memory_mib * _MIB),
        pids=pids,
        open_files=1024,
        tmp=ByteSize(tmp_mib * _MIB),
        cpus=cpus,
    )
    return SandboxPolicy(name=name, limits=limits)


PRESETS = {
    "minimal": _preset("minimal", memory_mib=2048, pids=512, tmp_mib=512, cpus=None),
    "basic": _preset("basic", memory_mib=1024, pids=256, tmp_mib=256, cpus=None),
    "strict": _preset("strict", memory_mib=512, pids=64, tmp_mib=64, cpus=1.0),
}
"""The policies that have a name. ``basic`` is the default."""


def resolve_policy(policy: str | SandboxPolicy) -> SandboxPolicy:
    """Return the policy that a preset's name stands for; a policy is returned as it is.

    Raises:
        ConfigError: when no preset has this name.
    """
    if isinstance(policy, SandboxPolicy):
        return policy
    try:
        return PRESETS[policy]
    except KeyError:
        problem = FieldProblem("policy", f"no preset {policy!r}", f"one of {', '.join(PRESETS)}")
        raise ConfigError([problem]) from None
