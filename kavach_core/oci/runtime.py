"""Driving an OCI runtime: the one box that a foreground ``run`` holds, from its start to the last cgroup.

A runtime's own exit code never stands for the command's: the command's end is told by the agent, and ``run``
ending before the agent has spoken is a failure to boot.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import trio
from attrs import evolve, frozen

from kavach_core.errors import CleanupError, SandboxError, SandboxGone
from kavach_core.oci.aftermath import finish, finish_later, threads
from kavach_core.oci.cgroups import CgroupLayout, read_usage
from kavach_core.oci.counters import Counters
from kavach_core.oci.freezer import Freezer
from kavach_core.oci.host_process import HostProcess
from kavach_core.oci.launch import BOX_ID, BUNDLE, STATE, Launch
from kavach_core.types import LimitEvents, Usage

END_DEADLINE_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.002
_FREEZE_SECONDS: Final = 2.0


@frozen(kw_only=True)
class OciRuntime:
    """A runtime's command line, as data.

    Attributes:
        name: what it is called, for errors and for the directory of its state.
        program: its path.
        global_arguments: what stands before the subcommand, without ``--root``; ``{bundle}`` in them is the box's
            bundle.
        cgroup_namespace: it can give a box a cgroup namespace.
        needs_mount_points: it makes mount points below /dev in the root itself, where it may not write.
        chooses_errno: its seccomp filter refuses a call with the error that the spec names.
        host_counts_processes: a process of the box is one of the host's, so the host can bound their number exactly.
        backend: what callers call it, if not by its name.
    """

    name: str
    program: Path
    global_arguments: tuple[str, ...] = ()
    cgroup_namespace: bool = True
    needs_mount_points: bool = False
    chooses_errno: bool = True
    host_counts_processes: bool = True
    backend: str = ""

    @property
    def run_command(self) -> list[str]:
        """The command line that boots a box and stays in the foreground until it ends, for ``BoxPlan``."""
        return [*self._head, "run", "--bundle", BUNDLE, "--pid-file", f"{BUNDLE}/pid", BOX_ID]

    @property
    def _head(self) -> list[str]:
        own = (argument.replace("{bundle}", BUNDLE) for argument in self.global_arguments)
        return [str(self.program), "--root", STATE, *own]


class OciBox:
    """A running ``run``, and everything that has to go with it.

    Attributes:
        process: the runtime's process.
        last_words: what it wrote to standard error, once a box that has not booted has ended.
    """

    def __init__(self, launch: Launch, layout: CgroupLayout) -> None:
        """Start the runtime. The caller owns the box from here on and must ``end`` it.

        Raises:
            OSError: when the runtime cannot be started.
        """
        self._launch = launch
        self._layout = layout
        self._ended = trio.Event()
        self._ending = False
        self._booted = False
        self._paused = False
        self._last_usage: Usage | None = None
        # Where an rlimit is the exact bound on processes, nobody counts what it refuses.
        counted = bool(launch.plan.cgroup_settings_once_booted)
        self._counters = Counters(layout, launch.cgroup.name, refusals=counted)
        self._freezer = Freezer(layout, launch.cgroup.name)
        self.last_words = ""
        try:
            self.process = HostProcess(launch.command, pipes=True)
        except OSError:
            self._counters.close()
            raise

    async def usage(self) -> Usage:
        """Return what the box has used so far, or had used in all when it has ended."""
        await trio.lowlevel.checkpoint()
        return self._last_usage or self._read_usage()

    def _read_usage(self) -> Usage:
        usage = read_usage(self._layout, self._launch.cgroup.name)
        return evolve(usage, oom_kills=self._counters.read().oom_kills)

    def limit_events(self) -> LimitEvents:
        """Return how often the box has met its limits, or had met them when it has ended."""
        return self._counters.read()

    async def pause(self) -> None:
        """Stop every process of the box until ``resume``.

        Cancellation: the box goes on.

        Raises:
            SandboxGone: when the box has ended.
            SandboxError: when the host cannot stop it in time; it goes on.
        """
        try:
            with trio.move_on_after(_FREEZE_SECONDS):
                while not self._freeze():  # noqa: ASYNC110 - the kernel sets no trio.Event
                    await trio.sleep(_POLL_SECONDS)
                return
        except BaseException:
            self._thaw()
            raise
        self._thaw()
        raise SandboxError("the box does not stop", sandbox_id=self._launch.box_id, stage="pause")

    def _freeze(self) -> bool:
        if self._ending or not self._launch.cgroup.pids():
            raise SandboxGone("the box has ended", sandbox_id=self._launch.box_id, stage="pause")
        self._paused = True
        try:
            return self._freezer.freeze()
        except OSError as error:
            text = f"the host cannot stop the box: {error.strerror}"
            raise SandboxError(text, sandbox_id=self._launch.box_id, stage="pause") from error

    async def resume(self) -> None:
        """Let a paused box go on; nothing happens when it is not paused, or has ended."""
        await trio.lowlevel.checkpoint()
        if not self._ending:
            self._thaw()

    def _thaw(self) -> None:
        if self._paused:
            with contextlib.suppress(OSError):  # its group has gone, and everything in it
                self._freezer.thaw()
                self._paused = False

    def kill(self) -> None:
        """Kill the box at once, for somebody who cannot wait; ``end`` has to follow."""
        if not self._ending:
            first = self._launch.kill()
            if first is not None:
                os.close(first)
            self._thaw()

    def has_booted(self) -> None:
        """Bound the box as tightly as its runtime could not have borne. The runtime makes nothing more from here on.

        Raises:
            OSError: when the host does not allow it.
        """
        self._launch.has_booted()
        self._counters.read()  # the files are there by now, and can be read as long as they are kept open
        self._booted = True

    async def end(self) -> None:
        """Kill the box and return when it is dead: what it was is removed behind the caller's back, and verified.

        A box that has not booted is removed before this returns, as its runtime could still make something.

        Cancellation: shielded, with a deadline of its own. A second caller waits for the first.

        Raises:
            CleanupError: when it is not dead after the deadline, or has not booted and something is left. What
                is left of others is logged, see ``aftermath``.
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
        self._counters.read()
        first = self._launch.kill()
        self._thaw()  # who is frozen takes the signal when he thaws, and runs nothing before it
        try:
            dead = self._booted and await self._is_dead(first)
        finally:
            if first is not None:
                os.close(first)
        if dead:
            await finish_later(self._remove)
        else:
            await finish(self._remove)

    async def _is_dead(self, first: int | None) -> bool:
        """Wait until no process of the box is alive, for as long as its own end should take."""
        with trio.move_on_after(_GRACE_SECONDS):
            if first is not None:
                await trio.lowlevel.wait_readable(first)
            while self._launch.cgroup.pids():
                self._launch.cgroup.kill()
                await trio.sleep(_POLL_SECONDS)
            return True
        return False

    def _keep_counters(self) -> None:
        if self._last_usage is None:
            self._last_usage = self._read_usage()
            self._counters.close()

    async def _remove(self) -> None:
        """See the runtime end, and remove all of it.

        Raises:
            CleanupError: when something is left after the deadline.
        """
        with trio.move_on_after(_GRACE_SECONDS):
            await self.process.wait()
        if self.process.exit_code is None:
            await self._force()
        self._keep_counters()
        self.last_words = self.process.stderr_tail()
        self.process.close()
        left = await self._remove_rest()
        if left:
            text = f"left on the host: {', '.join(left)}"
            hint = "kavach gc removes it when this process has ended"
            raise CleanupError(text, sandbox_id=self._launch.box_id, stage="close", hint=hint)

    async def _force(self) -> None:
        """The runtime hangs, or the box does: end both by what the kernel knows of them."""
        with trio.move_on_after(END_DEADLINE_SECONDS):
            while self._launch.cgroup.pids():
                self._launch.cgroup.kill()
                await trio.sleep(_POLL_SECONDS)
        self.process.kill()
        with trio.move_on_after(END_DEADLINE_SECONDS):
            await self.process.wait()

    async def _remove_rest(self) -> list[str]:
        """Remove what is there; the kernel may take a moment to let go of processes that have just died."""
        deadline = trio.current_time() + END_DEADLINE_SECONDS
        while True:
            # In a thread: each directory may wait for the kernel, and the loop has others to serve.
            left = await trio.to_thread.run_sync(self._launch.remove, limiter=threads())
            if not left or trio.current_time() >= deadline:
                return left
            self._launch.cgroup.kill()
            await trio.sleep(_POLL_SECONDS)
