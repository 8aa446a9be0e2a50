"""Removing what a process has left of an instance: its runtimes, its boxes' processes, their cgroups, its files.

By what the kernel knows; no runtime is asked. The same is done by ``kavach-watchdog``, in C, for an owner
that has just died.
"""

from __future__ import annotations

import os
import select
import signal
import time

from kavach_core.reaper.files import mounts_below, remove_path
from kavach_core.reaper.groups import end_group
from kavach_core.reaper.identity import start_of

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence

_KILL_SECONDS = 5.0
_NAP_SECONDS = 0.001
_LONGEST_NAP_SECONDS = 0.02


def remove_instance_of_the_dead(path: str, *, group: str, roots: Sequence[str], seconds: float) -> list[str]:
    """Remove the boxes and the directory of an instance whose owner uses it no more.

    Args:
        path: its directory.
        group: name of its cgroup.
        roots: mount points of all hierarchies.
        seconds: how long to try.

    Returns:
        What is still there; then its ledger is there as well, and whoever comes next can go on.
    """
    end_runtimes(path)
    left = _end_boxes(group, roots, time.monotonic() + seconds)
    return left or remove_files(path)


def end_runtimes(path: str) -> None:
    """See that no runtime of an instance goes on, or starts any more: it could make what has just been removed."""
    try:
        bundles = os.listdir(f"{path}/bundles")
    except OSError:
        return
    for box_id in bundles:
        _end_runtime(f"{path}/bundles/{box_id}/runtime")


def _end_runtime(mark: str) -> None:
    try:
        os.symlink("none", mark)  # whoever makes it first has won: a `kavach-seal` that comes later starts nothing
    except FileExistsError:
        _kill_noted(mark)
    except OSError:
        return


def _kill_noted(mark: str) -> None:
    try:
        pid, _, start = os.readlink(mark).partition(" ")
        _kill(int(pid), int(start))
    except (OSError, ValueError, OverflowError):
        return  # it names nobody


def _kill(pid: int, start: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_of(pid) == start:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll(_KILL_SECONDS * 1000)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def _end_boxes(group: str, roots: Sequence[str], deadline: float) -> list[str]:
    nap = _NAP_SECONDS
    while True:
        left = end_group(roots, group)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(nap)
        nap = min(nap * 2, _LONGEST_NAP_SECONDS)


def remove_files(path: str) -> list[str]:
    """Remove a directory, the ledger in it last: who looks after a half-done removal must still find out whose it was.

    Not while something is mounted below: that is no file of ours.
    """
    mounted = mounts_below(path)
    if mounted:
        return mounted
    for part in ("bundles", "state"):
        if not remove_path(f"{path}/{part}"):
            return [f"{path}/{part}"]
    return [] if remove_path(path) else [path]
