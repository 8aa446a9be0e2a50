"""Where boxes keep their files on the host: one private directory for each process that uses kavach.

    BASE/                 0711, root's, shared by all instances
        ids/              locks on ranges of user ids
        INSTANCE/         one process's: bundles, runtime state, the agent, the skeleton of the host's toolchain

Directories are 0711 and not 0700 because the runtime reads bundle and mounts with the unprivileged ids of the
box; names are random.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kavach_core.errors import CreateError

_CANDIDATES: Final = (Path("/run"), Path("/dev/shm"), Path("/var/lib"))  # noqa: S108 - only below a directory of root's own
_MODE: Final = 0o711


@functools.cache
def base_directory() -> Path:
    """Return the directory that all instances on this host share, made if need be.

    Raises:
        CreateError: when none can be had: not root, or every candidate is read-only or mounted noexec.
    """
    refusals = []
    for parent in _usable_parents():
        path = parent / "kavach"
        try:
            path.mkdir(mode=_MODE, exist_ok=True)
        except OSError as error:
            refusals.append(f"{path}: {error.strerror}")
            continue
        if _is_ours(path):
            return path
        refusals.append(f"{path}: not a directory of uid {os.geteuid()} closed to others")
    raise CreateError(
        f"no directory for runtime files: {'; '.join(refusals) or 'every candidate is mounted noexec or read-only'}",
        stage="workspace",
        hint="run as root, or free one of them",
    )


def _usable_parents() -> Iterator[Path]:
    for parent in _CANDIDATES:
        # The agent is started from below this directory, so noexec rules a file system out.
        if parent.is_dir() and not os.statvfs(parent).f_flag & (os.ST_NOEXEC | os.ST_RDONLY):
            yield parent


def _is_ours(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


class Workspace:
    """The private directory of this process, removed at its exit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = os.getpid()

    @classmethod
    def create(cls) -> Workspace:
        """Make the directory of this process."""
        path = base_directory() / f"instance-{secrets.token_hex(8)}"
        path.mkdir(mode=_MODE)
        workspace = cls(path)
        for name in ("bundles", "state"):
            (path / name).mkdir(mode=_MODE)
        atexit.register(workspace.remove)
        return workspace

    def make_bundle(self, sandbox_id: str) -> Path:
        """Make the directory of one box."""
        path = self.path / "bundles" / sandbox_id
        path.mkdir(mode=_MODE)
        return path

    def state_root(self, runtime: str) -> Path:
        """Return the directory in which ``runtime`` keeps the state of our boxes, and of no others."""
        return self.path / "state" / runtime

    def install(self, program: Path) -> Path:
        """Return a copy of ``program`` that ids without rights on this host can reach, made on first use."""
        copy = self.path / program.name
        if not copy.exists():
            temporary = copy.with_suffix(".new")
            shutil.copyfile(program, temporary)
            temporary.chmod(0o555)
            temporary.rename(copy)
        return copy

    def remove(self) -> None:
        """Remove the directory and all in it. A forked child's call does nothing: the directory is its parent's."""
        if os.getpid() == self._owner:
            shutil.rmtree(self.path, ignore_errors=True)


@functools.cache
def workspace() -> Workspace:
    """Return the workspace of this process, made on first use."""
    return Workspace.create()
