"""Which symbolic links of a hostile tree lead nowhere else."""

from __future__ import annotations

import itertools


def stays_inside(target: bytes, depth: int) -> bool:
    """Say whether a link cannot lead out of its tree, whatever else is in that.

    So it is for a relative target whose ``..`` all stand in front and are no more than there are directories above it
    in the tree: they go up through real directories, and from there it only goes down. A ``..`` after a name
    is refused, because the name may be a link itself: ``here -> .`` and ``out -> here/../secret``.

    Args:
        target: what the link says.
        depth: in how many directories of the tree, the root not counted, the link is.
    """
    if target.startswith(b"/"):
        return False
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    climbs = sum(1 for _ in itertools.takewhile(lambda part: part == b"..", parts))
    return climbs <= depth and b".." not in parts[climbs:]
