"""One command in a sandbox of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from kavach_core.commands import ExecOptions
from kavach_core.config import SandboxConfig
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.policy import Limits, SandboxPolicy
from kavach_core.sandbox import open_sandbox
from kavach_core.types import ExecResult


class BoxFields(TypedDict, total=False):
    """The fields of ``SandboxConfig`` that no command has, too."""

    backend: str
    rootfs: Path | str | None
    image: str | None
    policy: str | SandboxPolicy
    network: str
    limits: Limits
    labels: Mapping[str, str]


class RunOptions(BoxFields, ExecOptions, total=False):
    """What ``run`` takes beside the command: fields of the sandbox, and options of ``exec``."""


async def run(
    *argv: str, check: bool = False, config: SandboxConfig | None = None, **options: Unpack[RunOptions]
) -> ExecResult:
    """Boot a sandbox, run a command in it to its end, and end the sandbox.

    Args:
        argv: program and arguments, as in ``Sandbox.exec``.
        check: raise when the command does not succeed.
        config: what sandbox is wanted; the default configuration if left out.
        options: fields of ``SandboxConfig``, over those of ``config``, and options of ``exec``. What
            both have (env, cwd, user, timeout) is the command's.

    Cancellation: the box is ended and removed before Cancelled leaves this call.

    Raises:
        ConfigError: when a field or an option is wrong, or is none; nothing was started.
        KavachError: as ``open_sandbox`` and ``Sandbox.exec`` do.
    """
    fields, rest = split(options)
    async with open_sandbox(config, **fields) as sandbox:
        return await sandbox.exec(*argv, check=check, **rest)


def split(options: Mapping[str, Any]) -> tuple[BoxFields, ExecOptions]:
    """Tell the sandbox's fields from the command's options.

    Raises:
        ConfigError: when something is neither: left out in silence, it might have been a limit.
    """
    unknown = options.keys() - RunOptions.__optional_keys__
    if unknown:
        raise ConfigError(
            [FieldProblem(name, "is no field of a sandbox or option of exec") for name in sorted(unknown)]
        )
    fields = BoxFields()
    rest = ExecOptions()
    for name, value in options.items():
        target: Any = fields if name in BoxFields.__optional_keys__ else rest
        target[name] = value
    return fields, rest
