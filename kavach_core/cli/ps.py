"""``kavach ps``: list the live boxes of this user."""

from __future__ import annotations

import argparse
import json

from attrs import asdict

from kavach_core.cli.gc import require_root
from kavach_core.oci.garbage import LiveBox, live_boxes

_COLUMNS = "{:<18}{:<10}{:>8}  {:>8}  {}"
_UNKNOWN = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def show_boxes(options: argparse.Namespace, _: list[str]) -> int:
    """Print the boxes, the oldest first."""
    require_root()
    boxes = live_boxes()
    if options.json:
        print(json.dumps([asdict(box) for box in boxes], indent=2))
    else:
        _print(boxes)
    return 0


def _print(boxes: list[LiveBox]) -> None:
    print(_COLUMNS.format("ID", "BACKEND", "OWNER", "AGE", "STATE"))
    for box in boxes:
        print(_COLUMNS.format(box.id, box.backend, box.owner_pid or _UNKNOWN, age(box.age_seconds), box.state))


def age(seconds: float | None) -> str:
    """Return a length of time in its largest unit, for example ``3m``; ``-`` for one that is not known."""
    if seconds is None:
        return _UNKNOWN
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{name}"
    return f"{int(seconds)}s"
