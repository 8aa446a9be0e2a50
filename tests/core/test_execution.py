"""Running one command: feeding, draining, bounding, timing, killing, and what is said of it in the end.

Against a session of our own protocol that follows a script, on a clock that jumps: nothing here takes real time.
"""

from __future__ import annotations

import errno
import functools
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest
import trio
import trio.testing

from kavach_core.abc import GuestStartError
from kavach_core.config import NOBODY
from kavach_core.errors import (
    ConfigError,
    ExecTimeout,
    GuestProtocolError,
    KavachError,
    NonzeroExit,
    SandboxGone,
    StartFailed,
)
from kavach_core.execution import (
    DRAIN_GRACE_SECONDS,
    Command,
    Run,
    describe_start_failure,
    exit_code_of,
    outcome_of,
    raise_unless_ok,
    refuse_missing_cwd,
    result_of,
    run_command,
)
from kavach_core.types import (
    ExecRequest,
    ExecResult,
    GuestExit,
    Outcome,
    Output,
    StartFailure,
    Stream,
    Usage,
)

KIB = 1024
Happening = tuple[float, Output | GuestExit | BaseException | None]

OK = GuestExit(exit_code=0, cpu_user_seconds=0.5, cpu_system_seconds=0.25, max_rss_bytes=4096)
KILLED = GuestExit(exit_code=None, signal=9)
NEVER = (math.inf, None)


