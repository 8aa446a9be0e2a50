"""What a command's run came to: the outcome and the result, from what was observed."""

from __future__ import annotations

import os
import signal
from typing import Final

from kavach_core.errors import (
    ConfigError,
    ExecTimeout,
    FieldProblem,
    LimitExceeded,
    NonzeroExit,
    StartFailed,
)
from kavach_core.exit_status import (
    EXIT_FAILED,
    EXIT_TIMEOUT,
    SIGNAL_EXIT_BASE,
    status_of_failed_start,
)
from kavach_core.runs import Run
from kavach_core.types import Bound, ExecResult, Outcome

_MAX_ERRNO: Final = 4095
_KILLED: Final = SIGNAL_EXIT_BASE + signal.SIGKILL

_LIMITS: Final = {
    Outcome.OOM_KILLED: "was killed for want of memory",
    Outcome.PIDS_LIMIT: "met the limit on processes",
    Outcome.OUTPUT_LIMIT: "was killed for writing more than its limit",
}


def outcome_of(run: Run, *, alone: bool) -> Outcome:
    """Name how the command ended.

    Args:
        run: the command, ended.
        alone: no other command ran beside it, so that whatever limit the box has met, this one met.
    """
    if run.start_failure is not None:
        return Outcome.START_FAILED
    if run.cancelled:
        return Outcome.CANCELLED
    if run.stopped_by is not None:
        return Outcome.OUTPUT_LIMIT if run.stopped_by is Bound.OUTPUT else Outcome.TIMEOUT
    if run.exit is None or not _ended_by_itself(run):
        return Outcome.OOM_KILLED if run.limits_met.oom_kills else Outcome.BACKEND_ERROR
    if run.exit.status == 0:
        return Outcome.OK
    return _outcome_of_failure(run, alone=alone)


def _ended_by_itself(run: Run) -> bool:
    """Say whether all is known of a command, even if the box has ended right after it."""
    return run.exit is not None and (run.gone is None or run.complete)


def _outcome_of_failure(run: Run, *, alone: bool) -> Outcome:
    if run.limits_met.oom_kills and (alone or exit_code_of(run) == _KILLED):
        return Outcome.OOM_KILLED
    if run.limits_met.pids_refusals and alone:
        return Outcome.PIDS_LIMIT
    by_signal = run.exit is not None and run.exit.signal is not None
    return Outcome.SIGNAL if by_signal else Outcome.NONZERO_EXIT


def exit_code_of(run: Run) -> int:
    """Return the status a shell would show."""
    if run.start_failure is not None:
        return status_of_failed_start(run.start_failure.errno)
    if run.stopped_by in (Bound.TIMEOUT, Bound.CPU):
        return EXIT_TIMEOUT
    if run.exit is None or not (run.stopped_by or _ended_by_itself(run)):
        return _KILLED if run.stopped_by or run.limits_met.oom_kills else EXIT_FAILED
    return run.exit.status


def result_of(run: Run, *, exec_id: int, duration: float, sandbox_id: str, backend: str, alone: bool) -> ExecResult:  # noqa: PLR0913 - a record's fields
    """Put together what is known of a command that has ended."""
    ended = run.exit
    return ExecResult(
        argv=run.command.argv,
        outcome=outcome_of(run, alone=alone),
        exit_code=exit_code_of(run),
        signal=ended.signal if ended else None,
        stopped_by=run.stopped_by,
        stdout_bytes=run.stdout.data,
        stderr_bytes=run.stderr.data,
        stdout_total_bytes=run.stdout.total,
        stderr_total_bytes=run.stderr.total,
        stdin_total_bytes=run.stdin_bytes,
        start_failure=run.start_failure,
        duration_seconds=duration,
        cpu_user_seconds=ended.cpu_user_seconds if ended else 0.0,
        cpu_system_seconds=ended.cpu_system_seconds if ended else 0.0,
        max_rss_bytes=ended.max_rss_bytes if ended else 0,
        oom_kills=run.limits_met.oom_kills,
        sandbox_gone=run.gone is not None,
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


def raise_if_gone(run: Run, result: ExecResult) -> None:
    """Raise how the box ended, with the result, unless the command's own deeds explain it.

    Raises:
        SandboxError: when the command's end is not known because the box has ended.
    """
    if run.gone is not None and result.outcome is Outcome.BACKEND_ERROR:
        run.gone.result = result
        raise run.gone


def raise_unless_ok(result: ExecResult) -> None:
    """Do what ``check=True`` demands.

    Raises:
        StartFailed: the command could not be started.
        ExecTimeout: it was killed at its deadline.
        LimitExceeded: it met a limit on memory, processes or output.
        NonzeroExit: it ended with another status than 0.
    """
    program = result.argv[0]
    match result.outcome:
        case Outcome.OK:
            return
        case Outcome.START_FAILED:
            raise StartFailed(describe_start_failure(result), result=result)
        case Outcome.TIMEOUT:
            raise ExecTimeout(f"{program} was killed at its deadline", result=result)
        case Outcome.OOM_KILLED | Outcome.PIDS_LIMIT | Outcome.OUTPUT_LIMIT:
            raise LimitExceeded(f"{program} {_LIMITS[result.outcome]}", result=result)
        case _:
            raise NonzeroExit(f"{program} ended with status {result.exit_code}", result=result)


def describe_start_failure(result: ExecResult) -> str:
    """Say in one line why a command could not be started."""
    failure = result.start_failure
    if failure is None:
        return f"{result.argv[0]} was started"
    return f"cannot start {result.argv[0]}: {text_of(failure.errno)} ({failure.stage})"
