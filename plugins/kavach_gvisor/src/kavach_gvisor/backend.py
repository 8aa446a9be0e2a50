"""The backend ``gvisor``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import ClassVar, Final

import trio
from kavach_guest.oci_boot import CAPABILITIES, boot, find_program, host_capabilities, quick_plan
from kavach_guest.oci_probe import read_version, start_one

from kavach_core.abc import QuickPlan, SandboxSpec, Session
from kavach_core.errors import CreateError
from kavach_core.oci.runtime import OciRuntime
from kavach_core.types import ProbeReport, Reason

# The Sentry and the gofer need threads of the host for every process of the box; the exact bound is
# RLIMIT_NPROC inside.
_TASKS_PER_PROCESS: Final = 8
_KVM_DEADLINE_SECONDS: Final = 5.0

_ARGUMENTS: Final = (
    "--network=none",
    "--oci-seccomp",  # without it runsc ignores the spec's seccomp section
    "--overlay2=none",  # the root is read-only; an overlay would be a file of the host that nothing bounds
    "--host-uds=none",
    "--host-fifo=none",
    "--panic-log={bundle}/panic.log",  # a Sentry that panics ends like a command that returned 2
)


class GvisorBackend:
    """Boxes of runsc: their system calls are served by a program, not by the host's kernel."""

    name: ClassVar[str] = "gvisor"
    api_version: ClassVar[tuple[int, int]] = (1, 0)
    capabilities: ClassVar[frozenset[str]] = CAPABILITIES
    base_score: ClassVar[int] = 70

    async def probe(self) -> ProbeReport:
        """Start a box on each platform, the best first, until one works."""
        program = _program()
        if program is None:
            reason = Reason(
                text="runsc is not installed",
                remedy="see scripts/install-runtimes, or apt-get install runsc",
            )
            return ProbeReport(usable=False, reasons=(reason,))
        reasons: list[Reason] = []
        version = await read_version(str(program))
        for platform in _platforms():
            reason_against = await _try_platform(program, platform)
            if reason_against is None:
                _remember(platform)
                return ProbeReport(
                    usable=True,
                    version=version,
                    path=str(program),
                    reasons=tuple(reasons),
                    capabilities=host_capabilities(),
                    details={"platform": platform},
                )
            reasons.append(reason_against)
        return ProbeReport(usable=False, version=version, path=str(program), reasons=tuple(reasons))

    async def open(self, spec: SandboxSpec) -> Session:
        """Boot a box. See ``kavach_core.abc.Backend.open``."""
        program = _program()
        if program is None:
            raise CreateError(
                "runsc is not installed",
                sandbox_id=spec.sandbox_id,
                backend=self.name,
                stage="boot",
                hint="see scripts/install-runtimes, or apt-get install runsc",
            )
        failure: CreateError | None = None
        for platform in _chosen or _platforms():
            try:
                session = await _open_on(program, platform, spec)
            except CreateError as error:
                failure = failure or error  # the first platform is the one that ought to work
            else:
                _remember(platform)
                return session
        assert failure is not None  # noqa: S101 - there is always a platform to try
        raise failure

    def plan(self, spec: SandboxSpec) -> QuickPlan | None:
        """Return how boxes for ``spec`` are started here. See ``kavach_core.abc.Planner``."""
        program = _program()
        if program is None or not _chosen:
            return None
        return quick_plan(_runtime(program, _chosen[0]), spec, tasks_per_process=_TASKS_PER_PROCESS)


_chosen: list[str] = []
"""The platform that has worked in this process, once one has."""


def _remember(platform: str) -> None:
    _chosen[:] = [platform]


def _platforms() -> list[str]:
    """Return the platforms to try. KVM comes last: where it is half there, a box on it hangs instead of failing."""
    return ["systrap", "ptrace", *(["kvm"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else [])]


async def _open_on(program: Path, platform: str, spec: SandboxSpec) -> Session:
    with trio.move_on_after(_deadline(platform)):
        return await boot(_runtime(program, platform), spec, tasks_per_process=_TASKS_PER_PROCESS)
    raise CreateError(
        f"no box within {_deadline(platform):g} seconds on platform {platform}",
        sandbox_id=spec.sandbox_id,
        backend="gvisor",
        stage="boot",
    )


def _deadline(platform: str) -> float:
    return _KVM_DEADLINE_SECONDS if platform == "kvm" else float("inf")


async def _try_platform(program: Path, platform: str) -> Reason | None:
    with trio.move_on_after(_deadline(platform)):
        reason = await start_one(_runtime(program, platform), tasks_per_process=_TASKS_PER_PROCESS)
        return None if reason is None else Reason(text=f"{platform}: {reason.text}", remedy=reason.remedy)
    return Reason(text=f"{platform}: no box within {_KVM_DEADLINE_SECONDS:g} seconds")


@functools.cache
def _program() -> Path | None:
    return find_program("runsc")


def _runtime(program: Path, platform: str) -> OciRuntime:
    return OciRuntime(
        name="runsc",
        program=program,
        global_arguments=(f"--platform={platform}", *_ARGUMENTS),
        cgroup_namespace=False,
        needs_mount_points=True,
        chooses_errno=False,
        host_counts_processes=False,
        backend="gvisor",
    )
