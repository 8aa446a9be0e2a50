"""Running one command in a live box to its end: feed, drain, bound, time, kill, and say what happened."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Final

import trio
from attrs import define, field, frozen

from kavach_core.abc import GuestProcess, GuestStartError, Session
from kavach_core.errors import (
    ConfigError,
    ExecTimeout,
    FieldProblem,
    KavachError,
    NonzeroExit,
    SandboxGone,
    StartFailed,
)
from kavach_core.exit_status import EXIT_TIMEOUT, status_of_end, status_of_failed_start
from kavach_core.types import ExecRequest, ExecResult, GuestExit, Outcome, Output, StartFailure, Stream

DRAIN_GRACE_SECONDS: Final = 0.25
"""How long output is awaited after the command's end, in all: a process left behind may hold the stream."""

# What a command wrote before its end is in its two pipes, which it can enlarge to 1 MiB each, or within the credit:
# never more than this. What comes later is not its own.
_LATE_OUTPUT_BYTES: Final = 4 * 1024 * 1024
_MAX_ERRNO: Final = 4095
_KILL_SECONDS: Final = 2.0


Input = bytes | AsyncIterable[bytes]
Forward = Callable[[bytes], Awaitable[None]]


@frozen(kw_only=True)
class Command:
    """A command to run to its end.

    Attributes:
        argv: as the caller wrote it, for the result.
        request: as the box gets it.
        input: bytes for standard input, at once or as they come, or None for ``/dev/null``.
        timeout: seconds of wall clock, or None.
        max_output: bytes to keep of each output stream; what goes beyond is read, counted and dropped.
        on_stdout: called with each piece of standard output as it comes; the command waits for it.
        on_stderr: likewise for standard error.
    """

    argv: tuple[str, ...]
    request: ExecRequest
    input: Input | None
    timeout: float | None
    max_output: int
    on_stdout: Forward | None = None
    on_stderr: Forward | None = None


@define
class Capture:
    """The first bytes of a stream, and a count of all of them; each piece is passed on if somebody wants it."""

    limit: int
    forward: Forward | None
    total: int = 0
    _kept: bytearray = field(factory=bytearray)

    @property
    def data(self) -> bytes:
        """What was kept."""
        return bytes(self._kept)

    async def add(self, chunk: bytes) -> None:
        """Take a chunk: count it, keep what fits, pass it on."""
        self.total += len(chunk)
        room = self.limit - len(self._kept)
        if room > 0:
            self._kept += chunk[:room]
        if self.forward is not None:
            await self.forward(chunk)


@define
class Run:
    """One command on its way."""

    command: Command
    stdout: Capture
    stderr: Capture
    exit: GuestExit | None = None
    start_failure: StartFailure | None = None
    timed_out: bool = False

    @classmethod
    def of(cls, command: Command) -> Run:
        """Begin with nothing known."""
        return cls(
            command,
            Capture(command.max_output, command.on_stdout),
            Capture(command.max_output, command.on_stderr),
        )

    @property
    def total(self) -> int:
        """Bytes seen on both streams."""
        return self.stdout.total + self.stderr.total


async def run_command(session: Session, command: Command) -> Run:
    """Run a command to its end or its deadline.

    Cancellation: the command and all it has started are killed before Cancelled leaves this call.

    Raises:
        SandboxGone: when the box ends first.
    """
    run = Run.of(command)
    with trio.move_on_after(command.timeout if command.timeout is not None else float("inf")):
        try:
            process = await session.start(command.request)
        except GuestStartError as error:
            run.start_failure = error.failure
            return run
        try:
            await _complete(run, process)
        finally:
            await _finish(run, process)
    return run


async def _complete(run: Run, process: GuestProcess) -> None:
    """Feed and drain the command until it has ended and its output has come."""
    if process.stdin is None:
        await _drain(run, process)
        return
    failures: list[Exception] = []  # raised below, bare: the nursery would wrap them in a group
    async with trio.open_nursery() as nursery:

        async def watch(work: Awaitable[None]) -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - whatever the caller's own functions raise
                failures.append(error)
                nursery.cancel_scope.cancel()

        nursery.start_soon(watch, _feed(process.stdin, run.command.input or b""))
        await watch(_drain(run, process))
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _finish(run: Run, process: GuestProcess) -> None:
    """Leave nothing of the command: kill what has not ended, and let go of its channel."""
    try:
        if run.exit is None:
            run.timed_out = True  # or cancelled, and then nobody sees this run
            await _kill(run, process)
    finally:
        await process.aclose()


async def _drain(run: Run, process: GuestProcess) -> None:
    """Take the output to the command's end, and then for as long as some of its own may still come."""
    while run.exit is None and (event := await process.next_event()) is not None:
        await _note(run, event)
    ceiling = run.total + _LATE_OUTPUT_BYTES
    patience = DRAIN_GRACE_SECONDS
    while run.total <= ceiling and patience > 0:
        asked, event = trio.current_time(), None
        with trio.move_on_after(patience):
            event = await process.next_event()
        if event is None:
            return
        patience -= trio.current_time() - asked
        await _note(run, event)


