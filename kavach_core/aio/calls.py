"""Calling the loop from a task of asyncio: what every call of this face goes through."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from kavach_core.errors import WrongLoop
from kavach_core.portal import Job, Keeper, Lease, Mirror, Portal

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Undo = Callable[[T], Awaitable[object]]


def plain(
    method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Mirror[T], P], Coroutine[Any, Any, R]]:
    """Make the method of a mirror that calls this one in the loop, and awaits what it returns."""
    name = method.__name__

    @functools.wraps(method)
    async def mirrored(self: Mirror[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        work: Callable[[], Awaitable[R]] = lambda: getattr(self._core, name)(*args, **kwargs)  # noqa: E731
        return await call(self._portal, work)

    return mirrored


class Signal:
    """An event that another thread sets. Made in a task of asyncio."""

    def __init__(self) -> None:
        self._loop = running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake who waits, from any thread. Nothing happens when its event loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, on_cancel: Callable[[], object]) -> asyncio.CancelledError | None:
        """Wait, to the end: what comes has a clean-up to bound it. Return the cancellation that came meanwhile.

        Args:
            on_cancel: called when the task is cancelled.
        """
        cancelled = None
        while not self._event.is_set():
            try:
                await self._event.wait()
            except asyncio.CancelledError as error:
                cancelled = error
                on_cancel()
        return cancelled


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of asyncio that runs in this thread.

    Raises:
        WrongLoop: when none does.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        hint = "use kavach_core inside of trio, and kavach_core.blocking in plain code"
        raise WrongLoop("kavach_core.aio needs a running event loop of asyncio", hint=hint) from None


async def call(portal: Portal, work: Callable[[], Awaitable[R]], *, undo: Undo[R] | None = None) -> R:
    """Have the loop do some work and wait for it.

    Args:
        portal: the loop.
        work: called there.
        undo: done with the value when the task was cancelled just as the work was done.

    Cancellation: passed on to the work; CancelledError leaves when its clean-up is done, unless that raises.

    Raises:
        WrongLoop: outside of asyncio; when the loop has ended; in a forked child.
    """
    done = Signal()
    job = Job(portal, work, done.set)
    job.submit()
    try:
        cancelled = await done.wait(job.cancel)
    finally:
        job.cancel()  # the event loop may have gone without cancelling anybody
    if cancelled is None or job.failure is not None:
        return job.result()
    if undo is not None:
        for value in job.values:
            await call(portal, functools.partial(undo, value))
    raise cancelled


async def finish(portal: Portal, work: Callable[[], Awaitable[object]]) -> None:
    """Do the work that ends a block, as ``call`` does; nothing in a forked child: what is to end is its parent's."""
    if portal.is_ours:
        await call(portal, work)


@asynccontextmanager
async def lease() -> AsyncIterator[Portal]:
    """Have a loop for the length of the block. Starting it takes about a millisecond, for which asyncio stops.

    Raises:
        WrongLoop: outside of asyncio.
    """
    running_loop()
    held = Lease()
    try:
        yield held.take()
    finally:
        last = held.give_back()
        if last is not None:
            await _end(last)


async def _end(portal: Portal) -> None:
    ended = Signal()
    portal.end(ended.set)
    cancelled = await ended.wait(lambda: None)
    portal.join()
    if cancelled is not None:
        raise cancelled


@asynccontextmanager
async def hold(portal: Portal, manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Keep a context manager of the core open for the length of the block."""
    keeper = Keeper(manager)
    try:
        try:
            yield await call(portal, keeper.open)
        except BaseException as error:
            await _close(portal, keeper, error)
            raise
        await _close(portal, keeper, None)
    finally:
        portal.soon(keeper.release)  # whatever has interrupted the above


async def _close(portal: Portal, keeper: Keeper[Any], error: BaseException | None) -> None:
    if not keeper.ended:  # the end of the loop may have closed it
        await finish(portal, functools.partial(keeper.close, error))
