"""The loop, its thread, and who keeps it alive.

There is at most one such loop in a process, and only while somebody has a lease on it: each block and each call of a
face takes one, and the last that gives its lease back ends loop and thread. So nothing is left after use, and the
interpreter's exit waits for the thread as for any other that is no daemon. A block that nobody ever leaves
would make it wait for ever: once the main thread has ended, a lease is void unless a thread for which the
exit waits has it.

A forked child has the memory of its parent's loop, but not the thread. It forgets the loop, and gets its own.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import trio

from kavach_core.errors import WrongLoop

_EXIT_POLL_SECONDS: Final = 1.0

T = TypeVar("T")


class Portal:
    """The loop and its thread. Had by a ``Lease``; every other thread may call it."""

    def __init__(self) -> None:
        self.leases: set[Lease] = set()
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._run, name="kavach", daemon=False)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._jobs: set[Job[Any]] = set()
        self._last_call: Callable[[], object] | None = None

    @property
    def is_ours(self) -> bool:
        """False in a child that was forked from the process with the loop."""
        return os.getpid() == self._owner

    @property
    def is_current(self) -> bool:
        """True in the loop's own thread."""
        return threading.get_ident() == self._thread.ident

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: when the system gives none.
        """
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Wait until the loop takes jobs.

        Raises:
            OSError: when the system lacks what a loop needs.
        """
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def soon(self, function: Callable[..., object], *arguments: object) -> bool:
        """Have the loop call a function; False when there is no loop any more."""
        if self._token is None or not self.is_ours:
            return False
        try:
            self._token.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            return False
        return True

    def submit(self, job: Job[Any]) -> None:
        """Have the loop carry out a job. It is settled at once when there is no loop any more."""
        self._jobs.add(job)
        if not self.soon(self._begin, job):
            job.settle(self.lost())

    def lost(self) -> WrongLoop:
        """Make the error that says why there is no loop."""
        if not self.is_ours:
            return WrongLoop("this belongs to the process that was forked", hint="open a sandbox after the fork")
        return WrongLoop("this was closed, or the interpreter is ending", hint="stay inside the with block")

    def end(self, told: Callable[[], object] | None = None) -> None:
        """Let the loop end, once nobody has a lease; jobs that still run are cancelled.

        Args:
            told: called when all is done, as the last deed of the thread.
        """
        self._last_call = told
        if not self.soon(self._cancel) and told is not None:
            told()

    def join(self) -> None:
        """Wait until the thread has ended, unless this is it."""
        if self._thread.ident is not None and not self.is_current:
            self._thread.join()

    def forget(self, job: Job[Any]) -> None:
        """Take note that a job is done."""
        self._jobs.discard(job)

    def _begin(self, job: Job[Any]) -> None:
        if self._nursery.cancel_scope.cancel_called:
            job.settle(self.lost())
        else:
            job.begin(self._nursery)

    def _cancel(self) -> None:
        self._nursery.cancel_scope.cancel()

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():
                raise  # nobody waits for it: the hook for threads tells it
        finally:
            _shared.drop(self)
            for job in tuple(self._jobs):
                job.settle(self.lost())
            self._ready.set()
            if self._last_call is not None:
                self._last_call()

    async def _serve(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            while not self._is_forsaken():  # noqa: ASYNC110 - nothing sets an event
                await trio.sleep(_EXIT_POLL_SECONDS)
            self._cancel()

    def _is_forsaken(self) -> bool:
        """Say whether nobody will ever give back the last lease.

        Polled: nothing public tells a thread that the interpreter has begun to end.
        """
        leases = tuple(self.leases)
        return not leases or not (threading.main_thread().is_alive() or any(lease.is_honoured for lease in leases))


class Lease:
    """A claim on the loop, for as long as a block or a call lasts. Made first, so that it cannot be lost."""

    def __init__(self) -> None:
        self._portal: Portal | None = None
        self._holder = threading.current_thread()

    @property
    def is_honoured(self) -> bool:
        """True when the interpreter's exit waits for the thread that has it."""
        return self._holder.is_alive() and not self._holder.daemon and self._holder is not threading.main_thread()

    def take(self) -> Portal:
        """Return the loop, started if there is none. ``give_back`` has to follow, also when this fails.

        Raises:
            OSError: when the system lacks what a loop needs.
            RuntimeError: when it gives no thread.
        """
        with _shared.lock:
            portal = None
            while portal is None or portal is not _shared.portal:  # it may end in between: see ``_Shared.lock``
                portal = self._portal = _shared.portal or Portal()
                portal.leases.add(self)
                if _shared.portal is None:
                    _shared.portal = portal
                    self._start(portal)
        portal.wait_until_ready()
        return portal

    def _start(self, portal: Portal) -> None:
        try:
            portal.start()
        except Exception:
            _shared.drop(portal)  # without a thread nobody would ever tell who waits for it
            raise

    def give_back(self) -> Portal | None:
        """Give up the claim. Return the loop if nobody else has one: the caller has to ``end`` and to ``join`` it."""
        portal, self._portal = self._portal, None
        if portal is None or not portal.is_ours:
            return None
        with _shared.lock:
            portal.leases.discard(self)
            if portal.leases:
                return None
            _shared.drop(portal)
        return portal


class _Shared:
    """The one loop of this process.

    Attributes:
        lock: held to look at it. A garbage collection may close a forgotten block, and give a lease back, in the midst
            of taking another one in the same thread: so it can be taken again, and ``Lease.take`` looks twice.
        portal: the loop, or None.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.portal: Portal | None = None

    def drop(self, portal: Portal) -> None:
        """Let the next lease start another loop."""
        with self.lock:
            if self.portal is portal:
                self.portal = None


_shared = _Shared()


def _forget() -> None:
    """In a forked child: the lock may be held by a thread that is not there."""
    _shared.__init__()  # type: ignore[misc]  # as good as new


os.register_at_fork(after_in_child=_forget)


class Job(Generic[T]):
    """One piece of work for the loop, and what came of it.

    Args:
        portal: who carries it out.
        work: called in the loop, in a copy of the context of whoever makes the job.
        notify: called in the loop's thread, or in that of ``submit``, when the job is done.

    Attributes:
        done: it has ended, or can never begin.
        failure: what it raised, if anything.
    """

    def __init__(self, portal: Portal, work: Callable[[], Awaitable[T]], notify: Callable[[], object]) -> None:
        self.done = False
        self.failure: BaseException | None = None
        self._portal = portal
        self._work = work
        self._notify = notify
        self._context = contextvars.copy_context()
        self._scope = trio.CancelScope()
        self._begun = False
        self._values: list[T] = []

    @property
    def values(self) -> tuple[T, ...]:
        """The value, or nothing when there is none."""
        return tuple(self._values)

    def submit(self) -> None:
        """Have it carried out. Nothing happens when it was submitted before."""
        if not self.done:
            self._portal.submit(self)

    def cancel(self) -> None:
        """Have it cancelled; it is done when its clean-up is."""
        self._portal.soon(self._scope.cancel)

    def result(self) -> T:
        """Return the value, or raise what the work raised: the very same object. Called once.

        Raises:
            WrongLoop: when the loop has ended before it.
        """
        failure, self.failure = self.failure, None  # what is raised holds the frames that hold this job
        try:
            if failure is not None:
                raise failure
            return self._values[0]
        finally:
            del failure

    def begin(self, nursery: trio.Nursery) -> None:
        """Start it, in the loop. Nothing happens when it has begun."""
        if not self._begun:
            self._begun = True
            self._context.run(nursery.start_soon, self._carry_out)

    def settle(self, failure: BaseException | None) -> None:
        """Note how it has ended and tell. Nothing happens when it is done."""
        if not self.done:
            self.failure = failure
            self.done = True
            self._portal.forget(self)
            self._notify()

    async def _carry_out(self) -> None:
        failure: BaseException | None = None
        try:
            with self._scope:
                self._values.append(await self._work())
        except trio.Cancelled:  # the loop ends, and this has not been asked for
            failure = self._portal.lost()
            raise
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            failure = error
        finally:
            self.settle(failure)
            del failure  # as in ``result``
