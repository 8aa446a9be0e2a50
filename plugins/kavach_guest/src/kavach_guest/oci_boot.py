"""Booting an OCI bundle with the agent in it: what the backends for runc, crun and runsc have in common."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

import trio

from kavach_core import capabilities
from kavach_core.abc import HostToolchain, QuickPlan, SandboxSpec
from kavach_core.capabilities import LIMITS_CPU, LIMITS_MEMORY, LIMITS_PIDS, PAUSE
from kavach_core.errors import (
    CreateError,
    FieldProblem,
    GuestProtocolError,
    SandboxError,
    SandboxGone,
    UnsupportedPolicy,
)
from kavach_core.oci.cgroups import CgroupLayout, detect_layout, enable_controllers, plan_cgroup
from kavach_core.oci.freezer import can_freeze
from kavach_core.oci.launch import RUNTIME_MARK, BoxPlan, Launch
from kavach_core.oci.rootfs import RootLayout, check_directory, host_toolchain_sources, prepare_root
from kavach_core.oci.runtime import OciBox, OciRuntime
from kavach_core.oci.spec import SpecInputs, build_spec
from kavach_core.oci.workspace import base_directory, existing_bases, install, open_workspace
from kavach_core.policy import Limits
from kavach_core.reaper.sweep import sweep
from kavach_guest.agent import agent_program, seal_program, watchdog_program
from kavach_guest.channel import GuestChannel
from kavach_guest.session import AgentSession

NEEDS_ROOT: Final = "boxes of this backend need root"
BOOT_DEADLINE_SECONDS: Final = 30.0
CAPABILITIES: Final = capabilities.ALL
"""What the paved road can enforce where the host has every cgroup controller."""

_CONTROLLERS: Final = {LIMITS_MEMORY: "memory", LIMITS_CPU: "cpu", LIMITS_PIDS: "pids"}
_RUNTIME_TASKS: Final = 64
"""Tasks of the host that a runtime needs beside the workload's, its threads while it starts included."""


@functools.cache
def cgroup_layout() -> CgroupLayout:
    """Return how this host has its cgroups, read once."""
    return detect_layout()


async def boot(runtime: OciRuntime, spec: SandboxSpec, *, tasks_per_process: int = 1) -> AgentSession:
    """Boot a box and wait until its agent has greeted.

    Args:
        runtime: the runtime to boot it with.
        spec: what to boot.
        tasks_per_process: how many tasks of the host one process of the box may need.

    Cancellation: leaves nothing.

    Raises:
        ConfigError: when the root has no such working directory, or cannot be a root.
        UnsupportedPolicy: when this host cannot enforce one of the limits.
        CreateError: when the box does not start.
    """
    if os.geteuid() != 0:
        raise CreateError(
            NEEDS_ROOT, sandbox_id=spec.sandbox_id, backend=runtime.name, stage="boot", hint="run as root"
        )
    plan = plan_box(runtime, spec, tasks_per_process=tasks_per_process)
    box = _launch(plan, spec)
    channel = GuestChannel(
        receive_fd=box.process.stdout_fd,
        send_fd=box.process.stdin_fd,
        sandbox_id=spec.sandbox_id,
        on_violation=box.kill,
    )
    session = AgentSession(channel, box)
    try:
        with trio.fail_after(BOOT_DEADLINE_SECONDS):
            await _greet(channel, box)
        box.has_booted()
    except (SandboxGone, GuestProtocolError, trio.TooSlowError, OSError) as error:
        await session.aclose()
        raise _failed(plan, spec, box.last_words.strip() or _reason(error)) from error
    except BaseException:
        await session.aclose()
        raise
    return session


def _reason(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no sign of life from its agent within {BOOT_DEADLINE_SECONDS:.0f} s"
    return str(error)


async def _greet(channel: GuestChannel, box: OciBox) -> None:
    """Exchange greetings with the agent, and hear meanwhile what the runtime complains about."""
    failure: SandboxError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.process.drain_stderr)
        try:
            await channel.open()
        except SandboxError as error:
            failure = error  # raised below: the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    box.process.stop_listening()
    if failure is not None:
        raise failure


def plan_box(runtime: OciRuntime, spec: SandboxSpec, *, tasks_per_process: int = 1) -> BoxPlan:
    """Work out how to start boxes for ``spec``, without starting one.

    Raises:
        ConfigError: when the root has no such working directory, or cannot be a root.
        UnsupportedPolicy: when this host cannot enforce one of the limits.
        CreateError: when the root cannot be read, as it has gone since it was named, or when this host has no place
            for the files of boxes.
    """
    try:
        return _plan_box(runtime, spec, tasks_per_process=tasks_per_process)
    except OSError as error:
        raise CreateError(
            f"no box of {runtime.name} can be planned: {error}",
            sandbox_id=spec.sandbox_id,
            backend=runtime.name,
            stage="plan",
            hint="what the message names must be there and readable as long as boxes are started",
        ) from error


