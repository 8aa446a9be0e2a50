"""What soak tests share: how many rounds, what this process holds of the host, and a table of figures."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import frozen

from kavach_core.oci import aftermath
from kavach_core.oci.workspace import workspace

LONG = bool(os.environ.get("KAVACH_SOAK"))
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1024 * 1024


def rounds(*, short: int, long: int) -> int:
    """Return how often to do something: ``long`` when KAVACH_SOAK is set."""
    return long if LONG else short


@frozen(kw_only=True)
class Holdings:
    """What this process holds of the host.

    Attributes:
        descriptors: open descriptors.
        threads: of this process.
        children: processes that it has started and that are there, dead or alive.
        cgroups: directories of this process's cgroup in all hierarchies.
        mounts: of its mount namespace.
        rss: resident memory in bytes.
    """

    descriptors: int
    threads: int
    children: int
    cgroups: int
    mounts: int
    rss: int

    @classmethod
    def now(cls) -> Holdings:
        """Look."""
        own = str(os.getpid())
        stats = (_read(entry / "stat") for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return cls(
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            threads=threading.active_count(),
            children=sum(stat.rpartition(")")[2].split()[1:2] == [own] for stat in stats),
            cgroups=_own_cgroups(),
            mounts=len(_read(Path("/proc/self/mountinfo")).splitlines()),
            rss=host_rss(),
        )

    def row(self, name: str) -> str:
        """Return them as a row of a table."""
        return (
            f"{name:<28} descriptors {self.descriptors:>4}  threads {self.threads:>3}  children {self.children:>3}  "
            f"cgroups {self.cgroups:>4}  mounts {self.mounts:>3}  RSS {self.rss / MIB:>6.1f} MiB"
        )


async def settled() -> None:
    """Wait until boxes that are closed are removed as well."""
    with trio.fail_after(60):
        while aftermath.tally.pending:  # noqa: ASYNC110 - it sets no trio.Event
            await trio.sleep(0.01)


def _own_cgroups() -> int:
    own = workspace()
    if own is None:
        return 0
    group = own.instance.group
    return sum(1 for name in (f"{group}/**", f"*/{group}/**") for _ in CGROUPS.glob(name))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def host_rss() -> int:
    """Return this process's resident memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


Show = Callable[..., None]
"""Tells lines of figures at the end of the run: the fixture ``show``."""
