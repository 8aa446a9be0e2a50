"""Calling the loop from a thread that waits: what every call of this face goes through."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import trio

from kavach_core.errors import WrongLoop
from kavach_core.portal import Job, Keeper, Lease, Mirror, Portal

_SIGNAL_SECONDS: Final = 0.5

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Undo = Callable[[T], Awaitable[object]]


def plain(method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Mirror[T], P], R]:
    """Make the method of a mirror that calls this one in the loop, and waits for what it returns."""
    name = method.__name__

    @functools.wraps(method)
    def mirrored(self: Mirror[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        work: Callable[[], Awaitable[R]] = lambda: getattr(self._core, name)(*args, **kwargs)  # noqa: E731
        return call(self._portal, work)

    return mirrored


class Caller:
    """A thread that waits for the loop, and meanwhile calls what the loop wants it to call."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._asked: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        # A signal that comes just before the wait for a lock does not end that wait; other threads get none.
        self._patience = _SIGNAL_SECONDS if threading.current_thread() is threading.main_thread() else None

    def wake(self) -> None:
        """Let ``serve`` return."""
        self._asked.put(None)

    def serve(self, *, answer: bool = True) -> None:
        """Wait for ``wake``, and make calls until then.

        Args:
            answer: False makes none: they count as made, so that nobody waits for them.

        Raises:
            BaseException: what is no ``Exception`` out of a function that was called; KeyboardInterrupt at any time.
        """
        while (question := self._next()) is not None:
            if answer and not question.dropped:
                question.answer()
            self._portal.soon(question.answered.set)

    def _next(self) -> _Question | None:
        while True:
            try:
                return self._asked.get(timeout=self._patience)
            except queue.Empty:
                continue

    def asking(self, function: Callable[[bytes], object]) -> Callable[[bytes], Awaitable[None]]:
        """Make an async function for the loop that has this thread call ``function``, and waits for it."""

        async def ask(data: bytes) -> None:
            question = _Question(function, data)
            self._asked.put(question)
            try:
                await question.answered.wait()
            except trio.Cancelled:
                question.dropped = True
                raise
            if question.failure is not None:
                raise question.failure

        return ask


class _Question:
    """A call that the loop wants a thread to make."""

    def __init__(self, function: Callable[[bytes], object], data: bytes) -> None:
        self.answered = trio.Event()
        self.dropped = False
        self.failure: Exception | None = None
        self._function = function
        self._data = data

    def answer(self) -> None:
        """Make the call; what it raises is raised where it was asked for."""
        try:
            self._function(self._data)
        except Exception as error:  # noqa: BLE001 - handed on
            self.failure = error


def call(
    portal: Portal,
    work: Callable[[], Awaitable[R]],
    *,
    caller: Caller | None = None,
    undo: Undo[R] | None = None,
) -> R:
    """Have the loop do some work and wait for it.

    Args:
        portal: the loop.
        work: called there.
        caller: what the work asks of this thread meanwhile.
        undo: done with the value when the wait was interrupted just as the work was done.

    Cancellation: an exception that a signal raises in this thread, as KeyboardInterrupt, cancels the work, and leaves
    when the work's clean-up is done. More of them change nothing.

    Raises:
        WrongLoop: inside of trio; when the loop has ended; in a forked child.
    """
    _refuse_inside_trio()
    return _carry_out(portal, work, caller=caller, undo=undo)


def finish(portal: Portal, work: Callable[[], Awaitable[object]]) -> None:
    """Do the work that ends a block, as ``call`` does, wherever it ends.

    A garbage collection may end a forgotten block in the loop's own thread: then nobody waits. In a forked child
    nothing happens: what is to be ended is the parent's.
    """
    if portal.is_current:
        Job(portal, work, lambda: None).submit()
    elif portal.is_ours:
        _carry_out(portal, work)


def _carry_out(
    portal: Portal, work: Callable[[], Awaitable[R]], *, caller: Caller | None = None, undo: Undo[R] | None = None
) -> R:
    caller = caller or Caller(portal)
    job = Job(portal, work, caller.wake)
    try:
        job.submit()
        caller.serve()
    except BaseException as interrupt:
        _give_up(job, caller)
        if undo is not None:
            for value in job.values:
                _carry_out(portal, functools.partial(undo, value))
        if job.failure is not None and interrupt.__context__ is None:
            interrupt.__context__ = job.failure
        raise
    return job.result()


def _give_up(job: Job[Any], caller: Caller) -> None:
    """Cancel a job and wait for its end, which its clean-up bounds: whoever is impatient has to wait, too."""
    while not job.done:
        with contextlib.suppress(KeyboardInterrupt):
            job.submit()  # the interrupt may have come before
            job.cancel()
            caller.serve(answer=False)


def _refuse_inside_trio() -> None:
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return
    raise WrongLoop(
        "kavach_core.blocking would stop the trio loop that runs in this thread",
        hint="use kavach_core itself, or call from trio.to_thread.run_sync",
    )


@contextmanager
def lease() -> Iterator[Portal]:
    """Have a loop for the length of the block.

    Raises:
        WrongLoop: inside of trio.
    """
    _refuse_inside_trio()
    held = Lease()
    try:
        yield held.take()
    finally:
        last = held.give_back()
        if last is not None:
            last.end()
            last.join()


@contextmanager
def hold(portal: Portal, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Keep a context manager of the core open for the length of the block."""
    keeper = Keeper(manager)
    try:
        try:
            yield call(portal, keeper.open)
        except BaseException as error:
            _close(portal, keeper, error)
            raise
        _close(portal, keeper, None)
    finally:
        portal.soon(keeper.release)  # whatever has interrupted the above


def _close(portal: Portal, keeper: Keeper[Any], error: BaseException | None) -> None:
    if not keeper.ended:  # the end of the loop may have closed it
        finish(portal, functools.partial(keeper.close, error))
