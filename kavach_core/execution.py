"""Running one command in a live box to its end: feed, drain, bound, time, kill. ``outcomes`` says what it came to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from typing import Final

import attrs
import trio

from kavach_core.abc import GuestEvent, GuestProcess, GuestStartError, Session
from kavach_core.errors import ConfigError, KavachError, SandboxError
from kavach_core.runs import Command, Run
from kavach_core.types import Bound, GuestExit, LimitEvents, Output, OutputComplete, Stream, TerminalSize
from kavach_core.validation import check_terminal_size

DRAIN_GRACE_SECONDS: Final = 0.25
"""How long output is awaited after the command's end, in all: a process left behind may hold the stream."""

# What a command wrote before its end is in its two pipes, which it can enlarge to 1 MiB each, or within the credit:
# never more than this. What comes later is not its own.
_LATE_OUTPUT_BYTES: Final = 4 * 1024 * 1024
_KILL_SECONDS: Final = 2.0
_LIST_SECONDS: Final = 1.0
# How long before the CPU time is asked for again, at the least: each time, the agent looks at every process of the box.
_CPU_POLL_SECONDS: Final = 0.02

Note = Callable[[Run, GuestEvent], Awaitable[None]]


async def run_command(session: Session, command: Command, *, pids_limit: int | None = None) -> Run:
    """Run a command to its end or to one of its bounds. The box's own end is told by ``Run.gone``.

    Args:
        session: the box.
        command: what to run.
        pids_limit: the bound on processes of the box, to find out whether it was met where nobody counts that.

    Cancellation: the command and all it has started are killed before Cancelled leaves this call.
    """
    run = Run.of(command)
    before = session.limit_events()
    with trio.move_on_after(command.timeout if command.timeout is not None else float("inf")) as deadline:
        try:
            process = await session.start(command.request)
        except GuestStartError as error:
            run.start_failure = error.failure
            return run
        except SandboxError as error:
            run.gone = error
        else:
            await _run_to_end(run, process, deadline)
    if deadline.cancelled_caught and run.exit is None and run.gone is None:
        run.stopped_by = run.stopped_by or Bound.TIMEOUT  # it was not even started in time
        run.gone = await _how_it_has_ended(session)
    run.limits_met = _difference(before, session.limit_events())
    if pids_limit is not None and run.limits_met.pids_refusals is None and run.has_failed:
        run.limits_met = attrs.evolve(run.limits_met, pids_refusals=await _count_refusals(session, pids_limit))
    return run


async def _how_it_has_ended(session: Session) -> SandboxError | None:
    """Return how the box has ended, or None when it has not: who could not be killed in time takes it along."""
    with trio.move_on_after(0):
        try:
            await session.ping()
        except SandboxError as error:
            return error
    return None


async def _count_refusals(session: Session, pids_limit: int) -> int:
    """Say whether the box is at its limit on processes, which is all there is to see when nobody counts refusals."""
    with trio.move_on_after(_LIST_SECONDS), contextlib.suppress(SandboxError):
        threads = sum(process.threads for process in await session.processes() if process.state != "Z")
        return int(threads >= pids_limit - 1)  # the command itself has ended
    return 0


async def _run_to_end(run: Run, process: GuestProcess, deadline: trio.CancelScope) -> None:
    try:
        await _complete(run, process)
    finally:
        try:
            if (run.exit is None or run.awaits_output) and run.gone is None:
                _note_why(run, deadline)
                await _kill(run, process)
        finally:
            await process.aclose()


def _note_why(run: Run, deadline: trio.CancelScope) -> None:
    """Note for what a command is about to be killed."""
    if run.stopped_by is None and deadline.cancel_called:
        run.stopped_by = Bound.TIMEOUT
    run.cancelled = run.stopped_by is None


def _difference(before: LimitEvents, after: LimitEvents) -> LimitEvents:
    def between(earlier: int | None, later: int | None) -> int | None:
        return None if earlier is None or later is None else later - earlier

    return LimitEvents(
        oom_kills=between(before.oom_kills, after.oom_kills),
        pids_refusals=between(before.pids_refusals, after.pids_refusals),
    )


async def _complete(run: Run, process: GuestProcess) -> None:
    """Feed, watch and drain the command until it has ended and its output has come, or it must be stopped."""
    beside = list(_work_beside(run, process))
    if not beside:
        await _drain(run, process)
        return
    failures: list[Exception] = []  # raised below, bare: the nursery would wrap them in a group
    async with trio.open_nursery() as nursery:

        async def guard(work: Awaitable[None]) -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - whatever the caller's own functions raise
                failures.append(error)
                nursery.cancel_scope.cancel()

        async def guard_beside(work: Awaitable[None]) -> None:
            await guard(work)
            if run.stopped_by is not None:
                nursery.cancel_scope.cancel()

        for work in beside:
            nursery.start_soon(guard_beside, work)
        await guard(_drain(run, process))
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