def _plan_box(runtime: OciRuntime, spec: SandboxSpec, *, tasks_per_process: int) -> BoxPlan:
    check_limits(spec)
    root = prepare_root(spec.root, compose=runtime.needs_mount_points)
    check_directory(root, spec.cwd)
    limits = spec.policy.limits
    inputs = SpecInputs(
        root=root,
        agent=install(agent_program()),
        limits=limits,
        hostname=spec.hostname,
        cgroup_namespace=runtime.cgroup_namespace,
        chooses_errno=runtime.chooses_errno,
        host_counts_processes=runtime.host_counts_processes,
    )
    cgroup = plan_cgroup(
        cgroup_layout(),
        limits,
        host_tasks=_host_tasks(limits, tasks_per_process),
        booted_tasks=_booted_tasks(limits) if runtime.host_counts_processes else None,
    )
    return BoxPlan(
        base=str(base_directory()),
        backend=runtime.backend or runtime.name,
        runtime=runtime.name,
        watchdog=str(watchdog_program()),
        run_command=_run_command(runtime, root),
        spec=build_spec(inputs),
        cgroup_roots=list(cgroup.roots),
        cgroup_settings=list(cgroup.settings),
        cgroup_settings_once_booted=list(cgroup.settings_once_booted),
    )


def _run_command(runtime: OciRuntime, root: RootLayout) -> list[str]:
    sources = [str(root.path), *(str(bind.source) for bind in root.binds)]
    return [str(seal_program()), RUNTIME_MARK, *sources, "--", *runtime.run_command]


def quick_plan(runtime: OciRuntime, spec: SandboxSpec, *, tasks_per_process: int = 1) -> QuickPlan | None:
    """Return how boxes for ``spec`` are started by ``express``; only those with the host's toolchain can be."""
    if not isinstance(spec.root, HostToolchain):
        return None
    plan = plan_box(runtime, spec, tasks_per_process=tasks_per_process)
    agent = agent_program()
    watched = (
        runtime.program,
        agent,
        install(agent),
        seal_program(),
        watchdog_program(),
        *host_toolchain_sources(),
        Path(plan.spec["root"]["path"]),
    )
    return QuickPlan(launcher="agent", plan=plan.as_data(), watched=tuple(map(str, watched)))


def _launch(plan: BoxPlan, spec: SandboxSpec) -> OciBox:
    """Make what the box needs of the host and start the runtime; what was made is undone on failure."""
    try:
        enable_controllers(cgroup_layout())
        _sweep_once()
        workspace = open_workspace(watchdog=Path(plan.watchdog), roots=tuple(plan.cgroup_roots))
        launch = Launch(plan, box_id=spec.sandbox_id, instance=workspace.instance)
    except OSError as error:
        raise _failed(plan, spec, str(error)) from error
    try:
        return OciBox(launch, cgroup_layout())
    except OSError as error:
        launch.remove()
        raise _failed(plan, spec, str(error)) from error


@functools.cache
def _sweep_once() -> None:
    """Remove what processes that were killed have left, once in a process."""
    for base in existing_bases():
        sweep(str(base), [str(root) for root in cgroup_layout().roots])


def host_capabilities() -> frozenset[str]:
    """Return what a box booted here can be held to on this host."""
    layout = cgroup_layout()
    missing = {capability for capability, controller in _CONTROLLERS.items() if not layout.has(controller)}
    return CAPABILITIES - missing - (set() if can_freeze(layout) else {PAUSE})


def check_limits(spec: SandboxSpec) -> None:
    """Check that this host can enforce the limits of ``spec``.

    Raises:
        UnsupportedPolicy: when it cannot, with every limit concerned.
    """
    limits = spec.policy.limits
    asked = {LIMITS_MEMORY: limits.memory, LIMITS_CPU: limits.cpus, LIMITS_PIDS: limits.pids}
    enforceable = host_capabilities()
    problems = [
        FieldProblem(
            capability,
            f"the host has no cgroup controller {_CONTROLLERS[capability]!r}",
            "enable it, or leave the limit out of the policy",
        )
        for capability, value in asked.items()
        if value is not None and capability not in enforceable
    ]
    if problems:
        raise UnsupportedPolicy(problems)


def _host_tasks(limits: Limits, tasks_per_process: int) -> int | None:
    """Return the bound on tasks of the host while the box boots; for ever where an rlimit is the exact one."""
    return None if limits.pids is None else limits.pids * tasks_per_process + _RUNTIME_TASKS


def _booted_tasks(limits: Limits) -> int | None:
    """Return the bound once nothing of the runtime's is in the box any more but the agent, which is one task."""
    return None if limits.pids is None else limits.pids + 1


def _failed(plan: BoxPlan, spec: SandboxSpec, said: str) -> CreateError:
    return CreateError(
        f"{plan.runtime} did not start the box: {said}",
        sandbox_id=spec.sandbox_id,
        backend=plan.runtime,
        stage="boot",
        hint="kavach doctor says what is missing on this host",
    )


def find_program(*names: str) -> Path | None:
    """Return the first of ``names`` that is an executable of a system directory; PATH is not asked.

    Programs that run as root come from where only root writes.
    """
    directories = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    for name in names:
        for directory in directories:
            path = Path(directory) / name
            if path.is_file() and path.stat().st_mode & 0o111:
                return path
    return None
