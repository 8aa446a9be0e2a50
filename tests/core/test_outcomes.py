"""What is said of a command that has ended."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from scripted import KILLED, NEVER, OK, Process, Session, command, ends, err, out, timeless

from kavach_core.abc import GuestStartError
from kavach_core.errors import (
    ConfigError,
    ExecTimeout,
    KavachError,
    LimitExceeded,
    NonzeroExit,
    SandboxGone,
    StartFailed,
)
from kavach_core.execution import run_command
from kavach_core.outcomes import (
    describe_start_failure,
    exit_code_of,
    outcome_of,
    raise_unless_ok,
    refuse_missing_cwd,
    result_of,
)
from kavach_core.runs import Run
from kavach_core.types import Bound, ExecResult, GuestExit, LimitEvents, Outcome, StartFailure

OOM = LimitEvents(oom_kills=1)
REFUSED = LimitEvents(pids_refusals=1)


def result(run: Run, *, alone: bool = True) -> ExecResult:
    return result_of(run, exec_id=3, duration=1.5, sandbox_id="00ff", backend="fake", alone=alone)


# --- what is said of it ------------------------------------------------------------------------


def ended(**fields: Any) -> Run:  # noqa: ANN401 - any field
    run = Run.of(command())
    for name, value in fields.items():
        setattr(run, name, value)
    return run


@pytest.mark.parametrize(
    ("fields", "outcome", "code"),
    [
        ({"exit": OK}, Outcome.OK, 0),
        ({"exit": GuestExit(exit_code=1)}, Outcome.NONZERO_EXIT, 1),
        ({"exit": GuestExit(exit_code=124)}, Outcome.NONZERO_EXIT, 124),
        ({"exit": GuestExit(exit_code=137)}, Outcome.NONZERO_EXIT, 137),
        ({"exit": GuestExit(exit_code=255)}, Outcome.NONZERO_EXIT, 255),
        ({"exit": GuestExit(exit_code=None, signal=9)}, Outcome.SIGNAL, 137),
        ({"exit": GuestExit(exit_code=None, signal=15)}, Outcome.SIGNAL, 143),
        ({"exit": GuestExit(exit_code=None, signal=64)}, Outcome.SIGNAL, 192),
        ({"exit": KILLED, "stopped_by": Bound.TIMEOUT}, Outcome.TIMEOUT, 124),
        ({"exit": OK, "stopped_by": Bound.TIMEOUT}, Outcome.TIMEOUT, 124),
        ({"stopped_by": Bound.TIMEOUT}, Outcome.TIMEOUT, 124),
        ({"stopped_by": Bound.CPU, "exit": KILLED}, Outcome.TIMEOUT, 124),
        ({"stopped_by": Bound.OUTPUT, "exit": KILLED}, Outcome.OUTPUT_LIMIT, 137),
        ({"stopped_by": Bound.OUTPUT}, Outcome.OUTPUT_LIMIT, 137),
        ({"stopped_by": Bound.TIMEOUT, "gone": SandboxGone("x")}, Outcome.TIMEOUT, 124),
        ({"cancelled": True, "exit": KILLED}, Outcome.CANCELLED, 137),
        ({"gone": SandboxGone("x")}, Outcome.BACKEND_ERROR, 125),
        ({"gone": SandboxGone("x"), "exit": OK}, Outcome.BACKEND_ERROR, 125),
        ({"gone": SandboxGone("x"), "limits_met": OOM}, Outcome.OOM_KILLED, 137),
        ({"exit": KILLED, "limits_met": OOM}, Outcome.OOM_KILLED, 137),
        ({"exit": GuestExit(exit_code=137), "limits_met": OOM}, Outcome.OOM_KILLED, 137),
        ({"exit": GuestExit(exit_code=1), "limits_met": OOM}, Outcome.OOM_KILLED, 1),
        ({"exit": OK, "limits_met": OOM}, Outcome.OK, 0),
        ({"exit": KILLED, "stopped_by": Bound.TIMEOUT, "limits_met": OOM}, Outcome.TIMEOUT, 124),
        ({"exit": GuestExit(exit_code=2), "limits_met": REFUSED}, Outcome.PIDS_LIMIT, 2),
        ({"exit": GuestExit(exit_code=None, signal=6), "limits_met": REFUSED}, Outcome.PIDS_LIMIT, 134),
        ({"exit": OK, "limits_met": REFUSED}, Outcome.OK, 0),
        ({"exit": KILLED, "limits_met": LimitEvents(oom_kills=0, pids_refusals=0)}, Outcome.SIGNAL, 137),
        ({"start_failure": StartFailure(stage="program", errno=errno.ENOENT)}, Outcome.START_FAILED, 127),
        ({"start_failure": StartFailure(stage="program", errno=errno.EACCES)}, Outcome.START_FAILED, 126),
        ({"start_failure": StartFailure(stage="program", errno=errno.ENOEXEC)}, Outcome.START_FAILED, 126),
        ({"start_failure": StartFailure(stage="resources", errno=errno.EAGAIN)}, Outcome.START_FAILED, 126),
        ({"start_failure": StartFailure(stage="identity", errno=errno.EPERM)}, Outcome.START_FAILED, 126),
        ({"start_failure": StartFailure(stage="request", errno=errno.EINVAL)}, Outcome.START_FAILED, 126),
    ],
)
def test_outcome_and_status(fields: dict[str, Any], outcome: Outcome, code: int) -> None:
    """An exit code of 124 or 137 is the command's own: the outcome says what was observed."""
    run = ended(**fields)
    assert (outcome_of(run, alone=True), exit_code_of(run)) == (outcome, code)
    told = result(run)
    assert (told.outcome, told.exit_code) == (outcome, code)


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"exit": KILLED, "limits_met": OOM}, Outcome.OOM_KILLED),
        ({"exit": GuestExit(exit_code=137), "limits_met": OOM}, Outcome.OOM_KILLED),
        ({"exit": GuestExit(exit_code=1), "limits_met": OOM}, Outcome.NONZERO_EXIT),
        ({"exit": GuestExit(exit_code=2), "limits_met": REFUSED}, Outcome.NONZERO_EXIT),
        ({"exit": GuestExit(exit_code=None, signal=6), "limits_met": OOM}, Outcome.SIGNAL),
    ],
)
def test_a_limit_that_was_met_beside_others_is_put_down_to_those_it_killed(
    fields: dict[str, Any], outcome: Outcome
) -> None:
    """The box has one counter for all its commands."""
    assert outcome_of(ended(**fields), alone=False) is outcome


