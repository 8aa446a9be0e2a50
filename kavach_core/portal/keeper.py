"""Context managers of the core, kept open for somebody who is not in trio."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Final, Generic, TypeVar

import trio

_NOT_IN_COROUTINES: Final = (StopIteration, StopAsyncIteration)

T = TypeVar("T")


class Keeper(Generic[T]):
    """A task of the loop that enters an async context manager, holds it open and leaves it.

    One task does all of it, as trio demands of whatever has a nursery inside. All methods run in the loop.
    """

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._scope = trio.CancelScope()
        self._closing = trio.Event()
        self._ended = trio.Event()
        self._opened = False
        self._error: Exception | None = None
        self._failure: BaseException | None = None

    @property
    def ended(self) -> bool:
        """True when it has been left."""
        return self._ended.is_set()

    async def open(self) -> T:
        """Enter, in a task that outlives this call, and return what the ``with`` statement would.

        Cancellation: that of the context manager; it is not open then.
        """
        value: T = await _nursery_of_loop().start(self._keep)
        return value

    async def close(self, error: BaseException | None) -> None:
        """Leave, with what ended the caller's block. Nothing happens when it is not open.

        Args:
            error: raised in the block, as it would be in trio; what is no ``Exception``, or cannot leave a coroutine,
                cancels the block instead.

        Cancellation: passed on to the block, which is left before this returns.

        Raises:
            BaseException: what leaving raised, unless it is ``error``.
        """
        if not self._opened:
            return
        trace = error.__traceback__ if error is not None else None
        if error is None or (isinstance(error, Exception) and not isinstance(error, _NOT_IN_COROUTINES)):
            self._error = error
            self._closing.set()
        else:
            self._scope.cancel()
        try:
            await self._ended.wait()
        except trio.Cancelled:
            self._scope.cancel()
            with trio.CancelScope(shield=True):  # bounded by what is being left
                await self._ended.wait()
            raise
        finally:
            if error is not None:
                error.__traceback__ = trace  # without the way through this task
        failure, self._failure, self._error = self._failure, None, None  # as in ``Job.result``
        try:
            if failure is not None and failure is not error:
                raise failure
        finally:
            del failure

    def release(self) -> None:
        """Leave without anybody waiting for it."""
        self._closing.set()

    async def _keep(self, task_status: trio.TaskStatus[T]) -> None:
        try:
            with self._scope:
                async with self._manager as value:
                    self._opened = True
                    task_status.started(value)
                    await self._until_closed()
        except trio.Cancelled:
            raise
        except BaseException as error:
            if not self._opened or trio.current_effective_deadline() == -float("inf"):
                raise  # to ``open``; or nobody is left who could be told but the hook for threads
            self._failure = error
        finally:
            self._ended.set()

    async def _until_closed(self) -> None:
        await self._closing.wait()
        if self._error is not None:
            raise self._error


def _nursery_of_loop() -> trio.Nursery:
    """Return the nursery of the loop: the parent of the task that this is called from."""
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None  # noqa: S101 - the task of a job
    return nursery
