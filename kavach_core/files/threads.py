"""Threads for the host's side of copying: never those that all of the loop share.

Whoever calls from a worker thread of trio's holds one of these, and waits for the copy. Where all of them wait, there
would be none left for the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

import trio

_MOST_THREADS: Final = 16

P = ParamSpec("P")
T = TypeVar("T")

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("kavach_files_threads")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do in a thread what waits for the host's files alone, and for no box.

    Cancellation: waits for the end of the work.

    Raises:
        Exception: whatever ``work`` raises.
    """
    return await trio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=_own_limiter())


def _own_limiter() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(trio.CapacityLimiter(_MOST_THREADS))
        return _limiter.get()