def _work_beside(run: Run, process: GuestProcess) -> Iterator[Awaitable[None]]:
    if process.stdin is not None:
        yield _feed(run, process.stdin)
    if run.command.cpu_timeout is not None:
        yield _watch_cpu(run, process, run.command.cpu_timeout)
    if run.command.tty_sizes is not None:
        yield _resize(process, run.command.tty_sizes)


async def _drain(run: Run, process: GuestProcess) -> None:
    """Take the output to the command's end, and then for as long as some of its own may still come."""
    while run.exit is None and run.stopped_by is None and (event := await _next(run, process)) is not None:
        await _note(run, event)
        _check_output(run)
    if run.exit is not None:
        await _drain_late(run, process, note=_note)


async def _next(run: Run, process: GuestProcess) -> GuestEvent | None:
    """Return what happens next; None also when the box has ended, which the run then knows.

    What the caller's own functions raise may be of the same class, from another sandbox: so it is caught here alone.
    """
    try:
        return await process.next_event()
    except SandboxError as error:
        run.gone = error
        return None


def _check_output(run: Run) -> None:
    limit = run.command.output_limit
    if limit is not None and run.total > limit and run.exit is None:
        run.stopped_by = Bound.OUTPUT


async def _drain_late(run: Run, process: GuestProcess, *, note: Note) -> None:
    """Take what comes after the command's end: all of its own, and for a moment what those left behind may write."""
    ceiling, patience = run.total, DRAIN_GRACE_SECONDS
    while patience > 0 and run.total <= ceiling + _LATE_OUTPUT_BYTES:
        if process.has_event or run.awaits_output:
            event = await _next(run, process)
        else:
            event, waited = await _next_within(patience, run, process)
            patience -= waited
        if event is None:
            break
        await note(run, event)
        if run.awaits_output:
            ceiling = run.total
    run.complete = run.complete or run.gone is None


async def _next_within(seconds: float, run: Run, process: GuestProcess) -> tuple[GuestEvent | None, float]:
    """Return what happens next, or None when that takes too long, and for how long it was waited for."""
    asked, event = trio.current_time(), None
    with trio.move_on_after(seconds):
        event = await _next(run, process)
    return event, trio.current_time() - asked


async def _note(run: Run, event: GuestEvent) -> None:
    """Note what has happened; output goes to whoever wants it as it comes."""
    if isinstance(event, Output):
        await (run.stdout if event.stream is Stream.STDOUT else run.stderr).add(event.data)
    else:
        _note_end(run, event)


async def _note_alone(run: Run, event: GuestEvent) -> None:
    """Note what has happened, and tell nobody: whoever is to take the output may be what the command is killed for."""
    if isinstance(event, Output):
        (run.stdout if event.stream is Stream.STDOUT else run.stderr).keep(event.data)
    else:
        _note_end(run, event)


def _note_end(run: Run, event: GuestExit | OutputComplete) -> None:
    if isinstance(event, GuestExit):
        run.exit = event
    else:
        run.complete = True


async def _watch_cpu(run: Run, process: GuestProcess, limit: float) -> None:
    """Return once the command has used its CPU time, looking as rarely as it can be used up."""
    processors = os.cpu_count() or 1
    with contextlib.suppress(SandboxError):  # the box has ended, which whoever waits for the command is told
        used = await process.cpu_seconds()
        while used < limit:
            await trio.sleep(max((limit - used) / processors, _CPU_POLL_SECONDS))
            used = await process.cpu_seconds()
        if run.exit is None:
            run.stopped_by = Bound.CPU


async def _resize(process: GuestProcess, sizes: AsyncIterable[TerminalSize]) -> None:
    async for size in sizes:
        problems = list(check_terminal_size(size))
        if problems:
            raise ConfigError(problems)
        with contextlib.suppress(SandboxError):  # the box has ended, which whoever waits for the command is told
            await process.resize(size)


async def _feed(run: Run, stdin: trio.abc.SendStream) -> None:
    """Send the input. What the input itself raises, the caller gets; that nobody reads it is no error."""
    data = run.command.input or b""
    if isinstance(data, bytes):
        await _send(run, stdin, data)
    else:
        async for piece in data:
            if not await _send(run, stdin, piece):
                return
    with contextlib.suppress(KavachError):  # the box has ended, which whoever waits for the command is told
        await stdin.aclose()


async def _send(run: Run, stdin: trio.abc.SendStream, data: bytes) -> bool:
    """Send a piece of input; False when the command has ended without reading it all, or the box has."""
    try:
        await stdin.send_all(data)
    except (trio.BrokenResourceError, KavachError):
        return False
    run.stdin_bytes += memoryview(data).nbytes
    return True


async def _kill(run: Run, process: GuestProcess) -> None:
    """Kill the command's tree and take what it had still written."""
    with trio.move_on_after(_KILL_SECONDS, shield=True):
        try:
            await process.kill()
        except SandboxError as error:
            run.gone = error  # the box went down with the command, which is as dead as can be
            return
        while run.exit is None and (event := await _next(run, process)) is not None:
            await _note_alone(run, event)
        if run.exit is not None:
            await _drain_late(run, process, note=_note_alone)
