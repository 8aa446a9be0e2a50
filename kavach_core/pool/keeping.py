"""Boxes that are ready: giving them out, taking them back, starting others in their place.

At every step that waits, the caller may be cancelled and the pool be closed. So a box is always in one place: it is
ready, brought to somebody, somebody's, or carried by a task that puts it away before it lets go of it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from kavach_core.config import SandboxConfig
from kavach_core.errors import KavachError, PoolClosed
from kavach_core.pool.boxes import Lease, Waiter, check_clean, may_lie_ready, pause, put_away, resume, wake
from kavach_core.pool.pace import Pace
from kavach_core.pool.records import PoolOptions, PoolStats
from kavach_core.sandbox import Sandbox, create_sandbox

_logger = logging.getLogger(__name__)


class Pool:
    """Boxes that are ready. Made by ``open_pool``; usable by several tasks at once."""

    def __init__(self, config: SandboxConfig, options: PoolOptions) -> None:
        self.config = config
        self.options = options
        self._ready: deque[Lease] = deque()
        self._waiters: deque[Waiter] = deque()
        self._closed = False
        self._changed = trio.Event()
        self._pace = Pace()
        self._carried = self._starting = self._in_use = self._hits = self._waits = 0
        self._started = self._failed = self._discarded = 0
        self._wait_seconds = 0.0

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """Give a box for the length of a ``with`` block; it is the caller's alone, and closed after its last use.

        Cancellation: the box is given back, or ended and removed, before Cancelled leaves the block.

        Raises:
            PoolClosed: when the pool has been closed, or is closed before this call has a box.
            CreateError: when the box that this call waited for does not start; likewise other errors of
                ``open_sandbox``.
            CleanupError: at the end, when it is closed and something of it could not be removed.
        """
        lease = await self._claim()
        self._in_use += 1
        try:
            yield lease.sandbox
        finally:
            self._in_use -= 1
            with trio.CancelScope(shield=True), self._carrying():  # every step is bounded in time
                await self._take_back(Lease(lease.sandbox, lease.uses_left - 1))

    def stats(self) -> PoolStats:
        """Return what the pool has done and holds now."""
        return PoolStats(
            ready=len(self._ready),
            starting=self._starting,
            in_use=self._in_use,
            hits=self._hits,
            waits=self._waits,
            wait_seconds=self._wait_seconds,
            started=self._started,
            failed=self._failed,
            discarded=self._discarded,
        )

    async def wait_filled(self) -> None:
        """Wait until as many boxes as it is to hold are ready.

        Raises:
            PoolClosed: when the pool is closed meanwhile.
        """
        await trio.lowlevel.checkpoint()
        self._require_open()
        while len(self._ready) < self.options.size:
            await self._changed.wait()
            self._require_open()

    # --- giving out ----------------------------------------------------------------------------

    async def _claim(self) -> Lease:
        self._require_open()
        while self._ready and not self._waiters:
            await trio.lowlevel.checkpoint_if_cancelled()  # it would cost a box that nobody gets
            lease = self._ready.popleft()
            with self._carrying():
                woken = await self._wake(lease.sandbox)
            if woken:
                self._hits += 1
                self._pace.note_given()
                return lease
        return await self._wait()

    async def _wake(self, sandbox: Sandbox) -> bool:
        """Let a box go on that was ready; False when there is nothing to give, and then it is removed."""
        try:
            await wake(sandbox)
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, this box is of no use
            await self._discard(sandbox, error)
            return False
        except BaseException:
            await put_away(sandbox)
            raise
        if self._closed:
            await put_away(sandbox)
            return False
        return True

    async def _wait(self) -> Lease:
        self._require_open()  # nobody looks at the waiters of a closed pool
        waiter = Waiter()
        self._waiters.append(waiter)
        self._waits += 1
        self._note_change()
        began = trio.current_time()
        try:
            await waiter.came.wait()
        except BaseException:
            await self._forget(waiter)
            raise
        finally:
            self._wait_seconds += trio.current_time() - began
        if isinstance(waiter.brought, Exception):
            raise waiter.brought
        assert waiter.brought is not None  # noqa: S101 - set before the event
        return waiter.brought

    async def _forget(self, waiter: Waiter) -> None:
        """Let nothing be lost that was brought to somebody who has just gone."""
        if isinstance(waiter.brought, Lease):
            with trio.CancelScope(shield=True), self._carrying():
                await self._keep(waiter.brought)
        elif waiter in self._waiters:
            self._waiters.remove(waiter)

    def _require_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool has been closed", hint="open_pool makes another")

    # --- taking back ---------------------------------------------------------------------------

    async def _take_back(self, lease: Lease) -> None:
        if not lease.uses_left or self._closed:
            await lease.sandbox.aclose()
            return
        try:
            await check_clean(lease.sandbox)
        except Exception as error:  # noqa: BLE001 - as in _wake
            await self._discard(lease.sandbox, error)
        else:
            await self._keep(lease)

    async def _discard(self, sandbox: Sandbox, reason: Exception) -> None:
        self._discarded += 1
        _logger.warning("sandbox %s of the pool was dead or unclean and is closed: %s", sandbox.id, reason)
        await put_away(sandbox)

    async def _keep(self, lease: Lease) -> bool:
        """Bring a box to whoever waits, or make it ready; False when it is of no use, and then it is removed.

        Cancellation: the box is removed.
        """
        try:
            await self._place(lease)
        except Exception as error:  # noqa: BLE001 - as in _wake
            await self._discard(lease.sandbox, error)
            return False
        except BaseException:
            await put_away(lease.sandbox)
            raise
        return True

    async def _place(self, lease: Lease) -> None:
        """Find the place of a box, and look again after every step: somebody may have come, or the pool be closed."""
        while not self._closed:
            if self._waiters:
                await resume(lease.sandbox)
                if self._waiters:
                    self._waiters.popleft().bring(lease)
                    return
            elif may_lie_ready(lease.sandbox):
                self._ready.append(lease)
                self._note_change()
                return
            else:
                await pause(lease.sandbox)
        await put_away(lease.sandbox)

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """Tell those who fill or end the pool that a box is in no list, and when it has gone where it belongs."""
        self._carried += 1
        try:
            yield
        finally:
            self._carried -= 1
            self._note_change()

    # --- filling -------------------------------------------------------------------------------

    async def keep_filled(self, nursery: trio.Nursery) -> None:
        """Start boxes whenever there are too few, until cancelled."""
        while True:
            while self._may_start():
                self._starting += 1
                nursery.start_soon(self._start_one)
            await self._rest()

    async def _rest(self) -> None:
        """Wait until there may be something to start."""
        if not self._pace.pause:
            with trio.move_on_at(self._pace.settles_at):
                await self._changed.wait()
            return
        with trio.move_on_after(self._pace.pause):
            while self._pace.pause:
                await self._changed.wait()

    def _may_start(self) -> bool:
        if not self._waiters and not self._pace.has_settled:
            return False
        missing = self.options.size + len(self._waiters) - len(self._ready) - self._starting
        # After a failure one at a time, until one has started again.
        return missing > 0 and self._starting < (1 if self._pace.pause else self.options.starting)

    async def _start_one(self) -> None:
        try:
            sandbox = await create_sandbox(self.config)
        except Exception as error:  # noqa: BLE001 - the next one may start, and others have theirs in use
            self._note_failure(error)
        else:
            self._started += 1
            if await self._keep(Lease(sandbox, self.options.uses)):
                self._pace.note_start()
            else:
                self._pace.note_failure()
        finally:
            self._starting -= 1
            self._note_change()

    def _note_failure(self, error: Exception) -> None:
        """Tell whoever waits the longest, and go more slowly."""
        self._failed += 1
        self._pace.note_failure()
        if self._waiters:
            self._waiters.popleft().bring(error)
        else:
            unforeseen = not isinstance(error, KavachError)
            _logger.warning("a sandbox of the pool did not start: %s", error, exc_info=error if unforeseen else None)

    def _note_change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    # --- ending --------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take no more claims, and end and remove every box that nobody has.

        Cancellation: shielded; the backend bounds the end of each box.

        Raises:
            CleanupError: when something of one could not be removed.
        """
        self._closed = True
        self._note_change()
        while self._waiters:
            self._waiters.popleft().bring(PoolClosed("the pool has been closed"))
        failures: list[Exception] = []

        async def close(sandbox: Sandbox) -> None:
            try:
                await sandbox.aclose()
            except Exception as error:
                _logger.exception("sandbox %s of the pool could not be closed", sandbox.id)
                failures.append(error)  # raised below, bare: the nursery would wrap it in a group

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                while self._ready:
                    nursery.start_soon(close, self._ready.popleft().sandbox)
            while self._carried:
                await self._changed.wait()
        if failures:
            raise failures[0]
