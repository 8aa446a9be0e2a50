"""``kavach run``: one command in a fresh sandbox, its streams connected to ours."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from kavach_core import converter
from kavach_core.cli import kept_plans
from kavach_core.cli.summary import print_summary
from kavach_core.commands import build_command
from kavach_core.config import SandboxConfig
from kavach_core.errors import ConfigError, FieldProblem, KavachError
from kavach_core.execution import Forward
from kavach_core.exit_status import SIGNAL_EXIT_BASE
from kavach_core.outcomes import describe_start_failure
from kavach_core.sandbox import Sandbox, open_sandbox
from kavach_core.types import ExecResult

_CHUNK_BYTES: Final = 65_536
_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command_line(options: argparse.Namespace, argv: list[str]) -> int:
    """Run the command that ``options`` describe and return the status to exit with.

    Args:
        options: the command line, parsed.
        argv: the command line.
    """
    config = _config(options)
    if not options.argv:
        raise ConfigError([FieldProblem("command", "is missing", "kavach run [OPTIONS] -- COMMAND [ARGUMENT ...]")])
    return trio.run(_run, config, options, argv)


def _config(options: argparse.Namespace) -> SandboxConfig:
    base = converter.load_config(Path(options.config)) if options.config else SandboxConfig()
    problems: list[FieldProblem] = []
    data: dict[str, Any] = {
        name: value
        for name in ("backend", "rootfs", "image", "policy", "cwd", "user", "network")
        if (value := getattr(options, name)) is not None
    }
    if options.timeout is not None:
        data["timeout"] = _number("timeout", options.timeout, problems)
    data["env"] = {**base.env, **_environment(options.env, problems)}
    data["limits"] = {
        **_without_none(converter.unstructure(base.limits)),
        **_limits(options, problems),
    }
    try:
        given = converter.structure(data, SandboxConfig)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return attrs.evolve(base, **{name: getattr(given, name) for name in data})


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def _limits(options: argparse.Namespace, problems: list[FieldProblem]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if options.memory is not None:
        limits["memory"] = options.memory
    if options.cpus is not None:
        limits["cpus"] = _number("cpus", options.cpus, problems)
    if options.pids is not None:
        limits["pids"] = _number("pids", options.pids, problems, whole=True)
    return limits


def _number(name: str, text: str, problems: list[FieldProblem], *, whole: bool = False) -> float | None:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        problems.append(FieldProblem(name, f"{text!r} is not a {'whole ' if whole else ''}number"))
        return None


def _environment(assignments: list[str], problems: list[FieldProblem]) -> dict[str, str]:
    env = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if separator:
            env[name] = value
        else:
            problems.append(FieldProblem(f"env[{name!r}]", "has no value", f"write {name}=VALUE"))
    return env


async def _run(config: SandboxConfig, options: argparse.Namespace, argv: list[str]) -> int:
    code = 0
    with _signals_cancel() as ended_by:
        started = trio.current_time()
        async with open_sandbox(config) as sandbox:
            run = _as_json if options.json else _connected
            code = await run(sandbox, options.argv)
        if options.summary:
            print_summary(sandbox.backend, str(sandbox.score), trio.current_time() - started, code)
        _keep_plan(options, argv, sandbox)
        return code
    return SIGNAL_EXIT_BASE + ended_by[0]


def _keep_plan(options: argparse.Namespace, argv: list[str], sandbox: Sandbox) -> None:
    """Keep what the next run with these options can use, if the backend can say it."""
    special = options.json or options.config or options.rootfs or options.image
    if special or not kept_plans.is_whole_command(argv, options.argv):
        return
    quick = sandbox.plan()
    metadata = None if quick is None else _metadata_of(quick.launcher)
    if quick is None or metadata is None:
        return
    config = attrs.evolve(sandbox.config, env={})
    request = build_command(("-",), {}, config=config, cwd=sandbox.cwd).request
    entry = {
        "launcher": [quick.launcher, metadata],
        "plan": quick.plan,
        "request": {
            "env": [os.fsdecode(variable) for variable in request.env],
            "cwd": os.fsdecode(request.cwd),
            "uid": request.user.uid,
            "gid": request.user.gid,
            "groups": list(request.user.groups),
            "timeout": sandbox.config.timeout,
        },
        "backend": sandbox.backend,
        "score": str(sandbox.score),
        "summary": options.summary,
    }
    modules = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("kavach_")]
    with contextlib.suppress(OSError):  # kept or not, this run is done
        kept_plans.keep(argv, quick.plan["base"], entry, [*quick.watched, metadata, *filter(None, modules)])


def _metadata_of(launcher: str) -> str | None:
    """Return the file in which a distribution declares the launcher."""
    for point in importlib.metadata.entry_points(group=kept_plans.GROUP, name=launcher):
        for file in (point.dist.files or []) if point.dist else []:
            if file.name == "entry_points.txt":
                return str(file.locate())
    return None


@contextmanager
def _signals_cancel() -> Iterator[list[int]]:
    """Cancel the block when we are asked to end; the list then holds the signal."""
    received: list[int] = []
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def handle(number: int, _: object) -> None:
            received.append(number)
            token.run_sync_soon(scope.cancel)

        # What our caller has us ignore, as nohup does, stays ignored.
        heeded = [number for number in _ENDING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in heeded}
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _as_json(sandbox: Sandbox, argv: list[str]) -> int:
    result = await sandbox.exec(*argv, input=_our_input())
    print(json.dumps(_result_data(sandbox, result), indent=2))
    return result.exit_code


async def _connected(sandbox: Sandbox, argv: list[str]) -> int:
    """Run a command with our own standard streams."""
    with trio.CancelScope() as scope:
        result = await sandbox.exec(
            *argv, input=_our_input(), max_output=0, on_stdout=_writer(1, scope), on_stderr=_writer(2, scope)
        )
        if result.start_failure is not None:
            print(f"kavach: {describe_start_failure(result)}", file=sys.stderr)
        return result.exit_code
    return SIGNAL_EXIT_BASE + signal.SIGPIPE


async def _our_input() -> AsyncIterator[bytes]:
    """Give what comes on our standard input, read in a thread: it may be a file, or a terminal that others share."""
    try:
        while data := await trio.to_thread.run_sync(_read_some, 0, abandon_on_cancel=True):
            yield data
    except OSError:
        return  # we have no standard input


def _writer(descriptor: int, scope: trio.CancelScope) -> Forward:
    """Return a function that writes to one of our streams and ends the command when nobody reads that any more."""

    async def write(data: bytes) -> None:
        try:
            await trio.to_thread.run_sync(_write_all, descriptor, data, abandon_on_cancel=True)
        except BrokenPipeError:
            scope.cancel()
        except OSError as error:
            raise KavachError(f"cannot pass on the output: {error.strerror}") from error

    return write


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever shares the stream has made it so
            _wait_for(descriptor, select.POLLOUT)


def _read_some(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            _wait_for(descriptor, select.POLLIN)


def _wait_for(descriptor: int, events: int) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    poll.poll()


def _result_data(sandbox: Sandbox, result: ExecResult) -> dict[str, Any]:
    data = {name: value for name, value in converter.unstructure(result).items() if not name.endswith("_bytes")}
    data |= {
        "stdout": result.stdout,
        "stderr": result.stderr,
        "stdout_total_bytes": result.stdout_total_bytes,
        "stderr_total_bytes": result.stderr_total_bytes,
        "max_rss_bytes": result.max_rss_bytes,
        "truncated": result.truncated,
        "timed_out": result.timed_out,
        "score": {"declared": int(sandbox.score), "band": sandbox.score.band},
    }
    return data