@pytest.mark.parametrize(("processes", "refusals"), [(0, 0), (6, 0), (7, 1), (100, 1), (SandboxGone("gone"), 0)])
@timeless
async def test_where_refusals_are_not_counted_the_processes_are(processes: int | Exception, refusals: int) -> None:
    """The command itself, the eighth, has ended."""
    session = Session(Process(ends(0, GuestExit(exit_code=1))), processes=processes)
    run = await run_command(session, command(), pids_limit=8)
    assert run.limits_met.pids_refusals == refusals


@timeless
async def test_processes_are_not_counted_in_vain() -> None:
    for ended_well, options in ((True, {}), (False, {"timeout": 1})):
        process = Process(ends() if ended_well else [NEVER])
        run = await run_command(Session(process, processes=100), command(**options), pids_limit=8)
        assert run.limits_met.pids_refusals is None
    counted = [LimitEvents(pids_refusals=4), LimitEvents(pids_refusals=4)]
    failed = Process(ends(0, GuestExit(exit_code=1)))
    run = await run_command(Session(failed, processes=100, events=counted), command(), pids_limit=8)
    assert run.limits_met.pids_refusals == 0


@timeless
async def test_a_failed_start_is_a_result() -> None:
    failure = StartFailure(stage="program", errno=errno.ENOENT)
    told = result(await run_command(Session(fails=GuestStartError(failure)), command()))
    assert told.start_failure is failure
    assert (told.outcome, told.exit_code, told.stdout_bytes) == (Outcome.START_FAILED, 127, b"")
    assert describe_start_failure(told) == "cannot start x: No such file or directory (program)"


@timeless
async def test_a_missing_working_directory_is_bad_input() -> None:
    failure = StartFailure(stage="cwd", errno=errno.ENOENT)
    run = await run_command(Session(fails=GuestStartError(failure)), command())
    with pytest.raises(ConfigError) as caught:
        refuse_missing_cwd(run)
    (problem,) = caught.value.problems
    assert (problem.field, problem.reason) == ("cwd", "'/nowhere': No such file or directory")


@pytest.mark.parametrize("stage", ["request", "resources", "identity", "program"])
def test_only_the_working_directory_is_bad_input(stage: str) -> None:
    refuse_missing_cwd(ended(start_failure=StartFailure(stage=stage, errno=2)))
    refuse_missing_cwd(ended(exit=OK))


@timeless
async def test_the_result_has_all_that_is_known() -> None:
    told = result(await run_command(Session(Process([out(b"o"), err(b"e!"), *ends()])), command()))
    assert told == ExecResult(
        argv=("x", "y"),
        outcome=Outcome.OK,
        exit_code=0,
        stdout_bytes=b"o",
        stderr_bytes=b"e!",
        stdout_total_bytes=1,
        stderr_total_bytes=2,
        duration_seconds=1.5,
        cpu_user_seconds=0.5,
        cpu_system_seconds=0.25,
        max_rss_bytes=4096,
        sandbox_id="00ff",
        exec_id=3,
        backend="fake",
    )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"exit": GuestExit(exit_code=3)}, NonzeroExit),
        ({"exit": GuestExit(exit_code=None, signal=11)}, NonzeroExit),
        ({"exit": KILLED, "stopped_by": Bound.TIMEOUT}, ExecTimeout),
        ({"exit": KILLED, "stopped_by": Bound.OUTPUT}, LimitExceeded),
        ({"exit": KILLED, "limits_met": OOM}, LimitExceeded),
        ({"exit": GuestExit(exit_code=1), "limits_met": REFUSED}, LimitExceeded),
        ({"start_failure": StartFailure(stage="program", errno=2)}, StartFailed),
    ],
)
def test_check_raises_with_the_result(fields: dict[str, Any], error: type[Any]) -> None:
    told = result(ended(**fields))
    with pytest.raises(error) as caught:
        raise_unless_ok(told)
    assert type(caught.value) is error
    assert caught.value.result is told


def test_check_lets_success_pass() -> None:
    raise_unless_ok(result(ended(exit=OK)))


@pytest.mark.parametrize("stage", ["program", "cwd"])
def test_an_errno_that_cannot_be_is_no_crash(stage: str) -> None:
    """The number is an agent's, and agents lie."""
    run = ended(start_failure=StartFailure(stage=stage, errno=2**32 - 1))
    with pytest.raises(KavachError):
        refuse_missing_cwd(run)
        raise_unless_ok(result(run))