def timeless(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on a clock that jumps on when everybody waits."""

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(functools.partial(test, **arguments), clock=clock)

    return run


class Stdin(trio.abc.SendStream):
    """What a command is fed; its reader may end, or never take anything."""

    def __init__(self, *, takes: float = math.inf, fails: BaseException | None = None) -> None:
        self.received = b""
        self.closed = False
        self._takes = takes
        self._fails = fails

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take it, wait for ever, or fail."""
        await trio.lowlevel.checkpoint()
        if len(self.received) + len(data) > self._takes:
            if self._fails is not None:
                raise self._fails
            await trio.sleep_forever()
        self.received += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


class Process:
    """A command that does what the script says, at the times it says; ``kill`` changes the script."""

    def __init__(
        self,
        script: Iterable[Happening],
        *,
        after_kill: Iterable[Happening] = ((0, KILLED), (0, None)),
        stdin: Stdin | None = None,
        kill_fails: BaseException | None = None,
    ) -> None:
        self.pid = 7
        self.stdin: trio.abc.SendStream | None = stdin
        self.stdout: Any = None
        self.stderr: Any = None
        self.killed_at: float | None = None
        self.closed = False
        self._script = deque(script)
        self._after_kill = after_kill
        self._kill_fails = kill_fails
        self._started = trio.current_time()

    async def next_event(self) -> Output | GuestExit | None:
        """Return what comes next, at its time; lose nothing when cancelled."""
        at, what = self._script[0] if self._script else (0, None)
        await trio.sleep_until(self._started + at)
        if self._script:
            self._script.popleft()
        if isinstance(what, BaseException):
            self._script.appendleft((at, what))
            raise what
        return what

    async def wait(self) -> GuestExit:
        """Not used by the code under test."""
        raise NotImplementedError

    async def send_signal(self, signal: int) -> None:
        """Not used by the code under test."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Go on with the script for a killed command."""
        self.killed_at = trio.current_time() - self._started
        if self._kill_fails is not None:
            raise self._kill_fails
        await trio.lowlevel.checkpoint()
        self._script = deque((self.killed_at + after, what) for after, what in self._after_kill)

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


class Session:
    """Starts the one process it was given, or fails."""

    def __init__(self, process: Process | None = None, *, fails: BaseException | None = None, after: float = 0) -> None:
        self._process = process
        self._fails = fails
        self._after = after

    async def start(self, request: ExecRequest) -> Process:
        """Start."""
        del request
        await trio.sleep(self._after)
        if self._fails is not None:
            raise self._fails
        assert self._process is not None
        return self._process

    async def usage(self) -> Usage:
        """Not used by the code under test."""
        return Usage()

    async def aclose(self) -> None:
        """Not used by the code under test."""


def out(data: bytes, at: float = 0) -> Happening:
    return (at, Output(Stream.STDOUT, data))


def err(data: bytes, at: float = 0) -> Happening:
    return (at, Output(Stream.STDERR, data))


def ends(at: float = 0, ended: GuestExit = OK) -> list[Happening]:
    return [(at, ended), (at, None)]


def command(**fields: Any) -> Command:  # noqa: ANN401 - any field
    request = ExecRequest(argv=(b"x", b"y"), env=(), cwd=b"/nowhere", user=NOBODY)
    defaults = {"argv": ("x", "y"), "request": request, "input": None, "timeout": None, "max_output": 8 * KIB * KIB}
    return Command(**{**defaults, **fields})


def result(run: Run) -> ExecResult:
    return result_of(run, exec_id=3, duration=1.5, sandbox_id="00ff", backend="fake")


# --- output ------------------------------------------------------------------------------------


@timeless
async def test_output_of_both_streams_is_kept_apart_and_in_order() -> None:
    process = Process([out(b"a"), err(b"1"), out(b"b", at=1), err(b"2", at=2), *ends(3)])
    run = await run_command(Session(process), command())
    assert (run.stdout.data, run.stderr.data) == (b"ab", b"12")
    assert run.exit is OK
    assert not run.timed_out
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
    assert run.timed_out
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
    assert run.exit is OK


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
    assert (outcome_of(run), exit_code_of(run)) == (Outcome.TIMEOUT, 124)


@timeless
async def test_a_deadline_after_the_end_of_the_command_is_no_timeout() -> None:
    """The command has ended in time; only its background holder keeps us."""
    process = Process([(0.9, OK), NEVER])
    run = await run_command(Session(process), command(timeout=1))
    assert (outcome_of(run), exit_code_of(run)) == (Outcome.OK, 0)
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
async def test_the_end_of_the_box_comes_bare(failure: KavachError, *, stdin: bool) -> None:
    """Not in a group: callers write ``except SandboxGone``."""
    process = Process(
        [out(b"x"), (1, failure)], kill_fails=failure, stdin=Stdin(takes=0, fails=failure) if stdin else None
    )
    with pytest.raises(type(failure)) as caught:
        await run_command(Session(process), command(input=b"x" if stdin else None))
    assert caught.value is failure


@timeless
async def test_the_end_of_the_box_before_the_start_comes_bare() -> None:
    with pytest.raises(SandboxGone):
        await run_command(Session(fails=SandboxGone("gone")), command())


@timeless
async def test_the_end_of_the_box_after_the_end_of_the_command_comes_bare() -> None:
    process = Process([(0, OK), (0.1, SandboxGone("gone"))])
    with pytest.raises(SandboxGone):
        await run_command(Session(process), command())
    assert process.closed


@timeless
async def test_a_protocol_error_during_the_kill_leaves_nothing_open() -> None:
    process = Process([NEVER], kill_fails=GuestProtocolError("liar"))
    with pytest.raises(GuestProtocolError):
        await run_command(Session(process), command(timeout=1))
    assert process.closed


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
        ({"exit": KILLED, "timed_out": True}, Outcome.TIMEOUT, 124),
        ({"exit": OK, "timed_out": True}, Outcome.TIMEOUT, 124),
        ({"timed_out": True}, Outcome.TIMEOUT, 124),
        ({}, Outcome.TIMEOUT, 124),
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
    assert (outcome_of(run), exit_code_of(run)) == (outcome, code)
    told = result(run)
    assert (told.outcome, told.exit_code) == (outcome, code)


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
        ({"exit": KILLED, "timed_out": True}, ExecTimeout),
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
