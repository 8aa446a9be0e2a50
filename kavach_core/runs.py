"""A command to run to its end, and what is known of it so far."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable

from attrs import define, field, frozen

from kavach_core.errors import SandboxError
from kavach_core.types import Bound, ExecRequest, GuestExit, LimitEvents, StartFailure, TerminalSize

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
        cpu_timeout: seconds of CPU time of all its processes together, or None.
        output_limit: bytes of both streams together after which it is killed, or None.
        max_output: bytes to keep of each output stream; what goes beyond is read, counted and dropped.
        on_stdout: called with each piece of standard output as it comes; the command waits for it.
        on_stderr: likewise for standard error.
        tty_sizes: new sizes of its terminal, as they come.
    """

    argv: tuple[str, ...]
    request: ExecRequest
    input: Input | None
    timeout: float | None
    max_output: int
    cpu_timeout: float | None = None
    output_limit: int | None = None
    on_stdout: Forward | None = None
    on_stderr: Forward | None = None
    tty_sizes: AsyncIterable[TerminalSize] | None = None


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

    def keep(self, chunk: bytes) -> None:
        """Take a chunk: count it, and keep what fits."""
        self.total += len(chunk)
        room = self.limit - len(self._kept)
        if room > 0:
            self._kept += chunk[:room]

    async def add(self, chunk: bytes) -> None:
        """Take a chunk, and pass it on."""
        self.keep(chunk)
        if self.forward is not None:
            await self.forward(chunk)


@define
class Run:
    """One command on its way.

    Attributes:
        command: what is run.
        stdout: its standard output so far.
        stderr: its standard error so far.
        exit: how its first process ended, once it has.
        complete: and all has come that was written before that, as far as can be known.
        start_failure: why it could not be started.
        stopped_by: the caller's bound that it went beyond, for which it is killed.
        cancelled: whoever waited for it stopped waiting, and it was killed.
        gone: how the box ended before the command did.
        limits_met: what of the box's limits was met while it ran.
        stdin_bytes: how many bytes it was sent.
    """

    command: Command
    stdout: Capture
    stderr: Capture
    exit: GuestExit | None = None
    complete: bool = False
    start_failure: StartFailure | None = None
    stopped_by: Bound | None = None
    cancelled: bool = False
    gone: SandboxError | None = None
    limits_met: LimitEvents = field(factory=LimitEvents)
    stdin_bytes: int = 0

    @classmethod
    def of(cls, command: Command) -> Run:
        """Begin with nothing known."""
        return cls(
            command,
            Capture(command.max_output, command.on_stdout),
            Capture(command.max_output, command.on_stderr),
        )

    @property
    def awaits_output(self) -> bool:
        """True when its first process has ended, and the box will say when all has come that was written before."""
        return self.exit is not None and self.exit.tells_complete and not self.complete

    @property
    def has_failed(self) -> bool:
        """True when the command ended by itself, and not well."""
        return self.exit is not None and self.exit.status != 0 and self.stopped_by is None

    @property
    def total(self) -> int:
        """Bytes seen on both streams."""
        return self.stdout.total + self.stderr.total
