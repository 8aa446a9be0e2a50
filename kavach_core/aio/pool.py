"""A pool as tasks of asyncio use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kavach_core import pool
from kavach_core.aio.calls import hold, plain
from kavach_core.aio.sandbox import Sandbox
from kavach_core.portal import PoolView


class Pool(PoolView):
    """Boxes that are ready. Made by ``open_pool``; usable by several tasks at once."""

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """Give a box for the length of a ``with`` block; it is the caller's alone, and closed after its last use.

        Cancellation: CancelledError leaves the block when the box is given back, or ended and removed.

        Raises:
            PoolClosed: when the pool has been closed.
            CreateError: when the box that this call waited for does not start; likewise other errors of
                ``open_sandbox``.
            CleanupError: at the end, when something of it could not be removed.
            WrongLoop: outside of asyncio, or after the block of the pool.
        """
        async with hold(self._portal, self._core.sandbox()) as given:
            yield Sandbox(self._portal, given)

    wait_filled = plain(pool.Pool.wait_filled)
