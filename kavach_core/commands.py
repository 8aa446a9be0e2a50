"""From what the caller writes to a request: defaults filled in, every argument checked, all problems at once."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict

from kavach_core.config import NOBODY, SandboxConfig, check_user, to_user
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.runs import Command, Forward, Input
from kavach_core.types import DEFAULT_MAX_OUTPUT_BYTES, ExecRequest, TerminalSize, User
from kavach_core.validation import (
    MAX_COMMAND_BYTES,
    check_absolute_path,
    check_argv,
    check_environment,
    check_terminal_size,
    is_encodable,
    number,
    optional,
)

BASE_ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/home",
    "LANG": "C.UTF-8",
}
"""What every command finds in its environment unless the caller says otherwise. Nothing comes from the host."""


TERMINAL_ENVIRONMENT: Final[Mapping[str, str]] = {"TERM": "xterm"}
"""What a command with a terminal finds besides."""

_check_timeout = optional(number(minimum=0.001, maximum=31_536_000, unit="seconds"))
_check_max_output = number(minimum=0, maximum=1024**3, unit="bytes", integer=True)
_check_output_limit = optional(number(minimum=0, maximum=1024**5, unit="bytes", integer=True))
_check_cwd = optional(check_absolute_path)


class CommandOptions(TypedDict, total=False):
    """What every way to start a command takes beside the command.

    Attributes:
        env: variables over those of the sandbox.
        cwd: working directory in the box.
        user: ``UID``, ``UID:GID``, ``root``, ``nobody``, or a ``User``.
        tty: give it a pseudo terminal for all three streams, 80 by 24 characters or of the size given; what
            it writes is
            standard output then.
    """

    env: Mapping[str, str] | None
    cwd: str | None
    user: User | str | int | None
    tty: bool | TerminalSize


class ExecOptions(CommandOptions, total=False):
    """What ``exec`` and ``shell`` take beside the command.

    Attributes:
        input: what the command reads from standard input, at once or as it comes; None gives it ``/dev/null``.
        timeout: seconds of wall clock after which it is killed with all it has started; None = as configured.
        cpu_timeout: seconds of CPU time, of all its processes together, after which it is killed likewise.
        max_output: bytes to keep of each output stream, 8 MiB unless said otherwise; all of them are counted.
        output_limit: bytes of both streams together after which it is killed; None = it may write on.
        on_stdout: awaited with each piece of standard output as it comes.
        on_stderr: likewise for standard error.
        tty_sizes: new sizes of its terminal, as they come.
    """

    input: Input | str | None
    timeout: float | None
    cpu_timeout: float | None
    max_output: int
    output_limit: int | None
    on_stdout: Forward | None
    on_stderr: Forward | None
    tty_sizes: AsyncIterable[TerminalSize] | None


def build_command(
    argv: tuple[str, ...], options: ExecOptions, *, config: SandboxConfig, cwd: str, exec_id: int = 0
) -> Command:
    """Build a command out of a call's arguments and the sandbox's configuration.

    Args:
        argv: program and arguments.
        options: what the call sets, over the configuration.
        config: the sandbox's configuration.
        cwd: the sandbox's working directory.
        exec_id: the number it gets.

    Raises:
        ConfigError: with every argument that is wrong.
    """
    timeout = options.get("timeout")
    problems = [
        *refuse_unknown(options, ExecOptions),
        *check_bounds(options),
        *_check_input(options.get("input")),
    ]
    request = build_request(
        argv,
        options,
        config=config,
        cwd=cwd,
        exec_id=exec_id,
        stdin=options.get("input") is not None,
        problems=problems,
    )
    return Command(
        argv=argv,
        request=request,
        input=_input(options.get("input")),
        timeout=config.timeout if timeout is None else timeout,
        cpu_timeout=options.get("cpu_timeout"),
        max_output=options.get("max_output", DEFAULT_MAX_OUTPUT_BYTES),
        output_limit=options.get("output_limit"),
        on_stdout=options.get("on_stdout"),
        on_stderr=options.get("on_stderr"),
        tty_sizes=options.get("tty_sizes"),
    )


def refuse_unknown(options: Mapping[str, Any], known: Any) -> Iterator[FieldProblem]:  # noqa: ANN401 - a TypedDict
    """Refuse options that there are none of: left out in silence, one might have been a limit.

    Args:
        options: what the caller wrote.
        known: the TypedDict that has all there are.
    """
    for name in sorted(options.keys() - known.__optional_keys__):
        yield FieldProblem(name, "no such option", f"one of {', '.join(sorted(known.__optional_keys__))}")


def check_bounds(options: ExecOptions) -> Iterator[FieldProblem]:
    """Check the bounds that a call sets."""
    yield from _check_timeout("timeout", options.get("timeout"))
    yield from _check_timeout("cpu_timeout", options.get("cpu_timeout"))
    yield from _check_max_output("max_output", options.get("max_output", DEFAULT_MAX_OUTPUT_BYTES))
    yield from _check_output_limit("output_limit", options.get("output_limit"))


def build_request(  # noqa: PLR0913 - all that a command is made of
    argv: tuple[str, ...],
    options: CommandOptions,
    *,
    config: SandboxConfig,
    cwd: str,
    exec_id: int,
    stdin: bool,
    problems: Sequence[FieldProblem] = (),
) -> ExecRequest:
    """Build what a session is asked to start.

    Args:
        argv: program and arguments.
        options: what the call sets, over the configuration.
        config: the sandbox's configuration.
        cwd: the sandbox's working directory.
        exec_id: the number it gets.
        stdin: give it a standard input.
        problems: what is known to be wrong with the call already.

    Raises:
        ConfigError: with every argument that is wrong, ``problems`` among them.
    """
    user = options.get("user")
    chosen = (config.user or NOBODY) if user is None else to_user(user)
    tty = options.get("tty", False)
    base = {**BASE_ENVIRONMENT, **(TERMINAL_ENVIRONMENT if tty else {})}
    env = {**base, **config.env, **_mapping(options.get("env"))}
    found = [
        *check_argv("argv", argv),
        *check_environment("env", options.get("env") or {}),
        *_check_cwd("cwd", options.get("cwd")),
        *check_user("user", chosen),
        *_check_tty(tty),
        *problems,
    ]
    if found or not isinstance(chosen, User):
        raise ConfigError(found)
    request = ExecRequest(
        argv=tuple(encode(argument) for argument in argv),
        env=tuple(encode(f"{name}={value}") for name, value in env.items()),
        cwd=encode(options.get("cwd") or cwd),
        user=chosen,
        stdin=stdin,
        terminal=_terminal(tty),
        exec_id=exec_id,
    )
    _refuse_oversize(request)
    return request


def _check_tty(tty: object) -> Iterator[FieldProblem]:
    if isinstance(tty, TerminalSize):
        yield from check_terminal_size(tty)
    elif not isinstance(tty, bool):
        yield FieldProblem("tty", f"{type(tty).__name__} is no size of a terminal", "True, or TerminalSize(...)")


def _terminal(tty: bool | TerminalSize) -> TerminalSize | None:  # noqa: FBT001 - what the caller wrote
    if isinstance(tty, TerminalSize):
        return tty
    return TerminalSize() if tty else None


def encode(text: str) -> bytes:
    """Encode as the file system does, so that names that are not UTF-8 go through unchanged."""
    return text.encode(errors="surrogateescape")


def _mapping(env: object) -> Mapping[str, str]:
    return env if isinstance(env, Mapping) else {}


def _check_input(value: object) -> Iterator[FieldProblem]:
    if value is not None and not isinstance(value, (bytes, str, AsyncIterable)):
        yield FieldProblem(
            "input",
            f"{type(value).__name__} is neither bytes, nor text, nor gives bytes as they come",
        )
    elif isinstance(value, str) and not is_encodable(value):
        yield FieldProblem("input", "contains what is no character", "give it as bytes")


def _input(value: Input | str | None) -> Input | None:
    return encode(value) if isinstance(value, str) else value


def _refuse_oversize(request: ExecRequest) -> None:
    size = sum(len(part) + 5 for part in (*request.argv, *request.env))
    if size > MAX_COMMAND_BYTES:
        hint = "pass it on standard input or in a file"
        reason = f"{size} bytes with the environment, at most {MAX_COMMAND_BYTES} are possible"
        raise ConfigError([FieldProblem("argv", reason, hint)])