async def _note(run: Run, event: Output | GuestExit) -> None:
    if isinstance(event, GuestExit):
        run.exit = event
    elif event.stream is Stream.STDOUT:
        await run.stdout.add(event.data)
    else:
        await run.stderr.add(event.data)


async def _feed(stdin: trio.abc.SendStream, data: Input) -> None:
    """Send the input. What the input itself raises, the caller gets; that nobody reads it is no error."""
    if isinstance(data, bytes):
        await _send(stdin, data)
    else:
        async for piece in data:
            if not await _send(stdin, piece):
                return
    with contextlib.suppress(KavachError):  # the box has ended, which whoever waits for the command is told
        await stdin.aclose()


async def _send(stdin: trio.abc.SendStream, data: bytes) -> bool:
    """Send a piece of input; False when the command has ended without reading it all, or the box has."""
    try:
        await stdin.send_all(data)
    except (trio.BrokenResourceError, KavachError):
        return False
    return True


async def _kill(run: Run, process: GuestProcess) -> None:
    """Kill the command's tree and take what it had still written."""
    with trio.move_on_after(_KILL_SECONDS, shield=True), contextlib.suppress(SandboxGone):
        # SandboxGone: the box went down with the command, which is as dead as can be.
        await process.kill()
        await _drain(run, process)


def outcome_of(run: Run) -> Outcome:
    """Name how the command ended."""
    if run.start_failure is not None:
        return Outcome.START_FAILED
    if run.timed_out or run.exit is None:
        return Outcome.TIMEOUT
    if run.exit.signal is not None:
        return Outcome.SIGNAL
    return Outcome.NONZERO_EXIT if run.exit.exit_code else Outcome.OK


def exit_code_of(run: Run) -> int:
    """Return the status a shell would show."""
    if run.start_failure is not None:
        return status_of_failed_start(run.start_failure.errno)
    if run.timed_out or run.exit is None:
        return EXIT_TIMEOUT
    by_signal = run.exit.signal is not None
    return status_of_end(code=run.exit.signal or run.exit.exit_code or 0, by_signal=by_signal)


def result_of(run: Run, *, exec_id: int, duration: float, sandbox_id: str, backend: str) -> ExecResult:
    """Put together what is known of a command that has ended."""
    ended = run.exit
    return ExecResult(
        argv=run.command.argv,
        outcome=outcome_of(run),
        exit_code=exit_code_of(run),
        signal=ended.signal if ended else None,
        stdout_bytes=run.stdout.data,
        stderr_bytes=run.stderr.data,
        stdout_total_bytes=run.stdout.total,
        stderr_total_bytes=run.stderr.total,
        start_failure=run.start_failure,
        duration_seconds=duration,
        cpu_user_seconds=ended.cpu_user_seconds if ended else 0.0,
        cpu_system_seconds=ended.cpu_system_seconds if ended else 0.0,
        max_rss_bytes=ended.max_rss_bytes if ended else 0,
        sandbox_id=sandbox_id,
        exec_id=exec_id,
        backend=backend,
    )


def text_of(errno: int) -> str:
    """Return the kernel's words for an error number, which may be any number: it comes from the box."""
    return os.strerror(errno) if 0 < errno <= _MAX_ERRNO else f"error {errno}"


def refuse_missing_cwd(run: Run) -> None:
    """Treat a working directory that is not there as what it is: bad input, and no command was started.

    Raises:
        ConfigError: when that is why the start failed.
    """
    failure = run.start_failure
    if failure is not None and failure.stage == "cwd":
        reason = f"{run.command.request.cwd.decode(errors='replace')!r}: {text_of(failure.errno)}"
        raise ConfigError([FieldProblem("cwd", reason, "name a directory of the box that the user may enter")])


def raise_unless_ok(result: ExecResult) -> None:
    """Do what ``check=True`` demands.

    Raises:
        StartFailed: the command could not be started.
        ExecTimeout: it was killed at its deadline.
        NonzeroExit: it ended with another status than 0.
    """
    match result.outcome:
        case Outcome.OK:
            return
        case Outcome.START_FAILED:
            raise StartFailed(describe_start_failure(result), result=result)
        case Outcome.TIMEOUT:
            raise ExecTimeout(f"{result.argv[0]} was killed at its deadline", result=result)
        case _:
            raise NonzeroExit(f"{result.argv[0]} ended with status {result.exit_code}", result=result)


def describe_start_failure(result: ExecResult) -> str:
    """Say in one line why a command could not be started."""
    failure = result.start_failure
    if failure is None:
        return f"{result.argv[0]} was started"
    return f"cannot start {result.argv[0]}: {text_of(failure.errno)} ({failure.stage})"
