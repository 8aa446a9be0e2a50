"""The contract between core and plugins.

A backend boots a box and returns a session; the session starts commands. Every call takes one frozen request
and gives one frozen result, so that signatures never grow: later versions add fields with defaults.

Version 1.0. A plugin works with a core of the same major version and of the same or a newer minor one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import trio
from attrs import field, frozen

from kavach_core.policy import SandboxPolicy
from kavach_core.types import (
    ExecRequest,
    GuestExit,
    LimitEvents,
    Output,
    OutputComplete,
    ProbeReport,
    ProcessInfo,
    StartFailure,
    TerminalSize,
    Usage,
    User,
)

API_VERSION: Final = (1, 0)
"""Version of this contract, as (major, minor)."""


@frozen(kw_only=True)
class HostToolchain:
    """The root file system is the host's own programs, read-only, with private writable directories."""


@frozen(kw_only=True)
class RootDirectory:
    """The root file system is a directory of the host.

    Attributes:
        path: absolute, existing, no symbolic link.
    """

    path: Path


RootSource = HostToolchain | RootDirectory


@frozen(kw_only=True)
class SandboxSpec:
    """A sandbox, fully resolved: what a backend is asked to boot.

    Attributes:
        sandbox_id: 16 hexadecimal digits, unique on this host.
        root: where its root file system comes from.
        policy: what has to be enforced, with the caller's limits put in; the backend enforces it or refuses.
        cwd: working directory that commands start in by default; refused when the root has no such directory.
        hostname: name the box gives itself.
        labels: the caller's words, for telemetry.
    """

    sandbox_id: str
    root: RootSource
    policy: SandboxPolicy
    cwd: str
    hostname: str = "kavach"
    labels: dict[str, str] = field(factory=dict)


class GuestStartError(Exception):
    """The command could not be started in a live box. ``Session.start`` raises it; core makes a result of it.

    Attributes:
        failure: the stage and the kernel's error number.
    """

    def __init__(self, failure: StartFailure) -> None:
        super().__init__(f"{failure.stage}: errno {failure.errno}")
        self.failure = failure


GuestEvent = Output | GuestExit | OutputComplete


