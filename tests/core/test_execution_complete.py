"""What is a command's own is never cut, however long it takes to come."""

from __future__ import annotations

import attrs
import pytest
import trio
from scripted import NEVER, OK, Process, Session, command, err, out, timeless

from kavach_core.errors import SandboxGone
from kavach_core.execution import DRAIN_GRACE_SECONDS, run_command
from kavach_core.exit_status import EXIT_TIMEOUT
from kavach_core.outcomes import raise_if_gone, result_of
from kavach_core.runs import Run
from kavach_core.types import Bound, ExecResult, Outcome, OutputComplete

TELLS = attrs.evolve(OK, tells_complete=True)
COMPLETE = OutputComplete()


def result(run: Run) -> ExecResult:
    return result_of(run, exec_id=3, duration=1.5, sandbox_id="00ff", backend="fake", alone=True)


@timeless
async def test_its_own_output_may_take_longer_than_the_grace() -> None:
    slow = [out(b"a", at=5), err(b"b", at=50), out(b"c", at=500), (500, COMPLETE), (500, None)]
    run = await run_command(Session(Process([(0, TELLS), *slow])), command())
    assert (run.stdout.data, run.stderr.data) == (b"ac", b"b")
    assert result(run).outcome is Outcome.OK


@timeless
async def test_the_grace_begins_when_its_own_has_come() -> None:
    began = trio.current_time()
    late = [out(b"late", at=100.2), out(b"too late", at=100.3), NEVER]
    run = await run_command(Session(Process([(0, TELLS), (100, COMPLETE), *late])), command())
    assert run.stdout.data == b"late"
    assert trio.current_time() - began == pytest.approx(100 + DRAIN_GRACE_SECONDS)


@timeless
async def test_a_deadline_before_its_own_has_come_is_told() -> None:
    """Or it would be a success with output missing."""
    process = Process([out(b"x"), (0, TELLS), NEVER], after_kill=[(0, COMPLETE), NEVER])
    run = await run_command(Session(process), command(timeout=3))
    told = result(run)
    assert (told.outcome, told.stopped_by, told.exit_code) == (Outcome.TIMEOUT, Bound.TIMEOUT, EXIT_TIMEOUT)
    assert process.killed_at == pytest.approx(3)


@timeless
async def test_a_deadline_in_the_grace_changes_nothing() -> None:
    process = Process([out(b"x"), (0, TELLS), (2.9, COMPLETE), NEVER])
    run = await run_command(Session(process), command(timeout=3))
    assert (result(run).outcome, run.stdout.data) == (Outcome.OK, b"x")
    assert process.killed_at is None


@timeless
async def test_a_box_that_ends_in_the_grace_takes_nothing_back() -> None:
    run = await run_command(
        Session(Process([out(b"x"), (0, TELLS), (0, COMPLETE), (0.1, SandboxGone("gone"))])), command()
    )
    told = result(run)
    assert (told.outcome, told.exit_code, told.sandbox_gone) == (Outcome.OK, 0, True)
    raise_if_gone(run, told)


@timeless
async def test_a_box_that_ends_before_its_own_has_come_is_no_success() -> None:
    run = await run_command(Session(Process([out(b"x"), (0, TELLS), (9, SandboxGone("gone"))])), command())
    assert result(run).outcome is Outcome.BACKEND_ERROR
    with pytest.raises(SandboxGone):
        raise_if_gone(run, result(run))


@timeless
async def test_those_left_behind_cannot_hold_it_up_by_writing() -> None:
    flood = [out(bytes(65_536), at=0.001 * number) for number in range(1000)]
    run = await run_command(Session(Process([(0, TELLS), (0, COMPLETE), *flood, NEVER])), command(max_output=0))
    assert run.stdout.total < 6 * 1024 * 1024


@timeless
async def test_who_hangs_on_the_output_is_not_asked_again_while_it_is_killed() -> None:
    began, calls = trio.current_time(), []

    async def hang(piece: bytes) -> None:
        calls.append(piece)
        await trio.sleep_forever()

    process = Process([out(b"a"), NEVER], after_kill=[out(b"b"), (0, TELLS), (0, COMPLETE), (0, None)])
    run = await run_command(Session(process), command(timeout=3, on_stdout=hang))
    assert trio.current_time() - began == pytest.approx(3)
    assert (calls, run.stdout.data) == ([b"a"], b"ab")
