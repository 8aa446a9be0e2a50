"""Boxes that are ready: giving them out, taking them back, starting others in their place."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Final

import trio
from attrs import frozen

from kavach_core import capabilities
from kavach_core.config import SandboxConfig
from kavach_core.errors import KavachError, PoolClosed, SandboxError
from kavach_core.lifecycle import State
from kavach_core.pool.records import PoolOptions, PoolStats
from kavach_core.sandbox import Sandbox, create_sandbox

_logger = logging.getLogger(__name__)

_PING_SECONDS: Final = 2.0
# A box that is given out is replaced this much later: its first command should not have to share the processors.
_SETTLE_SECONDS: Final = 0.05
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0


@frozen(eq=False)
class _Lease:
    """A live box and how often it may still be given out."""

    sandbox: Sandbox
    uses_left: int


class _Waiter:
    """Somebody who waits for a box, and what is brought."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.brought: _Lease | KavachError | None = None

    def bring(self, what: _Lease | KavachError) -> None:
        """Give a box, or say why there is none."""
        self.brought = what
        self.came.set()


class Pool:
    """Boxes that are ready. Made by ``open_pool``; usable by several tasks at once."""

    def __init__(self, config: SandboxConfig, options: PoolOptions) -> None:
        self.config = config
        self.options = options
        self._ready: deque[_Lease] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._closed = False
        self._changed = trio.Event()
        self._pause = 0.0
        self._settled_at = -inf
        self._starting = self._in_use = self._hits = self._waits = 0
        self._started = self._failed = self._discarded = 0
        self._wait_seconds = 0.0

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """Give a box for the length of a ``with`` block; it is the caller's alone, and closed after its last use.

        Cancellation: the box is given back, or ended and removed, before Cancelled leaves the block.

        Raises:
            PoolClosed: when the pool has been closed.
            CreateError: when the box that this call waited for does not start; likewise other errors of
                ``open_sandbox``.
            CleanupError: at the end, when something of it could not be removed.
        """
        lease = await self._claim()
        self._in_use += 1
        try:
            yield lease.sandbox
        finally:
            self._in_use -= 1
            with trio.CancelScope(shield=True):  # every step is bounded in time
                await self._take_back(_Lease(lease.sandbox, lease.uses_left - 1))

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
        while len(self._ready) < self.options.size:
            self._require_open()
            await self._changed.wait()

    # --- giving out ----------------------------------------------------------------------------

    async def _claim(self) -> _Lease:
        self._require_open()
        while self._ready and not self._waiters:
            lease = self._ready.popleft()
            if await self._wake(lease.sandbox):
                self._hits += 1
                self._settled_at = trio.current_time() + _SETTLE_SECONDS
                self._note_change()
                return lease
        return await self._wait()

    async def _wake(self, sandbox: Sandbox) -> bool:
        """Let a box go on that was ready; False when it has died meanwhile, and then it is removed."""
        try:
            with trio.fail_after(_PING_SECONDS):
                if sandbox.state is State.PAUSED:
                    await sandbox.resume()
                await sandbox.ping()
        except (SandboxError, trio.TooSlowError):
            await self._discard(sandbox)
            return False
        except trio.Cancelled:
            await sandbox.aclose()
            raise
        return True

    async def _wait(self) -> _Lease:
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._waits += 1
        self._note_change()
        began = trio.current_time()
        try:
            await waiter.came.wait()
        except trio.Cancelled:
            await self._forget(waiter)
            raise
        finally:
            self._wait_seconds += trio.current_time() - began
        if isinstance(waiter.brought, KavachError):
            raise waiter.brought
        assert waiter.brought is not None  # noqa: S101 - set before the event
        return waiter.brought

    async def _forget(self, waiter: _Waiter) -> None:
        """Let nothing be lost that was brought to somebody who has just gone."""
        if isinstance(waiter.brought, _Lease):
            with trio.CancelScope(shield=True):
                await self._keep(waiter.brought)
        elif waiter in self._waiters:
            self._waiters.remove(waiter)

    def _require_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool has been closed", hint="open_pool makes another")

    # --- taking back ---------------------------------------------------------------------------

    async def _take_back(self, lease: _Lease) -> None:
        if not lease.uses_left or self._closed:
            await lease.sandbox.aclose()
        elif await self._is_clean(lease.sandbox):
            await self._keep(lease)
        else:
            await self._discard(lease.sandbox)

    async def _is_clean(self, sandbox: Sandbox) -> bool:
        try:
            with trio.fail_after(_PING_SECONDS):
                return sandbox.state is State.RUNNING and not await sandbox.processes()
        except (SandboxError, trio.TooSlowError):
            return False

    async def _discard(self, sandbox: Sandbox) -> None:
        self._discarded += 1
        _logger.warning("sandbox %s of the pool was dead or unclean and has been closed", sandbox.id)
        await sandbox.aclose()

    async def _keep(self, lease: _Lease) -> None:
        """Bring a box to whoever waits, or make it ready."""
        if self._closed:
            await lease.sandbox.aclose()
        elif self._waiters:
            self._waiters.popleft().bring(lease)
        else:
            if capabilities.PAUSE in lease.sandbox.capabilities:
                await lease.sandbox.pause()
            self._ready.append(lease)
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
        if self._pause:
            await trio.sleep(self._pause)
            return
        deadline = self._settled_at if self._settled_at > trio.current_time() else inf
        with trio.move_on_at(deadline):
            await self._changed.wait()

    def _may_start(self) -> bool:
        if not self._waiters and trio.current_time() < self._settled_at:
            return False
        missing = self.options.size + len(self._waiters) - len(self._ready) - self._starting
        # After a failure one at a time, until one has started again.
        return missing > 0 and self._starting < (1 if self._pause else self.options.starting)

    async def _start_one(self) -> None:
        try:
            sandbox = await create_sandbox(self.config)
        except KavachError as error:
            self._note_failure(error)
        else:
            self._started += 1
            self._pause = 0.0
            try:
                await self._keep(_Lease(sandbox, self.options.uses))
            except SandboxError:
                await self._discard(sandbox)
            except trio.Cancelled:
                await sandbox.aclose()
                raise
        finally:
            self._starting -= 1
            self._note_change()

    def _note_failure(self, error: KavachError) -> None:
        """Tell whoever waits the longest, and go more slowly."""
        self._failed += 1
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        if self._waiters:
            self._waiters.popleft().bring(error)
        else:
            _logger.warning("a sandbox of the pool did not start: %s", error)

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
        failures: list[SandboxError] = []

        async def close(sandbox: Sandbox) -> None:
            try:
                await sandbox.aclose()
            except SandboxError as error:
                failures.append(error)  # raised below, bare: the nursery would wrap it in a group

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                while self._ready:
                    nursery.start_soon(close, self._ready.popleft().sandbox)
        if failures:
            raise failures[0]
