"""Who runs beside whom: what a shared counter says can be put down to one command only if it ran alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define


@define(eq=False)
class Entry:
    """One who runs.

    Attributes:
        alone: nobody else has run at any moment since this one began.
    """

    alone: bool


class Registry:
    """All who run now."""

    def __init__(self) -> None:
        self._entries: set[Entry] = set()

    @contextmanager
    def enter(self) -> Iterator[Entry]:
        """Be among them for the length of a ``with`` block."""
        for other in self._entries:
            other.alone = False
        entry = Entry(alone=not self._entries)
        self._entries.add(entry)
        try:
            yield entry
        finally:
            self._entries.discard(entry)
