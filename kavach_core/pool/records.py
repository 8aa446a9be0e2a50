"""How a pool is to keep its boxes, and what it has done: plain data."""

from __future__ import annotations

import os
from typing import Final

from attrs import frozen

from kavach_core.validation import check_all, checked, number

_most: Final = number(minimum=1, maximum=10_000, unit="", integer=True)


@frozen(kw_only=True)
class PoolOptions:
    """How a pool keeps its boxes.

    Attributes:
        size: how many boxes to keep ready; there are more when boxes that may be used again come back, or when
            somebody has gone for whom one was being started.
        uses: how many times a box is given out before it is closed; after each use but the last it must have
            no process.
        starting: how many boxes are started at once; as many as there are processors if left out.
    """

    size: int = checked(_most)
    uses: int = checked(_most, default=1)
    starting: int = checked(_most, factory=lambda: os.cpu_count() or 1)

    def __attrs_post_init__(self) -> None:
        check_all(self)


@frozen(kw_only=True)
class PoolStats:
    """What a pool has done so far, and what it holds.

    Attributes:
        ready: boxes that wait for somebody.
        starting: boxes that are being started.
        in_use: boxes that somebody has.
        hits: how often somebody found one ready.
        waits: how often somebody had to wait.
        wait_seconds: how long all of them waited together.
        started: boxes started.
        failed: boxes that did not start.
        discarded: boxes that were found dead or unclean before they could be given out again.
    """

    ready: int
    starting: int
    in_use: int
    hits: int
    waits: int
    wait_seconds: float
    started: int
    failed: int
    discarded: int
