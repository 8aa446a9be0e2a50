"""Running one command: how it is stopped, by its bounds, by the caller, and by the end of the box."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from scripted import KILLED, NEVER, OK, Process, Session, Stdin, command, ends, err, out, timeless

from kavach_core.errors import (
    GuestProtocolError,
    SandboxError,
    SandboxGone,
)
from kavach_core.execution import run_command
from kavach_core.outcomes import (
    exit_code_of,
    outcome_of,
    raise_if_gone,
    result_of,
)
from kavach_core.runs import Run
from kavach_core.types import Bound, ExecResult, LimitEvents, Outcome


def ended(**fields: Any) -> Run:  # noqa: ANN401 - any field
    run = Run.of(command())
    for name, value in fields.items():
        setattr(run, name, value)
    return run


def result(run: Run, *, alone: bool = True) -> ExecResult:
    return result_of(run, exec_id=3, duration=1.5, sandbox_id="00ff", backend="fake", alone=alone)


# --- deadline, cancellation, the end of the box ------------------------------------------------


@pytest.mark.parametrize("stdin", [False, True])
@timeless
async def test_a_deadline_kills_and_keeps_what_has_come(*, stdin: bool) -> None:
    rest = [out(b" rest", at=0.01), (0.02, KILLED), err(b"last", at=0.03), (0.04, None)]
    process = Process([out(b"partial", at=0.5), NEVER], after_kill=rest, stdin=Stdin(takes=0) if stdin else None)
    told = result(await run_command(Session(process), command(timeout=1, input=b"x" if stdin else None)))
    assert process.killed_at == 1
    assert process.closed
    assert (told.stdout_bytes, told.stderr_bytes) == (b"partial rest", b"last")
    assert (told.outcome, told.exit_code, told.signal) == (Outcome.TIMEOUT, 124, 9)


@timeless
async def test_a_deadline_covers_the_start() -> None:
    run = await run_command(Session(Process(ends()), after=10), command(timeout=1))
    assert (outcome_of(run, alone=True), exit_code_of(run)) == (Outcome.TIMEOUT, 124)


@timeless
async def test_a_deadline_after_the_end_of_the_command_is_no_timeout() -> None:
    """The command has ended in time; only its background holder keeps us."""
    process = Process([(0.9, OK), NEVER])
    run = await run_command(Session(process), command(timeout=1))
    assert (outcome_of(run, alone=True), exit_code_of(run)) == (Outcome.OK, 0)
    assert process.closed


@timeless
async def test_a_command_that_ends_by_itself_as_it_is_killed_is_still_a_timeout() -> None:
    process = Process([NEVER], after_kill=ends())
    told = result(await run_command(Session(process), command(timeout=1)))
    assert (told.outcome, told.exit_code, told.signal) == (Outcome.TIMEOUT, 124, None)


@timeless
async def test_no_deadline_is_no_deadline() -> None:
    run = await run_command(Session(Process(ends(1e7))), command())
    assert run.exit is OK


@timeless
async def test_a_kill_that_takes_the_box_along_is_a_timeout_too() -> None:
    process = Process([out(b"x"), NEVER], kill_fails=SandboxGone("ended with it", stage="kill"))
    told = result(await run_command(Session(process), command(timeout=1)))
    assert (told.outcome, told.stdout_bytes) == (Outcome.TIMEOUT, b"x")
    assert process.closed


@timeless
async def test_a_box_that_dies_of_the_kill_is_a_timeout_too() -> None:
    process = Process([NEVER], after_kill=[(0, SandboxGone("gone"))])
    told = result(await run_command(Session(process), command(timeout=1)))
    assert told.outcome is Outcome.TIMEOUT
    assert process.closed


@timeless
async def test_a_kill_is_bounded_in_time() -> None:
    """Even when the box never says that the command is dead."""
    process = Process([NEVER], after_kill=[NEVER])
    started = trio.current_time()
    await run_command(Session(process), command(timeout=1))
    assert trio.current_time() - started <= 1 + 2
    assert process.closed


@pytest.mark.parametrize("stdin", [False, True])
@timeless
async def test_cancellation_kills_before_it_leaves(*, stdin: bool) -> None:
    process = Process([out(b"x"), NEVER], stdin=Stdin(takes=0) if stdin else None)
    with trio.move_on_after(1) as scope:
        await run_command(Session(process), command(input=b"x" if stdin else None))
        pytest.fail("it was not cancelled")
    assert scope.cancelled_caught
    assert process.killed_at == 1
    assert process.closed


@timeless
async def test_cancellation_is_an_outcome_of_its_own() -> None:
    """For those who account for the command; the caller gets Cancelled."""
    run = ended(cancelled=True, exit=KILLED)
    assert outcome_of(run, alone=True) is Outcome.CANCELLED


@timeless
async def test_cancellation_during_the_start_is_the_session_s_business() -> None:
    with trio.move_on_after(1) as scope:
        await run_command(Session(Process(ends()), after=10), command())
    assert scope.cancelled_caught


@timeless
async def test_cancellation_beats_a_later_deadline_and_kills_once() -> None:
    process = Process([NEVER])
    with trio.move_on_after(1) as scope:
        await run_command(Session(process), command(timeout=2))
    assert scope.cancelled_caught
    assert process.killed_at == 1


@pytest.mark.parametrize("stdin", [False, True])
@pytest.mark.parametrize("failure", [SandboxGone("gone"), GuestProtocolError("liar")])
@timeless
async def test_the_end_of_the_box_is_told_bare_with_what_is_known(failure: SandboxError, *, stdin: bool) -> None:
    """Not in a group: callers write ``except SandboxGone``."""
    process = Process(
        [out(b"x"), (1, failure)], kill_fails=failure, stdin=Stdin(takes=0, fails=failure) if stdin else None
    )
    run = await run_command(Session(process), command(input=b"x" if stdin else None))
    told = result(run)
    assert (told.outcome, told.exit_code, told.sandbox_gone) == (Outcome.BACKEND_ERROR, 125, True)
    assert process.closed
    assert process.killed_at is None
    with pytest.raises(type(failure)) as caught:
        raise_if_gone(run, told)
    assert caught.value is failure
    assert caught.value.result is told
    assert told.stdout_bytes == b"x"


@timeless
async def test_the_end_of_the_box_before_the_start() -> None:
    run = await run_command(Session(fails=SandboxGone("gone")), command())
    with pytest.raises(SandboxGone):
        raise_if_gone(run, result(run))


@timeless
async def test_the_end_of_the_box_after_the_end_of_the_command_is_no_success() -> None:
    """Who knows what of its output is missing."""
    process = Process([(0, OK), (0.1, SandboxGone("gone"))])
    run = await run_command(Session(process), command())
    assert result(run).outcome is Outcome.BACKEND_ERROR
    with pytest.raises(SandboxGone):
        raise_if_gone(run, result(run))
    assert process.closed


@timeless
async def test_a_box_that_dies_for_want_of_memory_gives_a_result() -> None:
    """As on gVisor, where the kernel of the host takes the whole box."""
    events = [LimitEvents(oom_kills=2), LimitEvents(oom_kills=3)]
    run = await run_command(Session(Process([out(b"x"), (1, SandboxGone("gone"))]), events=events), command())
    told = result(run)
    assert (told.outcome, told.exit_code, told.sandbox_gone) == (Outcome.OOM_KILLED, 137, True)
    assert (told.oom_kills, told.stdout_bytes) == (1, b"x")
    raise_if_gone(run, told)


@timeless
async def test_a_protocol_error_during_the_kill_leaves_nothing_open() -> None:
    process = Process([NEVER], kill_fails=GuestProtocolError("liar"))
    run = await run_command(Session(process), command(timeout=1))
    assert (result(run).outcome, result(run).sandbox_gone) == (Outcome.TIMEOUT, True)
    assert process.closed


# --- other bounds ------------------------------------------------------------------------------


@timeless
async def test_cpu_time_is_a_bound() -> None:
    process = Process([out(b"x"), NEVER])
    told = result(await run_command(Session(process), command(cpu_timeout=2, timeout=100)))
    assert (told.outcome, told.stopped_by, told.exit_code) == (Outcome.TIMEOUT, Bound.CPU, 124)
    assert process.killed_at is not None
    assert 2 <= process.killed_at < 2.1
    assert (told.stdout_bytes, process.closed) == (b"x", True)


@timeless
async def test_a_command_that_needs_less_cpu_time_is_let_be() -> None:
    process = Process(ends(1.5))
    told = result(await run_command(Session(process), command(cpu_timeout=2)))
    assert (told.outcome, process.killed_at) == (Outcome.OK, None)


@timeless
async def test_cpu_time_of_a_box_that_has_gone() -> None:
    process = Process([(1, SandboxGone("gone"))], cpu_fails=SandboxGone("gone"))
    assert result(await run_command(Session(process), command(cpu_timeout=2))).outcome is Outcome.BACKEND_ERROR


@timeless
async def test_the_bounds_are_told_apart() -> None:
    first = result(await run_command(Session(Process([NEVER])), command(cpu_timeout=3, timeout=2)))
    assert first.stopped_by is Bound.TIMEOUT
    then = result(await run_command(Session(Process([NEVER])), command(cpu_timeout=2, timeout=3)))
    assert then.stopped_by is Bound.CPU


@pytest.mark.parametrize("stdin", [False, True])
@timeless
async def test_output_is_a_bound(*, stdin: bool) -> None:
    pieces = [out(b"abc"), err(b"de"), out(b"f", at=1), NEVER]
    process = Process(pieces, after_kill=[out(b"g"), *ends(0, KILLED)], stdin=Stdin() if stdin else None)
    options = {"output_limit": 5, "max_output": 4, "input": b"" if stdin else None}
    told = result(await run_command(Session(process), command(**options)))
    assert (told.outcome, told.stopped_by, told.exit_code) == (Outcome.OUTPUT_LIMIT, Bound.OUTPUT, 137)
    assert (process.killed_at, process.closed) == (1, True)
    assert (told.stdout_bytes, told.stdout_total_bytes, told.stderr_bytes) == (b"abcf", 5, b"de")


@timeless
async def test_output_up_to_its_bound_is_let_be() -> None:
    told = result(await run_command(Session(Process([out(b"abcde"), *ends()])), command(output_limit=5)))
    assert told.outcome is Outcome.OK
