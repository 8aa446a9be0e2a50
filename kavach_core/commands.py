"""From what the caller writes to a request: defaults filled in, every argument checked, all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypedDict

from kavach_core.config import SandboxConfig, check_user, to_user
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.execution import Command
from kavach_core.types import ExecRequest, User
from kavach_core.validation import (
    MAX_COMMAND_BYTES,
    check_absolute_path,
    check_argv,
    check_environment,
    number,
    optional,
)

BASE_ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/home",
    "LANG": "C.UTF-8",
}
"""What every command finds in its environment unless the caller says otherwise. Nothing comes from the host."""


_check_timeout = optional(number(minimum=0.001, maximum=31_536_000, unit="seconds"))
_check_max_output = number(minimum=0, maximum=1024**3, unit="bytes", integer=True)
_check_cwd = optional(check_absolute_path)


class CommandOptions(TypedDict, total=False):
    """What ``spawn`` takes beside the command; ``exec`` and ``shell`` take it too."""

    env: Mapping[str, str] | None
    cwd: str | None
    user: User | str | int | None


def build_command(
    argv: tuple[str, ...],
    options: CommandOptions,
    *,
    config: SandboxConfig,
    cwd: str,
    input_: bytes | str | None,
    timeout: float | None,
    max_output: int,
) -> Command:
    """Build a command out of a call's arguments and the sandbox's configuration.

    Args:
        argv: program and arguments.
        options: what the call sets, over the configuration.
        config: the sandbox's configuration.
        cwd: the sandbox's working directory.
        input_: bytes or text for standard input, or None.
        timeout: seconds, or None for the configured one.
        max_output: bytes to keep of each stream.

    Raises:
        ConfigError: with every argument that is wrong.
    """
    env = {**BASE_ENVIRONMENT, **config.env, **_mapping(options.get("env"))}
    user = options.get("user")
    chosen = config.user if user is None else to_user(user)
    own_cwd = options.get("cwd")
    deadline = timeout if timeout is not None else config.timeout
    problems = [
        *check_argv("argv", argv),
        *check_environment("env", options.get("env") or {}),
        *_check_cwd("cwd", own_cwd),
        *check_user("user", chosen),
        *_check_timeout("timeout", deadline),
        *_check_max_output("max_output", max_output),
        *_check_input(input_),
    ]
    if problems or not isinstance(chosen, User):
        raise ConfigError(problems)
    request = ExecRequest(
        argv=tuple(encode(argument) for argument in argv),
        env=tuple(encode(f"{name}={value}") for name, value in env.items()),
        cwd=encode(cwd if own_cwd is None else own_cwd),
        user=chosen,
        stdin=input_ is not None,
    )
    _refuse_oversize(request)
    data = encode(input_) if isinstance(input_, str) else input_
    return Command(argv=argv, request=request, input=data, timeout=deadline, max_output=max_output)


def encode(text: str) -> bytes:
    """Encode as the file system does, so that names that are not UTF-8 go through unchanged."""
    return text.encode(errors="surrogateescape")


def _mapping(env: object) -> Mapping[str, str]:
    return env if isinstance(env, Mapping) else {}


def _check_input(value: object) -> Iterator[FieldProblem]:
    if value is not None and not isinstance(value, (bytes, str)):
        yield FieldProblem("input", f"{type(value).__name__} is neither bytes nor text")


def _refuse_oversize(request: ExecRequest) -> None:
    size = sum(len(part) + 5 for part in (*request.argv, *request.env))
    if size > MAX_COMMAND_BYTES:
        hint = "pass it on standard input or in a file"
        reason = f"{size} bytes with the environment, at most {MAX_COMMAND_BYTES} are possible"
        raise ConfigError([FieldProblem("argv", reason, hint)])
