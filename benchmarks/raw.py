"""The raw runtimes, driven as a person would on a shell, with the very bundle that kavach gives them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from kavach_guest.oci_boot import find_program, plan_box
from kavach_gvisor.backend import _runtime as gvisor_runtime

from kavach_core.abc import HostToolchain, SandboxSpec
from kavach_core.oci.launch import Launch
from kavach_core.oci.runtime import OciRuntime
from kavach_core.oci.workspace import open_workspace, workspace
from kavach_core.policy import PRESETS


@frozen
class RawBox:
    """A runtime and a bundle for it."""

    backend: str
    runtime: OciRuntime
    bundle: Path
    spec: dict[str, Any]
    box_id: str
    live_bundle: Path

    def run(self, *argv: str) -> list[str]:
        """Return the runtime's own ``run`` of the bundle, with another program than the agent."""
        self._write(self.bundle, argv, self.spec["linux"]["cgroupsPath"])
        return [*self._head(self.bundle), "run", "--bundle", str(self.bundle), self.box_id]

    def exec(self, *argv: str) -> list[str]:
        """Return the runtime's own ``exec`` in the box of ``running``."""
        return [*self._head(self.live_bundle), "exec", f"{self.box_id}-live", *argv]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold a box in which nothing happens."""
        self._write(self.live_bundle, ("/bin/sleep", "3600"), f"{self.spec['linux']['cgroupsPath']}-live")
        head = self._head(self.live_bundle)
        command = [*head, "run", "--detach", "--bundle", str(self.live_bundle), f"{self.box_id}-live"]
        subprocess.run(command, check=True, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            subprocess.run([*head, "kill", f"{self.box_id}-live", "KILL"], check=True, env={})
            subprocess.run([*head, "delete", "--force", f"{self.box_id}-live"], check=True, env={})

    def _head(self, bundle: Path) -> list[str]:
        arguments = [argument.replace("{bundle}", str(bundle)) for argument in self.runtime.global_arguments]
        return [str(self.runtime.program), "--root", str(_own_directory() / "state/raw"), *arguments]

    def _write(self, bundle: Path, argv: Sequence[str], cgroups_path: str) -> None:
        spec = {**self.spec, "process": {**self.spec["process"], "args": list(argv)}}
        spec["linux"] = {**spec["linux"], "cgroupsPath": cgroups_path}
        (bundle / "config.json").write_text(json.dumps(spec))


def _own_directory() -> Path:
    own = workspace()
    assert own is not None  # made with the first bundle
    return own.path


@contextlib.contextmanager
def raw_boxes(backends: Sequence[str]) -> Iterator[list[RawBox]]:
    """Prepare a bundle for each runtime that is installed."""
    if os.geteuid() != 0:
        sys.exit("the runtimes are compared as root")
    with contextlib.ExitStack() as stack:
        yield [box for name in backends if (box := _prepare(name, stack)) is not None]


def _prepare(backend: str, stack: contextlib.ExitStack) -> RawBox | None:
    program = find_program("runsc" if backend == "gvisor" else backend)
    if program is None:
        print(f"{backend} is not installed: left out", file=sys.stderr)
        return None
    runtime = gvisor_runtime(program, "systrap") if backend == "gvisor" else OciRuntime(name=backend, program=program)
    box_id = secrets.token_hex(8)
    spec = SandboxSpec(sandbox_id=box_id, root=HostToolchain(), policy=PRESETS["basic"], cwd="/")
    plan = plan_box(runtime, spec)
    own = open_workspace(watchdog=Path(plan.watchdog), roots=tuple(plan.cgroup_roots))
    launch = Launch(plan, box_id=box_id, instance=own.instance)
    stack.callback(launch.remove)
    bundle = Path(launch.bundle)
    live_bundle = bundle.with_name(f"{box_id}-live")
    live_bundle.mkdir(mode=0o711)
    return RawBox(backend, runtime, bundle, json.loads((bundle / "config.json").read_text()), box_id, live_bundle)
