"""How fast a pool starts boxes: after a box was given out, and after one did not start."""

from __future__ import annotations

from math import inf
from typing import Final

import trio

# A box that is given out is replaced this much later: its first command should not have to share the processors.
_SETTLE_SECONDS: Final = 0.05
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0


class Pace:
    """When the next box may be started.

    Attributes:
        pause: how long to wait between two attempts, in seconds; 0 unless the last one has failed.
    """

    def __init__(self) -> None:
        self.pause = 0.0
        self._settled_at = -inf

    @property
    def has_settled(self) -> bool:
        """True when nobody has just been given a box."""
        return trio.current_time() >= self._settled_at

    @property
    def settles_at(self) -> float:
        """When whoever was given a box will have settled, on trio's clock; never when all have."""
        return inf if self.has_settled else self._settled_at

    def note_given(self) -> None:
        """Somebody was given a box."""
        self._settled_at = trio.current_time() + _SETTLE_SECONDS

    def note_start(self) -> None:
        """A box has started, and is of use."""
        self.pause = 0.0

    def note_failure(self) -> None:
        """A box did not start, or was of no use."""
        self.pause = min(max(self.pause * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
