"""The agent in boxes of real runtimes, as backends boot them, spoken to in the frames of these tests."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from agent_host import Agent
from attrs import evolve
from kavach_gvisor import backend as gvisor
from kavach_oci import CrunBackend, RuncBackend

from kavach_core.abc import HostToolchain, SandboxSpec
from kavach_core.oci.launch import BoxPlan, Launch
from kavach_core.oci.workspace import open_workspace
from kavach_core.policy import PRESETS

GUEST = "/tmp/guest"
BACKENDS = {"runc": RuncBackend, "crun": CrunBackend, "gvisor": gvisor.GvisorBackend}


def plan_of(backend: str, pids: int) -> BoxPlan:
    """Return how the backend starts boxes with the host's toolchain and room for so many processes."""
    gvisor._remember("systrap")
    basic = PRESETS["basic"]
    policy = evolve(basic, limits=evolve(basic.limits, pids=pids))
    spec = SandboxSpec(sandbox_id=secrets.token_hex(8), root=HostToolchain(), policy=policy, cwd="/")
    plan = BACKENDS[backend]().plan(spec)
    assert plan is not None
    return BoxPlan(**plan.plan)


@contextlib.contextmanager
def real_box(backend: str, guest: Path, *, pids: int = 512) -> Iterator[Agent]:
    """Boot a box, greet its agent, and put `guest.c` into it; at the end nothing of the box is left."""
    plan = plan_of(backend, pids)
    workspace = open_workspace(watchdog=Path(plan.watchdog), roots=tuple(plan.cgroup_roots))
    launch = Launch(plan, box_id=secrets.token_hex(8), instance=workspace.instance)
    agent = Agent(launch.command, boxed=True, guest=Path(GUEST))
    try:
        agent.greet()
        upload = agent.start("sh", "-c", f"cat > {GUEST} && chmod 755 {GUEST}", stdin=True)
        agent.stdin(upload, guest.read_bytes())
        agent.send(0x04, upload)
        assert agent.finish(upload).exit == (0, 0)
        yield agent
    finally:
        try:
            agent.dispose()
        finally:
            assert launch.remove() == []
