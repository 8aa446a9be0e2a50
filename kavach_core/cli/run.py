"""``kavach run``: one command in a fresh sandbox, its streams connected to ours."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import trio
from attrs import frozen

from kavach_core import converter
from kavach_core.cli import kept_plans
from kavach_core.cli.signals import signals_cancel
from kavach_core.cli.streams import our_input, writer
from kavach_core.cli.summary import print_summary
from kavach_core.cli.terminal import our_terminal
from kavach_core.commands import ExecOptions, build_command, check_bounds
from kavach_core.config import SandboxConfig
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.exit_status import SIGNAL_EXIT_BASE, WANT_OF_MEMORY
from kavach_core.outcomes import describe_start_failure
from kavach_core.policy import ByteSize
from kavach_core.sandbox import Sandbox, open_sandbox
from kavach_core.types import ExecResult


def run_command_line(options: argparse.Namespace, argv: list[str]) -> int:
    """Run the command that ``options`` describe and return the status to exit with.

    Args:
        options: the command line, parsed.
        argv: the command line.
    """
    config = _config(options)
    if not options.argv:
        raise ConfigError([FieldProblem("command", "is missing", "kavach run [OPTIONS] -- COMMAND [ARGUMENT ...]")])
    command = _Command(argv=options.argv, tty=options.tty, bounds=_bounds(options))
    return trio.run(_run, config, command, options, argv)


@frozen(kw_only=True)
class _Command:
    argv: list[str]
    tty: bool
    bounds: ExecOptions


def _bounds(options: argparse.Namespace) -> ExecOptions:
    """Return the bounds of the command that are not the sandbox's."""
    problems: list[FieldProblem] = []
    bounds: ExecOptions = {}
    if options.cpu_timeout is not None:
        bounds["cpu_timeout"] = _number("cpu_timeout", options.cpu_timeout, problems)
    if options.output_limit is not None:
        bounds["output_limit"] = converter.structure(options.output_limit, ByteSize)
    problems += check_bounds(bounds)
    if problems:
        raise ConfigError(problems)
    return bounds


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


async def _run(config: SandboxConfig, command: _Command, options: argparse.Namespace, argv: list[str]) -> int:
    code = 0
    with signals_cancel() as ended_by:
        started = trio.current_time()
        async with open_sandbox(config) as sandbox:
            code = await (_as_json(sandbox, command) if options.json else _connected(sandbox, command, ended_by))
        if options.summary:
            print_summary(sandbox.backend, str(sandbox.score), trio.current_time() - started, code)
        _keep_plan(options, argv, sandbox)
        return code
    return SIGNAL_EXIT_BASE + ended_by[0]


def _keep_plan(options: argparse.Namespace, argv: list[str], sandbox: Sandbox) -> None:
    """Keep what the next run with these options can use, if the backend can say it."""
    bounded = options.cpu_timeout or options.output_limit
    special = options.json or options.config or options.rootfs or options.image or options.tty or bounded
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


async def _as_json(sandbox: Sandbox, command: _Command) -> int:
    options: ExecOptions = {"input": our_input(), "tty": command.tty, **command.bounds}
    result = await sandbox.exec(*command.argv, **options)
    print(json.dumps(_result_data(sandbox, result), indent=2))
    return result.exit_code


async def _connected(sandbox: Sandbox, command: _Command, ended_by: Sequence[int]) -> int:
    """Run a command with our own standard streams, and our terminal if it is to have one."""
    options: ExecOptions = {"input": our_input(), "max_output": 0, **command.bounds}
    with trio.CancelScope() as scope:
        options |= {"on_stdout": writer(1, scope), "on_stderr": writer(2, scope)}
        lent = our_terminal(config=sandbox.config, ended_by=ended_by) if command.tty else nullcontext(ExecOptions())
        with lent as terminal:
            result = await sandbox.exec(*command.argv, **(options | terminal))
        if result.start_failure is not None:
            print(f"kavach: {describe_start_failure(result)}", file=sys.stderr)
        elif result.oom_kills and not result.ok and not result.timed_out:
            print(f"kavach: {WANT_OF_MEMORY}", file=sys.stderr)
        return result.exit_code
    return SIGNAL_EXIT_BASE + signal.SIGPIPE


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
