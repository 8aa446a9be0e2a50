"""A session of core's own protocol that follows a script, on a clock that jumps: nothing takes real time."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio
import trio.testing

from kavach_core.abc import GuestEvent
from kavach_core.config import NOBODY
from kavach_core.runs import Command
from kavach_core.types import ExecRequest, GuestExit, LimitEvents, Output, ProcessInfo, Stream, TerminalSize, Usage

KIB = 1024
Happening = tuple[float, GuestEvent | BaseException | None]

OK = GuestExit(exit_code=0, cpu_user_seconds=0.5, cpu_system_seconds=0.25, max_rss_bytes=4096)
KILLED = GuestExit(exit_code=None, signal=9)
NEVER = (math.inf, None)
SLEEPER = ProcessInfo(
    pid=2, parent_pid=1, exec_id=1, uid=65534, state="S", threads=1, cpu_seconds=0, rss_bytes=0, name="sleep"
)


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
        cpu_fails: BaseException | None = None,
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
        self._cpu_fails = cpu_fails
        self._started = trio.current_time()

    @property
    def has_event(self) -> bool:
        """True once its time has come."""
        return not self._script or trio.current_time() >= self._started + self._script[0][0]

    async def next_event(self) -> GuestEvent | None:
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

    def poll(self) -> GuestExit | None:
        """Not used by the code under test."""
        raise NotImplementedError

    async def resize(self, size: TerminalSize) -> None:
        """Not used by the code under test."""
        raise NotImplementedError

    async def cpu_seconds(self) -> float:
        """Use one second of CPU time each second."""
        await trio.lowlevel.checkpoint()
        if self._cpu_fails is not None:
            raise self._cpu_fails
        return trio.current_time() - self._started

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

    def __init__(
        self,
        process: Process | None = None,
        *,
        fails: BaseException | None = None,
        after: float = 0,
        events: Iterable[LimitEvents] = (),
        processes: int | BaseException = 0,
    ) -> None:
        self._process = process
        self._fails = fails
        self._after = after
        self._events = deque(events)
        self._processes = processes

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

    def limit_events(self) -> LimitEvents:
        """Return the next of those given."""
        return self._events.popleft() if self._events else LimitEvents()

    async def processes(self) -> tuple[ProcessInfo, ...]:
        """Return so many, or fail."""
        await trio.lowlevel.checkpoint()
        if isinstance(self._processes, BaseException):
            raise self._processes
        return (SLEEPER,) * self._processes

    async def ping(self) -> None:
        """Not used by the code under test."""

    async def pause(self) -> None:
        """Not used by the code under test."""

    async def resume(self) -> None:
        """Not used by the code under test."""

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
