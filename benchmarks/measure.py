"""Interleaved measurement: every case once a round, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import define, field

Case = Callable[[], Awaitable[None]]


@define
class Measurements:
    """Milliseconds of each case, unless its name says another unit, in the order in which the cases were declared."""

    samples: dict[str, list[float]] = field(factory=dict)

    def add(self, name: str, value: float) -> None:
        """Take one sample."""
        self.samples.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Return the median of a case, in milliseconds."""
        return statistics.median(self.samples[name])

    def has(self, *names: str) -> bool:
        """Say whether all of these cases were measured."""
        return all(self.samples.get(name) for name in names)

    def row(self, name: str) -> dict[str, Any]:
        """Return the figures of a case."""
        values = sorted(self.samples[name])
        return {
            "case": name,
            "median": round(statistics.median(values), 3),
            "p90": round(values[int(len(values) * 0.9) - 1], 3),
            "rounds": len(values),
        }


async def interleave(cases: Sequence[tuple[str, Case]], *, rounds: int, into: Measurements) -> None:
    """Run every case ``rounds`` times, one of each a round, after one round that does not count."""
    for number in range(rounds + 1):
        for name, case in cases:
            started = time.perf_counter()
            await case()
            elapsed = (time.perf_counter() - started) * 1000
            if number:
                into.add(name, elapsed)
