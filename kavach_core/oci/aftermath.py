"""What is still done when a box is dead and its caller has gone on: waiting for its runtime, removing what is left.

Each such work is a system task of trio: ``trio.run`` does not return before it is done, nobody's nursery is
needed, and no cancellation reaches it. Its failure ends no program: it is logged, counted, and the ledger
keeps the box, so that the end of this process, its watchdog, the next sweep or ``kavach gc`` goes on with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define

from kavach_core.errors import CleanupError

_log = logging.getLogger(__name__)
_MOST_THREADS: Final = 4
_MOST_PENDING: Final = 64
"""So many boxes may be dead and not removed: who closes more waits, or they would heap up faster than they can go."""


@define
class Tally:
    """What has become of dead boxes in this process.

    Attributes:
        pending: dead, and not yet removed.
        removed: known to be gone.
        failed: something of them could not be removed in time.
    """

    pending: int = 0
    removed: int = 0
    failed: int = 0


tally = Tally()
"""Of all boxes of this process."""
_counting = threading.Lock()

_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("_threads")


def threads() -> trio.CapacityLimiter:
    """Return the bound on threads for such work in this loop: its own, as those of the caller may all be busy."""
    try:
        return _threads.get()
    except LookupError:
        _threads.set(trio.CapacityLimiter(_MOST_THREADS))
        return _threads.get()


async def finish(work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work``, which removes a box, and count how it ends.

    Cancellation: shielded; ``work`` has a deadline of its own.

    Raises:
        CleanupError: whatever ``work`` raises.
    """
    _count(pending=1)
    await _finish(work)


async def _finish(work: Callable[[], Awaitable[None]]) -> None:
    try:
        with trio.CancelScope(shield=True):
            await work()
    except BaseException:
        _count(pending=-1, failed=1)
        raise
    _count(pending=-1, removed=1)


def _count(*, pending: int, removed: int = 0, failed: int = 0) -> None:
    with _counting:  # each thread of the process may have a loop of its own
        tally.pending += pending
        tally.removed += removed
        tally.failed += failed


async def finish_later(work: Callable[[], Awaitable[None]]) -> None:
    """Have ``work`` done without waiting for it; do it now when much is pending, or trio takes no tasks any more."""
    much = tally.pending >= _MOST_PENDING
    _count(pending=1)
    if much:
        await _finish_quietly(work)
        return
    try:
        trio.lowlevel.spawn_system_task(_finish_quietly, work)
    except RuntimeError:  # trio.run is about to return: an async generator is closed at the very end
        await _finish_quietly(work)


async def _finish_quietly(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await _finish(work)
    except CleanupError as error:
        _log.error("sandbox %s: %s", error.sandbox_id, error)
    except Exception:  # noqa: BLE001 - in a system task it would end the caller's whole program
        _log.exception("a sandbox was not removed; kavach gc removes what is left when this process has ended")
