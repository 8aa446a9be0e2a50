"""Running one command: its output, what is passed on of it, and its input."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from scripted import KIB, KILLED, NEVER, OK, Process, Session, Stdin, command, ends, err, out, timeless

from kavach_core.errors import (
    KavachError,
    SandboxGone,
)
from kavach_core.execution import DRAIN_GRACE_SECONDS, run_command
from kavach_core.outcomes import (
    result_of,
)
from kavach_core.runs import Run
from kavach_core.types import Bound, ExecResult


def result(run: Run, *, alone: bool = True) -> ExecResult:
    return result_of(run, exec_id=3, duration=1.5, sandbox_id="00ff", backend="fake", alone=alone)


# --- output ------------------------------------------------------------------------------------


@timeless
async def test_output_of_both_streams_is_kept_apart_and_in_order() -> None:
    process = Process([out(b"a"), err(b"1"), out(b"b", at=1), err(b"2", at=2), *ends(3)])
    run = await run_command(Session(process), command())
    assert (run.stdout.data, run.stderr.data) == (b"ab", b"12")
    assert run.exit is OK
    assert run.stopped_by is None
    assert process.closed
    assert process.killed_at is None


@timeless
async def test_output_between_the_end_and_the_end_of_the_streams_is_kept() -> None:
    process = Process([(0, OK), out(b"late", at=0.1), err(b"later", at=0.2), (0.24, None)])
    run = await run_command(Session(process), command())
    assert (run.stdout.data, run.stderr.data) == (b"late", b"later")


@pytest.mark.parametrize(
    ("cap", "kept", "truncated"),
    [(0, b"", True), (3, b"abc", True), (5, b"abcde", True), (6, b"abcdef", False), (7, b"abcdef", False)],
)
@timeless
async def test_output_beyond_the_cap_is_counted_and_flagged(cap: int, kept: bytes, *, truncated: bool) -> None:
    process = Process([out(b"ab"), out(b"cd"), out(b"ef"), err(b"x"), *ends()])
    told = result(await run_command(Session(process), command(max_output=cap)))
    assert told.stdout_bytes == kept
    assert (told.stdout_total_bytes, told.stderr_total_bytes) == (6, 1)
    assert told.stdout_truncated is truncated
    assert told.stderr_truncated is (cap == 0)


@timeless
async def test_the_cap_holds_for_each_stream() -> None:
    process = Process([out(b"abcd"), err(b"wxyz"), *ends()])
    run = await run_command(Session(process), command(max_output=3))
    assert (run.stdout.data, run.stderr.data) == (b"abc", b"wxy")


@timeless
async def test_much_output_costs_no_more_memory_than_the_cap() -> None:
    pieces = [out(bytes(64 * KIB)) for _ in range(1000)]
    run = await run_command(Session(Process([*pieces, *ends()])), command(max_output=10))
    assert run.stdout.total == 64_000 * KIB
    assert len(run.stdout.data) == 10


@timeless
async def test_a_background_holder_of_the_streams_is_not_waited_for() -> None:
    """What the command left behind may keep the stream open for ever; its own output has come by then."""
    process = Process([out(b"mine"), (1, OK), NEVER])
    started = trio.current_time()
    run = await run_command(Session(process), command())
    assert trio.current_time() - started == pytest.approx(1 + DRAIN_GRACE_SECONDS)
    assert (run.stdout.data, run.exit) == (b"mine", OK)
    assert process.closed
    assert process.killed_at is None


@timeless
async def test_a_background_holder_that_trickles_does_not_hold() -> None:
    """What it says does not begin the grace anew."""
    pieces = [out(b"word", at=0.1 * number) for number in range(1, 1000)]
    process = Process([out(b"x"), (0, OK), *pieces, NEVER])
    started = trio.current_time()
    run = await run_command(Session(process), command())
    assert trio.current_time() - started == pytest.approx(0.25)
    assert run.stdout.data == b"xwordword"
    assert process.closed


@timeless
async def test_a_background_holder_that_floods_does_not_hold_for_ever() -> None:
    """A command cannot have left more than two pipes of 1 MiB and the credit of both."""
    process = Process([out(b"x"), (0, OK), *[out(bytes(64 * KIB), at=0.001)] * 1000, NEVER])
    run = await run_command(Session(process), command())
    assert 4 * KIB * KIB < run.stdout.total <= 4 * KIB * KIB + 1 + 64 * KIB
    assert process.closed


@timeless
async def test_the_late_output_of_a_real_command_is_never_cut() -> None:
    """A pipe holds 64 KiB and the credit 256 KiB for each stream: all of that may come after the end."""
    pieces = [out(bytes(64 * KIB), at=0.02 * number) for number in range(1, 6)]
    more = [err(bytes(64 * KIB), at=0.02 * number) for number in range(6, 11)]
    process = Process([out(bytes(9 * KIB * KIB)), (0, OK), *pieces, *more, (0.24, None)])
    run = await run_command(Session(process), command())
    assert run.stdout.total == 9 * KIB * KIB + 5 * 64 * KIB
    assert run.stderr.total == 5 * 64 * KIB


# --- forwarders --------------------------------------------------------------------------------


@pytest.mark.parametrize("stdin", [False, True])
@timeless
async def test_forwarders_get_everything_also_beyond_the_cap(*, stdin: bool) -> None:
    seen: list[tuple[str, bytes]] = []

    async def on_stdout(data: bytes) -> None:
        await trio.sleep(0.01)
        seen.append(("out", data))

    async def on_stderr(data: bytes) -> None:
        await trio.sleep(0.01)
        seen.append(("err", data))

    process = Process([out(b"a"), err(b"b"), out(b"c"), *ends()], stdin=Stdin() if stdin else None)
    run = await run_command(Session(process), command(max_output=1, on_stdout=on_stdout, on_stderr=on_stderr))
    assert seen == [("out", b"a"), ("err", b"b"), ("out", b"c")]
    assert (run.stdout.data, run.stdout.total) == (b"a", 2)


@timeless
async def test_a_forwarder_that_hangs_is_ended_by_the_deadline() -> None:
    async def hang(data: bytes) -> None:
        del data
        await trio.sleep_forever()

    process = Process([out(b"a"), *ends()])
    run = await run_command(Session(process), command(timeout=1, on_stdout=hang))
    assert run.stopped_by is Bound.TIMEOUT
    assert (run.stdout.data, process.killed_at) == (b"a", 1)
    assert process.closed


class CallerError(Exception):
    """What a caller's own code raises."""


