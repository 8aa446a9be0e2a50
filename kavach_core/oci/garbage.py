"""What dead owners have left on this host, and what is alive: for ``kavach gc`` and ``kavach ps``.

Only what a ledger owns is touched, and only when its owner is dead; of what all share, only what no living owner needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kavach_core.oci import idrange
from kavach_core.oci.cgroups import CgroupLayout, detect_layout
from kavach_core.oci.freezer import Freezer
from kavach_core.oci.workspace import FRESH_SHARED, existing_bases
from kavach_core.reaper import identity
from kavach_core.reaper.files import remove_path
from kavach_core.reaper.groups import members
from kavach_core.reaper.instance import group_of
from kavach_core.reaper.sweep import Remains, find_living, find_remains

_UNUSED_SECONDS: Final = 24 * 3600
_SPEC_BYTES: Final = 4 * 1024 * 1024
_MOST_PID: Final = 2**22  # proc(5), pid_max
_END_OF_TIME: Final = 2.0**40

Record = dict[str, Any]


@frozen(kw_only=True)
class Finding:
    """Something that a dead owner left, or that nobody needs.

    Attributes:
        kind: ``instance``, ``shared`` or ``ids``.
        path: where it is.
        owner_pid: whose it was, or None.
        boxes: ids of the boxes that it had.
        removed: it is gone; False when that was not asked for.
        left: what of it is still there although it was to go.
    """

    kind: str
    path: str
    owner_pid: int | None = None
    boxes: tuple[str, ...] = ()
    removed: bool = False
    left: tuple[str, ...] = ()


@frozen(kw_only=True)
class LiveBox:
    """A box with a living owner.

    Attributes:
        id: its id.
        backend: the backend it was opened with.
        owner_pid: the process that has it, None when its ledger does not tell.
        age_seconds: since it was asked for; likewise.
        state: ``starting``, ``running``, ``paused`` or ``ending``.
    """

    id: str
    backend: str
    owner_pid: int | None
    age_seconds: float | None
    state: str


def collect(*, dry_run: bool) -> list[Finding]:
    """Remove what dead owners have left, and what nobody needs; with ``dry_run`` only say what that is.

    Blocks for as long as the kernel takes to let go of things, bounded by a few seconds for each dead owner.
    """
    roots = [str(root) for root in detect_layout().roots]
    findings = []
    for base in map(str, existing_bases()):
        findings += [_end(remains, roots, dry_run=dry_run) for remains in find_remains(base)]
        findings += _unused(base, dry_run=dry_run)
        locks = idrange.prune(base, dry_run=dry_run)
        if locks:
            findings.append(Finding(kind="ids", path=f"{base}/ids ({locks} unused)", removed=not dry_run))
    return findings


def _end(remains: Remains, roots: list[str], *, dry_run: bool) -> Finding:
    left = [] if dry_run else remains.remove(roots)
    return Finding(
        kind="instance",
        path=remains.path,
        owner_pid=_pid(remains.owner),
        boxes=tuple(remains.boxes),
        removed=not dry_run and not left,
        left=tuple(left),
    )


def _unused(base: str, *, dry_run: bool) -> Iterator[Finding]:
    """Find shared directories that nobody has used for a day, and that no live box has in it.

    Where a plan is being carried out that was made from one a day ago, its box does not start, and the plan
    is made anew.
    """
    directory = Path(base) / "shared"
    if not directory.is_dir():
        return
    specs = _specs_of_the_living(base)
    for entry in directory.iterdir():
        if not _is_unused(entry) or any(entry.name.encode() in spec for spec in specs):
            continue
        gone = not dry_run and remove_path(str(entry))
        left = () if gone or dry_run else (str(entry),)
        yield Finding(kind="shared", path=str(entry), removed=gone, left=left)


def _is_unused(entry: Path) -> bool:
    if entry.name.startswith(FRESH_SHARED):
        pid, _, start = entry.name.removeprefix(FRESH_SHARED).partition("-")[2].partition("-")
        namespace = entry.name.removeprefix(FRESH_SHARED).partition("-")[0]
        if namespace == str(identity.namespace()) and pid.isdigit():
            return str(identity.start_of(int(pid))) != start.partition("-")[0]
    try:
        status = entry.lstat()
    except FileNotFoundError:
        return False
    return time.time() - max(status.st_atime, status.st_mtime) > _UNUSED_SECONDS


def _specs_of_the_living(base: str) -> list[bytes]:
    specs = []
    for path, _, boxes in find_living(base):
        for box_id in boxes:
            try:
                with Path(path, "bundles", box_id, "config.json").open("rb") as file:
                    specs.append(file.read(_SPEC_BYTES))
            except OSError:
                continue  # not there yet, or not any more
    return specs


def live_boxes() -> list[LiveBox]:
    """Return the boxes of this host that have a living owner, the oldest first."""
    layout = detect_layout()
    now = time.time()
    found = []
    for base in map(str, existing_bases()):
        for path, owner, boxes in find_living(base):
            found += [_live_box(layout, path, owner, record, now) for record in boxes.values()]
    return sorted(found, key=lambda box: -(box.age_seconds or 0.0))


def _live_box(layout: CgroupLayout, path: str, owner: Record, record: Record, now: float) -> LiveBox:
    """Make of a ledger's lines what can be shown. Where a box has its things is not read but known."""
    box_id: str = record["box"]
    backend = record.get("backend")
    created = _time(record)
    return LiveBox(
        id=box_id,
        backend=backend if isinstance(backend, str) and backend.isprintable() else "",
        owner_pid=_pid(owner),
        age_seconds=None if created is None else max(0.0, now - created),
        state=_state(layout, group=f"{group_of(path)}/{box_id}", bundle=f"{path}/bundles/{box_id}"),
    )


def _pid(owner: Record) -> int | None:
    pid = owner.get("pid")
    return pid if isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid <= _MOST_PID else None


def _time(record: Record) -> float | None:
    created: object = record.get("created")
    if isinstance(created, bool) or not isinstance(created, (int, float)):
        return None
    return float(created) if 0 <= created <= _END_OF_TIME else None


def _state(layout: CgroupLayout, *, group: str, bundle: str) -> str:
    if any(members(f"{root}/{group}/box") for root in layout.roots):
        return "paused" if Freezer(layout, group).is_frozen() else "running"
    return "ending" if os.path.exists(f"{bundle}/pid") else "starting"  # noqa: PTH110 - stays text
