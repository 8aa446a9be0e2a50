"""The sandbox as the caller holds it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

import attrs
import trio

from kavach_core.abc import (
    Backend,
    GuestProcess,
    GuestStartError,
    Planner,
    QuickPlan,
    SandboxSpec,
    Session,
)
from kavach_core.commands import CommandOptions, ExecOptions, build_command
from kavach_core.config import SandboxConfig
from kavach_core.errors import StartFailed
from kavach_core.execution import (
    Run,
    describe_start_failure,
    raise_unless_ok,
    refuse_missing_cwd,
    result_of,
    run_command,
)
from kavach_core.lifecycle import State, require_running, transition
from kavach_core.policy import Limits, SandboxPolicy
from kavach_core.resolution import mounted_root, require_capabilities, resolve_spec
from kavach_core.scoring import Score, declared_score
from kavach_core.selection import choose_backend
from kavach_core.types import ExecResult, Usage, User


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
    wanted = _evolve(config if config is not None else SandboxConfig(), fields)
    async with mounted_root(wanted) as (resolved, root):
        spec = resolve_spec(resolved, root)
        backend = await choose_backend(resolved.backend)
        require_capabilities(backend, spec)
        sandbox = Sandbox(config=resolved, spec=spec, backend=backend, session=await backend.open(spec))
        try:
            yield sandbox
        finally:
            await sandbox.aclose()


def _evolve(base: SandboxConfig, fields: SandboxFields) -> SandboxConfig:
    changes: dict[str, Any] = dict(fields)  # SandboxConfig itself converts and checks what the caller may write
    return attrs.evolve(base, **changes) if changes else base


class Sandbox:
    """A live box: commands go in, results come out. Made by ``open_sandbox``; usable by several tasks at once.

    Attributes:
        id: its id, 16 hexadecimal digits.
        config: what the caller asked for.
        backend: name of the backend that holds it.
        score: its declared strength.
    """

    def __init__(self, *, config: SandboxConfig, spec: SandboxSpec, backend: Backend, session: Session) -> None:
        self.id = spec.sandbox_id
        self.config = config
        self.backend = backend.name
        self._backend = backend
        self.score: Score = declared_score(base=backend.base_score, policy=spec.policy, enforced=backend.capabilities)
        self._spec = spec
        self._session = session
        self._exec_ids = itertools.count(1)
        self._state = transition(State.CREATED, State.RUNNING, sandbox_id=self.id)

    def plan(self) -> QuickPlan | None:
        """Return how a box like this one can be started without importing the backend, if the backend can say it."""
        return self._backend.plan(self._spec) if isinstance(self._backend, Planner) else None

    @property
    def cwd(self) -> str:
        """Working directory of commands that do not say another."""
        return self._spec.cwd

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    async def exec(self, *argv: str, check: bool = False, **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a command to its end and return what it did.

        Args:
            argv: program and arguments; a program without a slash is looked up along PATH in the box.
            check: raise when the command does not succeed.
            options: see ``ExecOptions``: input, timeout, max_output, on_stdout, on_stderr, env, cwd, user.

        Cancellation: the command is killed with all it has started.

        Raises:
            ConfigError: when an argument is wrong; nothing was started.
            InvalidTransition: when the sandbox is not running.
            SandboxGone: when the box ended first.
            ExecError: with ``check``: StartFailed, ExecTimeout or NonzeroExit, each with the result.
        """
        require_running(self._state, sandbox_id=self.id)
        command = build_command(argv, options, config=self.config, cwd=self._spec.cwd)
        exec_id, started = next(self._exec_ids), trio.current_time()
        run = await run_command(self._session, command)
        refuse_missing_cwd(run)
        result = self._result(run, exec_id, trio.current_time() - started)
        if check:
            raise_unless_ok(result)
        return result

    async def shell(self, script: str, *, check: bool = False, **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a script with the box's ``/bin/sh``: the one place where a string is taken for a command line.

        Arguments, cancellation and errors are those of ``exec``.
        """
        return await self.exec("/bin/sh", "-c", script, check=check, **options)

    async def spawn(self, *argv: str, stdin: bool = False, **options: Unpack[CommandOptions]) -> GuestProcess:
        """Start a command and return it with its streams; the caller reads them, waits and kills.

        Args:
            argv: as in ``exec``.
            stdin: give it a standard input to send to, instead of ``/dev/null``.
            options: see ``CommandOptions``: env, cwd, user.

        Raises:
            ConfigError: when an argument is wrong.
            StartFailed: when it cannot be started.
            SandboxGone: when the box has ended.
        """
        require_running(self._state, sandbox_id=self.id)
        wanted = ExecOptions(
            env=options.get("env"), cwd=options.get("cwd"), user=options.get("user"), input=b"" if stdin else None
        )
        command = build_command(argv, wanted, config=self.config, cwd=self._spec.cwd)
        try:
            return await self._session.start(command.request)
        except GuestStartError as error:
            run = Run.of(command)
            run.start_failure = error.failure
            refuse_missing_cwd(run)
            result = self._result(run, next(self._exec_ids), 0.0)
            raise StartFailed(describe_start_failure(result), result=result) from None

    async def usage(self) -> Usage:
        """Return what the whole box has used so far, as the host counts it."""
        return await self._session.usage()

    async def aclose(self) -> None:
        """End the box and remove what belonged to it. May be called again.

        Cancellation: shielded; the backend bounds it in time.

        Raises:
            CleanupError: when something could not be removed.
        """
        if self._state is State.DESTROYED:
            return
        self._state = transition(self._state, State.DESTROYED, sandbox_id=self.id)
        await self._session.aclose()

    def _result(self, run: Run, exec_id: int, duration: float) -> ExecResult:
        return result_of(run, exec_id=exec_id, duration=duration, sandbox_id=self.id, backend=self.backend)
