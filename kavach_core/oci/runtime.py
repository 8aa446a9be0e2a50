"""Driving an OCI runtime: the one box that a foreground ``run`` holds, from its start to the last cgroup.

A runtime's own exit code never stands for the command's: the command's end is told by the agent, and ``run``
ending before the agent has spoken is a failure to boot.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import trio
from attrs import frozen

from kavach_core.errors import CleanupError
from kavach_core.oci.cgroups import BoxCgroup
from kavach_core.oci.host_process import HostProcess
from kavach_core.oci.idrange import IdRange
from kavach_core.types import Usage

END_DEADLINE_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 1.0
_REPAIR_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.002


@frozen(kw_only=True)
class OciRuntime:
    """A runtime's command line, as data.

    Attributes:
        name: what it is called, for errors and for the directory of its state.
        program: its path.
        global_arguments: what stands before the subcommand, without ``--root``; ``{bundle}`` in them is the
            box's bundle.
        cgroup_namespace: it can give a box a cgroup namespace.
        needs_mount_points: it makes mount points below /dev in the root itself, where it may not write.
    """

    name: str
    program: Path
    global_arguments: tuple[str, ...] = ()
    cgroup_namespace: bool = True
    needs_mount_points: bool = False

    def run(self, *, state: Path, bundle: Path, pid_file: Path, box_id: str) -> list[str]:
        """Return the command that boots a box and stays in the foreground until it ends."""
        head = [*self._head(state, bundle), "run"]
        return [*head, "--bundle", str(bundle), "--pid-file", str(pid_file), box_id]

    def delete(self, *, state: Path, bundle: Path, box_id: str) -> list[str]:
        """Return the command that removes what a dead box has left. Never for a live one."""
        return [*self._head(state, bundle), "delete", "--force", box_id]

    def _head(self, state: Path, bundle: Path) -> list[str]:
        own = [argument.replace("{bundle}", str(bundle)) for argument in self.global_arguments]
        return [str(self.program), "--root", str(state), *own]


@frozen(kw_only=True)
class BoxResources:
    """What one box holds of the host.

    Attributes:
        box_id: its id for the runtime.
        bundle: its bundle directory.
        state: the runtime's state root.
        cgroup: its cgroup.
        ids: its range of ids.
    """

    box_id: str
    bundle: Path
    state: Path
    cgroup: BoxCgroup
    ids: IdRange

    @property
    def pid_file(self) -> Path:
        """Where the runtime writes the host's id of the box's first process."""
        return self.bundle / "pid"

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write ``config.json``."""
        (self.bundle / "config.json").write_text(json.dumps(spec, separators=(",", ":")))


class OciBox:
    """A running ``run``, and everything that has to go with it.

    Attributes:
        process: the runtime's process.
        last_words: what it wrote to standard error, once the box has ended.
    """

    def __init__(self, runtime: OciRuntime, resources: BoxResources) -> None:
        """Start the runtime. The caller owns the box from here on and must ``end`` it.

        Raises:
            OSError: when the runtime cannot be started.
        """
        self._runtime = runtime
        self._resources = resources
        self._ended = trio.Event()
        self._ending = False
        self._last_usage: Usage | None = None
        self.last_words = ""
        command = runtime.run(
            state=resources.state,
            bundle=resources.bundle,
            pid_file=resources.pid_file,
            box_id=resources.box_id,
        )
        self.process = HostProcess(command, pipes=True)

    async def usage(self) -> Usage:
        """Return what the box has used so far, or had used in all when it has ended."""
        await trio.lowlevel.checkpoint()
        return self._last_usage or self._resources.cgroup.usage()

    async def end(self) -> None:
        """Kill the box, let the runtime clean up, verify, and remove what is ours.

        Cancellation: shielded, with a deadline of its own. A second caller waits for the first.

        Raises:
            CleanupError: when something is left after the deadline.
        """
        if self._ending:
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            return
        self._ending = True
        try:
            with trio.CancelScope(shield=True):
                await self._end()
        finally:
            self._ended.set()

    async def _end(self) -> None:
        self._kill_first_process()
        with trio.move_on_after(_GRACE_SECONDS):
            await self.process.wait()
        if self.process.exit_code is None:
            await self._force()
        self._last_usage = self._resources.cgroup.usage()
        self.last_words = self.process.stderr_tail()
        left = await self._remove()
        self.process.close()
        self._resources.ids.release()
        if left:
            raise CleanupError(
                f"left on the host: {', '.join(left)}",
                sandbox_id=self._resources.box_id,
                stage="close",
            )

    def _kill_first_process(self) -> None:
        """Kill process 1 of the box, and with it all others; the runtime then cleans up after itself."""
        try:
            pid = int(self._resources.pid_file.read_text())
        except (OSError, ValueError):
            self._resources.cgroup.kill()  # some runtimes write the file only after the start
            return
        self._resources.cgroup.kill_member(pid)

    async def _force(self) -> None:
        """The runtime hangs, or the box does: end both by what the kernel knows of them."""
        with trio.move_on_after(END_DEADLINE_SECONDS):
            while self._resources.cgroup.pids():
                self._resources.cgroup.kill()
                await trio.sleep(_POLL_SECONDS)
        self.process.kill()
        with trio.move_on_after(END_DEADLINE_SECONDS):
            await self.process.wait()

    async def _remove(self) -> list[str]:
        if self._state_is_left():
            await self._repair()
        left = await self._remove_cgroup()
        if self._state_is_left():
            left.append(f"state of {self._runtime.name}")
        shutil.rmtree(self._resources.bundle, ignore_errors=True)
        if self._resources.bundle.exists():
            left.append(str(self._resources.bundle))
        return left

    def _state_is_left(self) -> bool:
        state = self._resources.state
        if (state / self._resources.box_id).exists():
            return True
        return state.exists() and any(self._resources.box_id in entry.name for entry in state.iterdir())

    async def _repair(self) -> None:
        """Remove the state of a runtime that could not do so itself; the box is dead by now."""
        resources = self._resources
        command = self._runtime.delete(state=resources.state, bundle=resources.bundle, box_id=resources.box_id)
        process = HostProcess(command, pipes=False)
        with trio.move_on_after(_REPAIR_SECONDS):
            await process.wait()
        process.kill()
        with trio.move_on_after(_REPAIR_SECONDS):
            await process.wait()
        process.close()

    async def _remove_cgroup(self) -> list[str]:
        """Remove our cgroup; the kernel may take a moment to let go of processes that have just died."""
        left = self._resources.cgroup.remove()
        deadline = trio.current_time() + END_DEADLINE_SECONDS
        while left and trio.current_time() < deadline:
            self._resources.cgroup.kill()
            await trio.sleep(_POLL_SECONDS)
            left = self._resources.cgroup.remove()
        return [str(path) for path in left]
