"""``kavach cp``: copy files between the host and a live box of another process of the same user."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from attrs import asdict, frozen

from kavach_core.cli.gc import require_root
from kavach_core.control.client import Owned, ask, find_boxes
from kavach_core.control.wire import Copied, Direction, Refused, Request
from kavach_core.errors import ConfigError, FieldProblem, SandboxError
from kavach_core.exit_status import EXIT_FAILED
from kavach_core.printable import printable

_SHORTEST_PREFIX = 4
_DIGITS = frozenset("0123456789abcdef")
_USAGE = "write exactly one side as ID:PATH, with the ID of a box that kavach ps shows"


@frozen
class _Side:
    """A source or a target.

    Attributes:
        text: as it was written.
        box: the id of a box, or its beginning; None on the host.
        path: the path there.
    """

    text: str
    box: str | None
    path: str


@frozen(kw_only=True)
class _Job:
    source: str
    target: str
    owned: Owned
    request: Request


def copy_files(options: argparse.Namespace, _: list[str]) -> int:
    """Copy each source to the target. What cannot be copied is complained about, and the others are copied."""
    require_root()
    *sources, target = map(_side, options.paths)
    if not sources:
        raise ConfigError([FieldProblem("target", "is missing", "kavach cp [OPTIONS] SOURCE [SOURCE ...] TARGET")])
    done: list[dict[str, Any]] = []
    jobs = _jobs(sources, target, user=options.user)
    for job in jobs:
        answer = _carry_out(job)
        if isinstance(answer, Copied):
            done.append({"source": job.source, "target": job.target, **asdict(answer)})
            _tell_what_was_left_out(job, answer)
        else:
            _complain(f"cannot copy {job.source}: {answer.message}")
    if options.json:
        print(json.dumps(done, indent=2))
    return 0 if len(done) == len(jobs) else EXIT_FAILED


def _side(text: str) -> _Side:
    """Tell ``ID:PATH`` from a path of the host, in which a slash stands before any colon."""
    box, colon, path = text.partition(":")
    return _Side(text, box, path) if colon and "/" not in box else _Side(text, None, text)


def _jobs(sources: list[_Side], target: _Side, *, user: str | None) -> list[_Job]:
    """Work out what to copy where.

    Raises:
        ConfigError: with all that is wrong; nothing has been copied then.
    """
    _check(sources, target)
    boxes = _find_all([side.box for side in (*sources, target) if side.box is not None])
    inside = len(sources) > 1 or target.path.endswith("/")
    return [_job(source, target, boxes, inside=inside, user=user) for source in sources]


def _check(sources: list[_Side], target: _Side) -> None:
    problems = [FieldProblem(_shown(side.text), "names no path") for side in (*sources, target) if not side.path]
    for source in sources:
        if (source.box is None) == (target.box is None):
            what = "neither it nor the target is in a box" if target.box is None else "it and the target are in boxes"
            problems.append(FieldProblem(_shown(source.text), what, _USAGE))
    if problems:
        raise ConfigError(problems)


def _find_all(prefixes: list[str]) -> dict[str, Owned]:
    """Return the boxes by what was written for them.

    Raises:
        ConfigError: for each that is not the id of one live box, or the beginning of one's alone.
    """
    problems: list[FieldProblem] = []
    found: dict[str, Owned] = {}
    for prefix in dict.fromkeys(prefixes):
        boxes = find_boxes(prefix) if _is_id(prefix) else []
        if len(boxes) == 1:
            found[prefix] = boxes[0]
        elif boxes:
            ids = ", ".join(sorted(box.box_id for box in boxes))
            problems.append(FieldProblem(prefix, f"may be {ids}", "write more digits"))
        else:
            problems.append(FieldProblem(_shown(prefix), "no such box", "kavach ps shows those there are"))
    if problems:
        raise ConfigError(problems)
    return found


def _is_id(prefix: str) -> bool:
    return len(prefix) >= _SHORTEST_PREFIX and not set(prefix) - _DIGITS


def _job(source: _Side, target: _Side, boxes: dict[str, Owned], *, inside: bool, user: str | None) -> _Job:
    upload = source.box is None
    here, there = (source, target) if upload else (target, source)
    assert there.box is not None  # noqa: S101 - one of the two has it
    owned = boxes[there.box]
    request = Request(
        box=owned.box_id,
        direction=Direction.UPLOAD if upload else Direction.DOWNLOAD,
        local=os.path.join(os.getcwd(), here.path),  # noqa: PTH109, PTH118 - a last dot or slash has to stay
        remote=there.path,
        inside=inside,
        user=user,
    )
    return _Job(source=_shown(source.text), target=_shown(target.text), owned=owned, request=request)


def _carry_out(job: _Job) -> Copied | Refused:
    try:
        return ask(job.owned, job.request)
    except SandboxError as error:
        return Refused(code=error.code, message=str(error))


def _tell_what_was_left_out(job: _Job, copied: Copied) -> None:
    if copied.skipped_count:
        names = ", ".join(map(_shown, copied.skipped))
        _complain(f"left out of {job.source}: {copied.skipped_count}, for example {names}")


def _shown(text: str) -> str:
    """Return a name as it can be shown to a person, on one line."""
    return printable(os.fsencode(text)).replace("\n", " ")


def _complain(text: str) -> None:
    print(f"kavach: {_shown(text)}", file=sys.stderr)