async def fail_once(data: bytes) -> None:
    if data == b"bad":
        raise CallerError


@timeless
async def test_a_forwarder_that_fails_ends_the_command_with_its_error() -> None:
    process = Process([out(b"bad"), NEVER])
    with pytest.raises(CallerError):
        await run_command(Session(process), command(on_stdout=fail_once))
    assert process.killed_at is not None
    assert process.closed


@timeless
async def test_a_forwarder_fails_alike_with_input() -> None:
    process = Process([out(b"bad"), NEVER], stdin=Stdin())
    with pytest.raises(CallerError):
        await run_command(Session(process), command(input=b"x", on_stdout=fail_once))


@timeless
async def test_a_forwarder_that_fails_again_leaves_nothing_open() -> None:
    process = Process([out(b"bad"), NEVER], after_kill=[out(b"bad"), (0, KILLED), (0, None)])
    with pytest.raises(CallerError):
        await run_command(Session(process), command(on_stdout=fail_once))
    assert process.killed_at is not None
    assert process.closed


@timeless
async def test_an_error_of_another_sandbox_in_a_forwarder_is_not_swallowed() -> None:
    async def fail(data: bytes) -> None:
        del data
        raise KavachError("of another sandbox")

    process = Process([out(b"a"), *ends()])
    with pytest.raises(KavachError, match="of another sandbox"):
        await run_command(Session(process), command(on_stdout=fail))


# --- input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"some", bytes(range(256)) * 1000])
@timeless
async def test_bytes_are_fed_and_ended(data: bytes) -> None:
    stdin = Stdin()
    run = await run_command(Session(Process(ends(1), stdin=stdin)), command(input=data))
    assert (stdin.received, stdin.closed) == (data, True)
    assert (run.exit, run.stdin_bytes) == (OK, len(data))


@timeless
async def test_input_is_fed_as_it_comes() -> None:
    stdin = Stdin()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            await trio.sleep(0.1)
            assert stdin.received == b"".join(b"%d" % before for before in range(number))
            yield b"%d" % number

    await run_command(Session(Process(ends(1), stdin=stdin)), command(input=pieces()))
    assert (stdin.received, stdin.closed) == (b"01234", True)


@timeless
async def test_a_command_that_reads_nothing_is_not_held_up() -> None:
    stdin = Stdin(takes=0)
    run = await run_command(Session(Process([out(b"x"), *ends(1)], stdin=stdin)), command(input=b"some"))
    assert (run.stdout.data, run.exit) == (b"x", OK)


@timeless
async def test_endless_input_ends_with_the_command() -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(0.1)
            yield b"x"

    run = await run_command(Session(Process(ends(1.05), stdin=Stdin())), command(input=forever()))
    assert run.exit is OK


@pytest.mark.parametrize("failure", [trio.BrokenResourceError(), SandboxGone("gone")])
@timeless
async def test_a_command_that_ends_without_reading_is_no_error(failure: Exception) -> None:
    stdin = Stdin(takes=2, fails=failure)
    process = Process([out(b"x", at=0.5), *ends(1)], stdin=stdin)
    run = await run_command(Session(process), command(input=b"some"))
    assert (run.stdout.data, run.exit) == (b"x", OK)


@timeless
async def test_input_that_fails_ends_the_command() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise CallerError

    process = Process([NEVER], stdin=Stdin())
    with pytest.RaisesGroup(CallerError, allow_unwrapped=True):
        await run_command(Session(process), command(input=failing()))
    assert process.killed_at is not None
    assert process.closed


@timeless
async def test_input_that_fails_with_an_error_of_another_sandbox_ends_the_command() -> None:
    """For example what another sandbox's command writes, when that sandbox ends."""

    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise SandboxGone("the other one")

    process = Process([NEVER], stdin=Stdin())
    with trio.move_on_after(3600) as waited, pytest.RaisesGroup(SandboxGone, allow_unwrapped=True):
        await run_command(Session(process), command(input=failing()))
    assert not waited.cancelled_caught
