"""Where boxes keep their files on the host.

    BASE/                 0711, root's, shared by all processes that use kavach
        ids/              locks on ranges of user ids
        shared/           read-only things that boxes of all instances use, named by what they were made from:
                          copies of the agent, skeletons of the host's toolchain; see ``garbage``
        instance-WORD/    one process's: see ``kavach_core.reaper.instance``

Directories are 0711 and not 0700 because the runtime reads bundle and mounts with the unprivileged ids of the box.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from kavach_core.errors import CreateError
from kavach_core.reaper import identity
from kavach_core.reaper.instance import Instance

_log = logging.getLogger(__name__)
_CANDIDATES: Final = (Path("/run"), Path("/dev/shm"), Path("/var/lib"))  # noqa: S108 - only below a directory of root's own
_MODE: Final = 0o711
_OTHERS_WRITE: Final = 0o022
FRESH_SHARED: Final = ".new-"
"""How the name of a shared directory begins that is being made; then comes who makes it."""


@functools.cache
def base_directory() -> Path:
    """Return the directory that all instances on this host share, made if need be.

    Raises:
        CreateError: when none can be had: not root, or every candidate is read-only or mounted noexec.
    """
    refusals = []
    for parent in _usable_parents():
        path = parent / _name()
        try:
            path.mkdir(mode=_MODE, exist_ok=True)
            if _is_ours(path):
                _let_boxes_through(path)
                return path
        except OSError as error:
            refusals.append(f"{path}: {error.strerror}")
            continue
        refusals.append(f"{path}: not a directory of uid {os.geteuid()} closed to others")
    raise CreateError(
        f"no directory for runtime files: {'; '.join(refusals) or 'every candidate is mounted noexec or read-only'}",
        stage="workspace",
        hint="run as root, or free one of them",
    )


def _name() -> str:
    """One name for each user: in a directory that all may write to, the first of them must not take it from root."""
    return f"kavach-{os.geteuid()}" if os.geteuid() else "kavach"


def existing_bases() -> list[Path]:
    """Return the directories that instances of this user may have been made in, those that are there."""
    bases = [parent / _name() for parent in _CANDIDATES]
    return [base for base in bases if base.is_dir() and not base.is_symlink() and _is_ours(base)]


def _usable_parents() -> Iterator[Path]:
    # In memory first: a bundle and a ledger on a disk cost more than the box, and outlive it for nothing.
    for parent in sorted(_CANDIDATES, key=lambda parent: not _is_in_memory(parent)):
        # The agent is started from below this directory, so noexec rules a file system out.
        if parent.is_dir() and not os.statvfs(parent).f_flag & (os.ST_NOEXEC | os.ST_RDONLY):
            yield parent


def _is_in_memory(path: Path) -> bool:
    fields = [line.split() for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines()]
    kinds = {point: kind for _, point, kind, *_ in fields}
    return next((kinds[str(parent)] for parent in (path, *path.parents) if str(parent) in kinds), "") == "tmpfs"


def _is_ours(path: Path) -> bool:
    """Say whether a directory is this user's, and nobody else can write to it or put another in its place."""
    status, above = path.lstat(), path.parent.stat()
    stays = above.st_uid in (0, os.geteuid()) and (not above.st_mode & _OTHERS_WRITE or above.st_mode & stat.S_ISVTX)
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE
    return bool(own and stays)


def _let_boxes_through(path: Path) -> None:
    """Give a directory of ours the mode that boxes need: who made it may have had a umask that takes it away."""
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode & _MODE != _MODE:
        path.chmod(mode | _MODE)


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """Return the shared directory ``name``, filled by ``make`` on first use.

    ``name`` has to say what it was made from, so that a directory once made is right for ever. Two processes
    that make it at once both succeed; one of the two is kept.
    """
    directory = base_directory() / "shared"
    directory.mkdir(mode=_MODE, exist_ok=True)
    _let_boxes_through(directory)
    path = directory / name
    if path.exists():
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # says when it was last needed
    else:
        own = identity.own()
        maker = f"{own['namespace']}-{own['pid']}-{own['start']}-"
        fresh = Path(tempfile.mkdtemp(prefix=f"{FRESH_SHARED}{maker}", dir=directory))
        make(fresh)
        fresh.chmod(0o755)
        try:
            fresh.rename(path)
        except OSError:  # another process was quicker
            shutil.rmtree(fresh)
    return path


def fingerprint(*paths: Path) -> str:
    """Return a word that changes when one of ``paths`` is replaced, written to or removed."""
    facts: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            facts.append(())
        else:
            facts.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def install(program: Path) -> Path:
    """Return a copy of ``program`` that ids without rights on this host can reach and start."""

    def copy(directory: Path) -> None:
        shutil.copyfile(program, directory / program.name)
        (directory / program.name).chmod(0o555)

    return shared(f"{program.name}-{fingerprint(program)}", copy) / program.name


class Workspace:
    """What this process has of the host, removed at its exit.

    Attributes:
        instance: its directory, ledger, lock and watchdog.
    """

    def __init__(self, *, watchdog: Path, roots: tuple[str, ...]) -> None:
        self.instance = Instance(str(base_directory()), watchdog=str(watchdog), roots=roots)
        self._owner = os.getpid()
        atexit.register(self.remove)

    @property
    def path(self) -> Path:
        """Its directory."""
        return Path(self.instance.path)

    def remove(self) -> None:
        """Remove all of it, boxes that are still there included. A second call, or a forked child's, does nothing."""
        if os.getpid() != self._owner or self not in _current:
            return
        _current.remove(self)
        left = self.instance.remove()
        if left:
            _log.error("left on the host: %s", ", ".join(left))


_current: list[Workspace] = []
_opening = threading.Lock()


def workspace() -> Workspace | None:
    """Return the workspace of this process, if it has one by now."""
    return _current[0] if _current else None


def open_workspace(*, watchdog: Path, roots: tuple[str, ...]) -> Workspace:
    """Return the workspace of this process, made on first use.

    Args:
        watchdog: path of ``kavach-watchdog``.
        roots: mount points of all cgroup hierarchies.

    Raises:
        OSError: when it cannot be made.
        CreateError: when this host has no place for it.
    """
    with _opening:
        if not _current:
            _current.append(Workspace(watchdog=watchdog, roots=roots))
        return _current[0]


def _forget() -> None:
    """A forked child has nothing of its parent's: its own boxes get an instance of their own."""
    global _opening  # noqa: PLW0603 - a thread of the parent's may have held it
    _opening = threading.Lock()
    while _current:
        _current.pop().instance.abandon()


os.register_at_fork(after_in_child=_forget)