class GuestProcess(Protocol):
    """One command in a box.

    ``stdin`` is None when the request did not ask for it. An output stream that is not read stops the
    command by flow control; it neither grows memory nor holds up other commands.
    """

    pid: int
    stdin: trio.abc.SendStream | None
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream

    @property
    def has_event(self) -> bool:
        """True when ``next_event`` would not wait. One that always says False is slower, and not wrong."""

    async def next_event(self) -> GuestEvent | None:
        """Return what happens next: output of either stream, or the end of the first process; None after all of it.

        The end is told as soon as it is known, and output may follow it. When it says so, ``OutputComplete`` comes
        after the last of what was written before it. Whoever uses this does not read the streams, and the other way
        round.

        Raises:
            SandboxGone: when the box ended before the command did.
        """

    async def wait(self) -> GuestExit:
        """Wait until the first process of the command has ended. May be called again and by several tasks.

        Raises:
            SandboxGone: when the box ended before it.
        """

    def poll(self) -> GuestExit | None:
        """Return how the first process of the command ended, or None while it runs. Does not wait.

        Raises:
            SandboxGone: when the box ended before it.
        """

    async def send_signal(self, signal: int) -> None:
        """Send a signal to the first process of the command; nothing happens when that has ended."""

    async def resize(self, size: TerminalSize) -> None:
        """Tell the command's terminal its new size; nothing happens when it has none, or the command has ended."""

    async def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the command so far, those that have ended included.

        Raises:
            SandboxGone: when the box has ended.
        """

    async def kill(self) -> None:
        """Kill every process of the command, wherever it has moved, and return when none is alive.

        Raises:
            SandboxGone: when that could not be done and the whole box was ended instead.
        """

    async def aclose(self) -> None:
        """Take no more output. Processes that the command left behind live on."""


class Session(Protocol):
    """One live box. Every method may be called by several tasks at once."""

    async def start(self, request: ExecRequest) -> GuestProcess:
        """Start a command.

        Cancellation: the command has been started or not; when it has, nobody holds it and it is killed.

        Raises:
            GuestStartError: when it cannot be started.
            SandboxGone: when the box has ended.
        """

    async def usage(self) -> Usage:
        """Return what the box has used so far, or had used in all when it has ended."""

    def limit_events(self) -> LimitEvents:
        """Return how often the box has met its limits, also after it has ended. Quick: it does not wait."""

    async def processes(self) -> tuple[ProcessInfo, ...]:
        """Return the processes of the box, but for its agent's own.

        Raises:
            SandboxGone: when the box has ended.
        """

    async def ping(self) -> None:
        """Wait for a sign of life of the box.

        Raises:
            SandboxGone: when it has ended.
        """

    async def pause(self) -> None:
        """Stop the whole box, so that it uses no CPU, until ``resume``.

        Raises:
            SandboxGone: when the box has ended.
        """

    async def resume(self) -> None:
        """Let a paused box go on; nothing happens when it is not paused."""

    async def aclose(self) -> None:
        """End the box and remove what belonged to it. May be called again.

        Cancellation: the work is shielded and bounded by a deadline of its own.

        Raises:
            CleanupError: when it is not dead after its deadline, or something of it could not be removed; it
                names what. What is removed after the call has returned is logged when it fails.
        """


@frozen(kw_only=True)
class QuickPlan:
    """How a box for the same spec can be started again, by a process that has imported and probed nothing.

    Attributes:
        launcher: entry point of group ``kavach_core.launchers`` that starts it.
        plan: what that needs to know, as plain data that JSON can hold.
        watched: paths of the host that the plan was made from; when one changes, the plan is void.
    """

    launcher: str
    plan: dict[str, Any]
    watched: tuple[str, ...]


@runtime_checkable
class Planner(Protocol):
    """What a backend has beside ``Backend`` when its boxes can be started from a plan."""

    def plan(self, spec: SandboxSpec) -> QuickPlan | None:
        """Return how boxes for ``spec`` are started, or None when these cannot be planned."""


@runtime_checkable
class Backend(Protocol):
    """Boots boxes. The entry point of group ``kavach_core.backends`` names a class that is called without arguments.

    Attributes:
        name: what the caller writes, and the name of the entry point.
        api_version: the version of this contract that the plugin was written for.
        capabilities: what the class can ever do; ``probe`` narrows it to this host.
        base_score: strength of the boundary itself, 0 to 100, by which ``auto`` orders backends.
    """

    name: str
    api_version: tuple[int, int]
    capabilities: frozenset[str]
    base_score: int

    async def probe(self) -> ProbeReport:
        """Find out, in bounded time and by starting a box, what works on this host. Never raises for what it finds."""

    async def open(self, spec: SandboxSpec) -> Session:
        """Boot a box.

        Cancellation: returns a live box or leaves nothing.

        Raises:
            UnsupportedPolicy: when something in the spec cannot be enforced here.
            CreateError: when the box does not start.
        """


@frozen(kw_only=True)
class MountedImage:
    """An image that is ready to be a root file system.

    Attributes:
        root: directory that holds it.
        env: environment that the image declares.
        cwd: working directory that it declares, or None.
        user: user that it declares, resolved in its own files, or None.
        digest: digest of its manifest.
    """

    root: RootDirectory
    env: dict[str, str]
    cwd: str | None
    user: User | None
    digest: str


@runtime_checkable
class ImageProvider(Protocol):
    """Turns an image reference into a root file system. Entry points of group ``kavach_core.images`` name such classes.

    Attributes:
        name: name of the provider and of its entry point.
        api_version: the version of this contract that the plugin was written for.
    """

    name: str
    api_version: tuple[int, int]

    async def mount(self, reference: str) -> MountedImage:
        """Pull what is missing, verify it and mount it.

        Raises:
            KavachError: when it cannot be had or trusted.
        """

    async def unmount(self, image: MountedImage) -> None:
        """Give back what ``mount`` returned."""
