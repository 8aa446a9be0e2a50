"""The sandbox as the caller holds it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import attrs
import trio

from kavach_core import capabilities
from kavach_core.abc import Backend, GuestStartError, Planner, QuickPlan, SandboxSpec, Session
from kavach_core.commands import CommandOptions, ExecOptions, build_command, build_request, refuse_unknown
from kavach_core.concurrency import Registry
from kavach_core.config import NOBODY, SandboxConfig
from kavach_core.control.registry import register, unregister
from kavach_core.errors import ConfigError, FieldProblem, InvalidTransition, StartFailed, UnsupportedPolicy
from kavach_core.execution import run_command
from kavach_core.lifecycle import State, require_running, transition
from kavach_core.outcomes import describe_start_failure, raise_if_gone, raise_unless_ok, refuse_missing_cwd, result_of
from kavach_core.policy import Limits, SandboxPolicy
from kavach_core.process import Process
from kavach_core.resolution import mounted_root, require_capabilities, resolve_spec
from kavach_core.runs import Command, Run
from kavach_core.scoring import Score, declared_score
from kavach_core.selection import choose_backend
from kavach_core.types import ExecResult, ProcessInfo, Usage, User

if TYPE_CHECKING:
    from kavach_core.files import SandboxFiles


class SandboxFields(TypedDict, total=False):
    """The fields of ``SandboxConfig``, as ``open_sandbox`` takes them."""

    backend: str
    rootfs: Path | str | None
    image: str | None
    policy: str | SandboxPolicy
    env: Mapping[str, str]
    cwd: str | None
    user: User | str | int | None
    network: str
    limits: Limits
    timeout: float | None
    labels: Mapping[str, str]


@asynccontextmanager
async def open_sandbox(
    config: SandboxConfig | None = None, /, **fields: Unpack[SandboxFields]
) -> AsyncIterator[Sandbox]:
    """Boot a sandbox for the length of a ``with`` block.

    Args:
        config: what is wanted; the default configuration if left out.
        fields: fields of ``SandboxConfig``, over those of ``config``.

    Cancellation: the box is ended and removed before Cancelled leaves the block.

    Raises:
        ConfigError: when a field is wrong; nothing was started.
        UnsupportedPolicy: when the backend cannot enforce what is asked.
        DiscoveryError: when no such backend is installed, or none works here.
        CreateError: when the box does not start.
    """
    sandbox = await create_sandbox(config, **fields)
    try:
        yield sandbox
    finally:
        await sandbox.aclose()


async def create_sandbox(config: SandboxConfig | None = None, /, **fields: Unpack[SandboxFields]) -> Sandbox:
    """Boot a sandbox that the caller must close: for those whose boxes do not live as long as a block.

    Arguments and errors are those of ``open_sandbox``.

    Cancellation: leaves nothing.
    """
    wanted = merge_fields(config, fields)
    async with AsyncExitStack() as stack:
        resolved, root = await stack.enter_async_context(mounted_root(wanted))
        spec = resolve_spec(resolved, root)
        backend = await choose_backend(resolved.backend)
        require_capabilities(backend, spec)
        session = await backend.open(spec)
        sandbox = Sandbox(config=resolved, spec=spec, backend=backend, session=session, root=stack.pop_all())
        register(sandbox)
        return sandbox


def merge_fields(config: SandboxConfig | None, fields: SandboxFields) -> SandboxConfig:
    """Return a configuration with ``fields`` over those of ``config``, or over the defaults.

    Raises:
        ConfigError: when a field is wrong, or none of a configuration.
    """
    changes: dict[str, Any] = dict(fields)  # SandboxConfig itself converts and checks what the caller may write
    unknown = list(refuse_unknown(changes, SandboxFields))
    if unknown:
        raise ConfigError(unknown)
    base = config if config is not None else SandboxConfig()
    return attrs.evolve(base, **changes) if changes else base


class Sandbox:
    """A live box: commands go in, results come out. Made by ``open_sandbox``; usable by several tasks at once.

    Attributes:
        id: its id, 16 hexadecimal digits.
        config: what the caller asked for.
        backend: name of the backend that holds it.
        score: its declared strength.
    """

    def __init__(
        self, *, config: SandboxConfig, spec: SandboxSpec, backend: Backend, session: Session, root: AsyncExitStack
    ) -> None:
        self.id = spec.sandbox_id
        self.config = config
        self.backend = backend.name
        self._backend = backend
        self.score: Score = declared_score(base=backend.base_score, policy=spec.policy, enforced=backend.capabilities)
        self._spec = spec
        self._session = session
        self._root = root
        self._exec_ids = itertools.count(1)
        self._running = Registry()
        self._state = transition(State.CREATED, State.RUNNING, sandbox_id=self.id)

    def plan(self) -> QuickPlan | None:
        """Return how a box like this one can be started without importing the backend, if the backend can say it."""
        return self._backend.plan(self._spec) if isinstance(self._backend, Planner) else None

    @property
    def cwd(self) -> str:
        """Working directory of commands that do not say another."""
        return self._spec.cwd

    @property
    def capabilities(self) -> frozenset[str]:
        """What its backend can do: see ``kavach_core.capabilities``."""
        return self._backend.capabilities

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    async def exec(self, *argv: str, check: bool = False, **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a command to its end and return what it did.

        Args:
            argv: program and arguments; a program without a slash is looked up along PATH in the box.
            check: raise when the command does not succeed.
            options: see ``ExecOptions``: input, timeout, cpu_timeout, max_output, output_limit, on_stdout, on_stderr,
                env, cwd, user, tty.

        Cancellation: the command is killed with all it has started.

        Raises:
            ConfigError: when an argument is wrong; nothing was started.
            InvalidTransition: when the sandbox is not running.
            SandboxGone: when the box ended first; ``result`` holds what is known of the command.
            ExecError: with ``check``: StartFailed, ExecTimeout, LimitExceeded or NonzeroExit, each with the result.
        """
        require_running(self._state, sandbox_id=self.id)
        exec_id, started = next(self._exec_ids), trio.current_time()
        command = build_command(argv, options, config=self.config, cwd=self._spec.cwd, exec_id=exec_id)
        self._require_terminal(command.request.terminal is not None)
        run, alone = await self._run(command)
        refuse_missing_cwd(run)
        result = self._result(run, exec_id, trio.current_time() - started, alone=alone)
        raise_if_gone(run, result)
        if check:
            raise_unless_ok(result)
        return result

    async def _run(self, command: Command) -> tuple[Run, bool]:
        """Run a command; say whether it ran alone, so that limits that were met can only be its own doing."""
        with self._running.enter() as entry:
            run = await run_command(self._session, command, pids_limit=self._spec.policy.limits.pids)
            return run, entry.alone

    async def shell(self, script: str, *, check: bool = False, **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a script with the box's ``/bin/sh``: the one place where a string is taken for a command line.

        Arguments, cancellation and errors are those of ``exec``.
        """
        return await self.exec("/bin/sh", "-c", script, check=check, **options)

    async def spawn(self, *argv: str, stdin: bool = False, **options: Unpack[CommandOptions]) -> Process:
        """Start a command and return it with its streams; the caller reads them, waits and kills.

        Args:
            argv: as in ``exec``.
            stdin: give it a standard input to send to, instead of ``/dev/null``.
            options: see ``CommandOptions``: env, cwd, user, tty.

        Cancellation: the command has been started or not; when it has, it is killed.

        Raises:
            ConfigError: when an argument is wrong.
            InvalidTransition: when the sandbox is not running.
            StartFailed: when it cannot be started.
            SandboxGone: when the box has ended.
        """
        require_running(self._state, sandbox_id=self.id)
        exec_id = next(self._exec_ids)
        request = build_request(
            argv,
            options,
            config=self.config,
            cwd=self._spec.cwd,
            exec_id=exec_id,
            stdin=stdin,
            problems=list(refuse_unknown(options, CommandOptions)),
        )
        self._require_terminal(request.terminal is not None)
        try:
            return Process(await self._session.start(request), argv=argv, exec_id=exec_id)
        except GuestStartError as error:
            run = Run.of(Command(argv=argv, request=request, input=None, timeout=None, max_output=0))
            run.start_failure = error.failure
            refuse_missing_cwd(run)
            result = self._result(run, exec_id, 0.0, alone=False)
            raise StartFailed(describe_start_failure(result), result=result) from None

    def _require_terminal(self, wanted: bool) -> None:  # noqa: FBT001 - private, and its name says it
        if wanted:
            self._require(capabilities.EXEC_PTY)

    def _require(self, capability: str) -> None:
        """Refuse what the backend cannot do.

        Raises:
            UnsupportedPolicy: naming the capability.
        """
        if capability not in self._backend.capabilities:
            reason = f"backend {self.backend!r} cannot {capabilities.DESCRIPTIONS[capability]}"
            raise UnsupportedPolicy([FieldProblem(capability, reason, "choose another backend")])

    @property
    def files(self) -> SandboxFiles:
        """The files of the box.

        Raises:
            UnsupportedPolicy: when the backend cannot work on files.
        """
        from kavach_core.files import SandboxFiles  # noqa: PLC0415 - who needs no files need not wait for them
        from kavach_core.guest_files import FileSession  # noqa: PLC0415 - as above

        self._require(capabilities.FILES)
        session, user = self._session, self.config.user
        if not isinstance(session, FileSession):
            reason = f"backend {self.backend!r} declares it and does not have it"
            raise UnsupportedPolicy([FieldProblem(capabilities.FILES, reason, "tell who wrote the plugin")])
        return SandboxFiles(
            session.files,
            cwd=self.cwd,
            user=user if isinstance(user, User) else NOBODY,
            sandbox_id=self.id,
            require_running=lambda: require_running(self._state, sandbox_id=self.id),
        )

    async def processes(self) -> tuple[ProcessInfo, ...]:
        """Return the processes of the box, those included that commands have left behind.

        Raises:
            InvalidTransition: when the sandbox is not running.
            SandboxGone: when the box has ended.
        """
        require_running(self._state, sandbox_id=self.id)
        return await self._session.processes()

    async def ping(self) -> None:
        """Wait for a sign of life of the box.

        Raises:
            InvalidTransition: when the sandbox is not running.
            SandboxGone: when the box has ended.
        """
        require_running(self._state, sandbox_id=self.id)
        await self._session.ping()

    async def pause(self) -> None:
        """Stop the whole box, so that it uses no CPU, until ``resume``. Its commands' deadlines go on.

        Raises:
            InvalidTransition: when the sandbox is not running.
            UnsupportedPolicy: when the backend cannot.
            SandboxGone: when the box has ended.
        """
        self._require(capabilities.PAUSE)
        state = transition(self._state, State.PAUSED, sandbox_id=self.id)
        await self._session.pause()
        self._state = state

    async def resume(self) -> None:
        """Let a paused box go on.

        Raises:
            InvalidTransition: when the sandbox is not paused.
            SandboxGone: when the box has ended.
        """
        if self._state is not State.PAUSED:
            raise InvalidTransition(f"the sandbox is {self._state}, not paused", sandbox_id=self.id)
        await self._session.resume()
        self._state = transition(self._state, State.RUNNING, sandbox_id=self.id)

    async def usage(self) -> Usage:
        """Return what the whole box has used so far, as the host counts it."""
        return await self._session.usage()

    async def aclose(self) -> None:
        """End the box and remove what belonged to it. May be called again.

        Cancellation: shielded; the backend bounds it in time.

        Raises:
            CleanupError: when the box is not dead after its deadline. What could not be removed of a dead one
                is logged, and left to ``kavach gc``.
        """
        if self._state is State.DESTROYED:
            await self._session.aclose()  # somebody else may be at it still
            return
        self._state = transition(self._state, State.DESTROYED, sandbox_id=self.id)
        unregister(self)
        async with self._root:
            await self._session.aclose()

    def _result(self, run: Run, exec_id: int, duration: float, *, alone: bool) -> ExecResult:
        return result_of(run, exec_id=exec_id, duration=duration, sandbox_id=self.id, backend=self.backend, alone=alone)
