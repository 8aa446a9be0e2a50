"""Finding out whether a runtime starts boxes on this host: by starting one."""

from __future__ import annotations

import os
import secrets
from typing import Final

import trio

from kavach_core.abc import HostToolchain, SandboxSpec
from kavach_core.config import NOBODY
from kavach_core.errors import KavachError
from kavach_core.oci.host_process import HostProcess
from kavach_core.oci.runtime import OciRuntime
from kavach_core.policy import PRESETS
from kavach_core.types import ExecRequest, Reason
from kavach_guest.oci_boot import NEEDS_ROOT, boot

PROBE_DEADLINE_SECONDS: Final = 15.0
_VERSION_DEADLINE_SECONDS: Final = 5.0
_VERSION_BYTES: Final = 4096

_REMEDIES: Final = (
    (
        "hybrid mode",
        "as root: mkdir -p /sys/fs/cgroup/hugetlb && mount -t cgroup -o hugetlb hugetlb /sys/fs/cgroup/hugetlb",
    ),
    (
        "Operation not permitted",
        "run as root, and allow user namespaces (sysctl user.max_user_namespaces)",
    ),
    (
        "No space left on device",
        "raise sysctl user.max_user_namespaces, or free the file system of /run",
    ),
)


async def start_one(runtime: OciRuntime, *, tasks_per_process: int) -> Reason | None:
    """Start a box and a command in it. Return None when both worked, else why not."""
    if os.geteuid() != 0:
        return Reason(text=NEEDS_ROOT, remedy="run as root")
    try:
        with trio.fail_after(PROBE_DEADLINE_SECONDS):
            return await _run_true(runtime, tasks_per_process)
    except trio.TooSlowError:
        return Reason(text=f"no box within {PROBE_DEADLINE_SECONDS:g} seconds")
    except (KavachError, OSError) as error:
        return Reason(text=str(error), remedy=_remedy(str(error)))


async def _run_true(runtime: OciRuntime, tasks_per_process: int) -> Reason | None:
    spec = SandboxSpec(sandbox_id=secrets.token_hex(8), root=HostToolchain(), policy=PRESETS["basic"], cwd="/")
    session = await boot(runtime, spec, tasks_per_process=tasks_per_process)
    try:
        process = await session.start(ExecRequest(argv=(b"/bin/true",), env=(), cwd=b"/", user=NOBODY))
        ended = await process.wait()
    finally:
        await session.aclose()
    return None if ended.exit_code == 0 else Reason(text=f"/bin/true ended with {ended}")


def _remedy(text: str) -> str | None:
    return next((remedy for sign, remedy in _REMEDIES if sign in text), None)


async def read_version(program: str) -> str | None:
    """Return the first line of what ``program --version`` prints, or None when it prints nothing in time."""
    process = HostProcess([program, "--version"], pipes=True)
    process.stop_listening()
    os.close(process.stdin_fd)
    os.set_blocking(process.stdout_fd, False)
    data = b""
    try:
        with trio.move_on_after(_VERSION_DEADLINE_SECONDS):
            await process.wait()
        if process.exit_code is not None:
            data = os.read(process.stdout_fd, _VERSION_BYTES)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        os.close(process.stdout_fd)
        process.close()
    line = data.decode(errors="replace").partition("\n")[0]
    return line.rpartition(" ")[2] or None
