"""Requests and results: the frozen values that pass between callers, core and backends."""

from __future__ import annotations

import enum

from attrs import Factory, field, frozen

from kavach_core.exit_status import status_of_end

# A stream that is not being read is held back by flow control, so this bounds memory, not output.
DEFAULT_MAX_OUTPUT_BYTES = 8 * 1024 * 1024


class Outcome(enum.StrEnum):
    """How a command ended, as observed, never guessed from its exit code."""

    OK = "ok"
    NONZERO_EXIT = "nonzero_exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    OOM_KILLED = "oom_killed"
    PIDS_LIMIT = "pids_limit"
    OUTPUT_LIMIT = "output_limit"
    START_FAILED = "start_failed"
    BACKEND_ERROR = "backend_error"


class Bound(enum.StrEnum):
    """A bound of the caller's for which a command was killed."""

    TIMEOUT = "timeout"
    CPU = "cpu_timeout"
    OUTPUT = "output_limit"


@frozen(kw_only=True)
class User:
    """Who a command runs as, in the ids of the box.

    Attributes:
        uid: user id, 0 to 65535.
        gid: group id, 0 to 65535.
        groups: supplementary group ids.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@frozen(kw_only=True)
class TerminalSize:
    """Size of a terminal, in characters.

    Attributes:
        rows: 1 to 65535.
        columns: 1 to 65535.
    """

    rows: int = 24
    columns: int = 80


@frozen(kw_only=True)
class ExecRequest:
    """One command, fully resolved: what a session is asked to start.

    Attributes:
        argv: program and arguments; bytes, because that is what the kernel takes.
        env: the whole environment, ``NAME=value`` each.
        cwd: absolute working directory in the box.
        user: identity of the command.
        stdin: True for a pipe fed by the caller, False for ``/dev/null``.
        terminal: give it a pseudo terminal of this size for all three streams; what it writes is standard output then.
        exec_id: the caller's number for it, told back by ``Session.processes``.
    """

    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    cwd: bytes
    user: User
    stdin: bool = False
    terminal: TerminalSize | None = None
    exec_id: int = 0


@frozen(kw_only=True)
class StartFailure:
    """Why a command could not be started.

    Attributes:
        stage: ``request``, ``resources``, ``identity``, ``cwd`` or ``program``.
        errno: the kernel's error number.
    """

    stage: str
    errno: int


@frozen(kw_only=True)
class GuestExit:
    """How the first process of a command ended, as the box reports it.

    Attributes:
        exit_code: its status, or None when a signal ended it.
        signal: the signal that ended it, or None.
        cpu_user_seconds: CPU time in user mode, of it and the children it waited for.
        cpu_system_seconds: CPU time in the kernel, likewise.
        max_rss_bytes: peak resident set of the largest process among them.
        tells_complete: ``OutputComplete`` will follow, once all has been given that was written before this end.
    """

    exit_code: int | None
    signal: int | None = None
    cpu_user_seconds: float = 0.0
    cpu_system_seconds: float = 0.0
    max_rss_bytes: int = 0
    tells_complete: bool = False

    @property
    def status(self) -> int:
        """The status a shell would show: its own, or 128 + N after signal N."""
        return status_of_end(code=self.signal or self.exit_code or 0, by_signal=self.signal is not None)


@frozen
class OutputComplete:
    """All has been given that a command's streams held when its first process ended.

    What comes after it was written by processes that the command has left behind.
    """


class Stream(enum.StrEnum):
    """Which output of a command."""

    STDOUT = "stdout"
    STDERR = "stderr"


@frozen
class Output:
    """A piece of output of a command.

    Attributes:
        stream: where it was written to.
        data: the bytes, at least one.
    """

    stream: Stream
    data: bytes


@frozen(kw_only=True)
class Usage:
    """What a whole sandbox has used so far, as the host counted it. None = this host does not count it.

    Attributes:
        cpu_seconds: CPU time of all its processes, the runtime's own included.
        cpu_user_seconds: the part of it in user mode.
        cpu_system_seconds: the part of it in the kernel.
        memory_bytes: memory it holds now.
        memory_peak_bytes: the most memory it held at once.
        memory_limit_hits: how often an allocation met the memory limit.
        oom_kills: how many of its processes the kernel has killed for want of memory.
        pids: tasks of the host (on gVisor: threads of the runtime) alive now.
        pids_peak: the most of them at once.
        bytes_in: bytes that were sent to the box: input, files.
        bytes_out: bytes that came from it: output, files.
    """

    cpu_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_hits: int | None = None
    oom_kills: int | None = None
    pids: int | None = None
    pids_peak: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None


@frozen(kw_only=True)
class LimitEvents:
    """How often a box has met its limits since it was booted, as the host's kernel counted. None = not counted here.

    Attributes:
        oom_kills: processes killed for want of memory.
        pids_refusals: processes and threads that were not created for the limit on their number.
    """

    oom_kills: int | None = None
    pids_refusals: int | None = None


@frozen(kw_only=True)
class ProcessInfo:
    """One process in a box, as its agent sees it.

    Attributes:
        pid: its process id in the box.
        parent_pid: that of its parent.
        exec_id: the command it belongs to, or None when nothing says so.
        uid: its user, in the ids of the box.
        state: one letter as in ``proc(5)``: R, S, D, T, Z and so on.
        threads: how many threads it has.
        cpu_seconds: CPU time it has used.
        rss_bytes: memory it holds.
        name: name of its program, up to 15 bytes, made safe to show.
    """

    pid: int
    parent_pid: int
    exec_id: int | None
    uid: int
    state: str
    threads: int
    cpu_seconds: float
    rss_bytes: int
    name: str


@frozen(kw_only=True)
class ExecResult:
    """What a command did.

    A nonzero exit, a signal and a timeout are results, not errors, unless ``check=True`` was asked for.

    Attributes:
        argv: the command as it was asked for.
        outcome: how it ended.
        exit_code: its status; ``128 + N`` after signal N, 124 after a timeout, 126 or 127 when it could not be started.
        signal: number of the signal that ended it, or None.
        stopped_by: the caller's bound for which it was killed, or None.
        stdout_bytes: standard output, up to the cap.
        stderr_bytes: standard error, up to the cap.
        stdout_total_bytes: how many bytes the command wrote to standard output.
        stderr_total_bytes: likewise for standard error.
        stdin_total_bytes: how many bytes were sent to its standard input.
        start_failure: why it could not be started, or None.
        duration_seconds: wall clock from request to result.
        cpu_user_seconds: CPU time in user mode.
        cpu_system_seconds: CPU time in the kernel.
        max_rss_bytes: peak resident set.
        oom_kills: processes of the box that the kernel killed for want of memory while it ran; None = not counted here.
        sandbox_gone: the box has ended with it, and takes no more commands.
        sandbox_id: where it ran.
        exec_id: its number in that sandbox.
        backend: name of the backend.
    """

    argv: tuple[str, ...]
    outcome: Outcome
    exit_code: int
    signal: int | None = None
    stopped_by: Bound | None = None
    stdout_bytes: bytes = field(default=b"", repr=False)
    stderr_bytes: bytes = field(default=b"", repr=False)
    stdout_total_bytes: int = 0
    stderr_total_bytes: int = 0
    stdin_total_bytes: int = 0
    start_failure: StartFailure | None = None
    duration_seconds: float = 0.0
    cpu_user_seconds: float = 0.0
    cpu_system_seconds: float = 0.0
    max_rss_bytes: int = 0
    oom_kills: int | None = None
    sandbox_gone: bool = False
    sandbox_id: str = ""
    exec_id: int = 0
    backend: str = ""

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 show as U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 show as U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """True when the command ran and returned 0."""
        return self.outcome is Outcome.OK

    @property
    def timed_out(self) -> bool:
        """True when the command was killed at its deadline."""
        return self.outcome is Outcome.TIMEOUT

    @property
    def oom_killed(self) -> bool:
        """True when the kernel ended the command for want of memory."""
        return self.outcome is Outcome.OOM_KILLED

    @property
    def stdout_truncated(self) -> bool:
        """True when the command wrote more than ``stdout_bytes`` holds."""
        return self.stdout_total_bytes > len(self.stdout_bytes)

    @property
    def stderr_truncated(self) -> bool:
        """True when the command wrote more than ``stderr_bytes`` holds."""
        return self.stderr_total_bytes > len(self.stderr_bytes)

    @property
    def truncated(self) -> bool:
        """True when output of either stream was dropped."""
        return self.stdout_truncated or self.stderr_truncated

    @property
    def cpu_seconds(self) -> float:
        """CPU time, user and kernel together."""
        return self.cpu_user_seconds + self.cpu_system_seconds


@frozen(kw_only=True)
class Reason:
    """One thing that a probe found, and the command or change that would mend it.

    Attributes:
        text: what is the case.
        remedy: what to do about it, or None.
    """

    text: str
    remedy: str | None = None


@frozen(kw_only=True)
class ProbeReport:
    """What a backend found out about itself on this host.

    Attributes:
        usable: True when a box was really started.
        version: version of the runtime, or None when there is none.
        path: its program, or None.
        reasons: why it is not usable, or what makes it weaker here.
        capabilities: what it can enforce on this host.
        details: further facts for a person to read, for example the platform chosen.
    """

    usable: bool
    version: str | None = None
    path: str | None = None
    reasons: tuple[Reason, ...] = ()
    capabilities: frozenset[str] = frozenset()
    details: dict[str, str] = Factory(dict)
