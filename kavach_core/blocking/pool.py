"""A pool as threads use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kavach_core import pool
from kavach_core.blocking.calls import hold, plain
from kavach_core.blocking.sandbox import Sandbox
from kavach_core.portal import PoolView


class Pool(PoolView):
    """Boxes that are ready. Made by ``open_pool``; usable by several threads at once."""

    @contextmanager
    def sandbox(self) -> Iterator[Sandbox]:
        """Give a box for the length of a ``with`` block; it is the caller's alone, and closed after its last use.

        Cancellation: KeyboardInterrupt leaves the block when the box is given back, or ended and removed.

        Raises:
            PoolClosed: when the pool has been closed.
            CreateError: when the box that this call waited for does not start; likewise other errors of
                ``open_sandbox``.
            CleanupError: at the end, when something of it could not be removed.
            WrongLoop: inside of trio, or after the block of the pool.
        """
        with hold(self._portal, self._core.sandbox()) as given:
            yield Sandbox(self._portal, given)

    wait_filled = plain(pool.Pool.wait_filled)
