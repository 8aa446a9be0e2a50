"""kavach for plain code: the same names, types and errors as in the trio core, in functions that wait.

    result = kavach_core.blocking.run("python3", "-c", "print(6 * 7)")

    with kavach_core.blocking.open_sandbox(policy="strict") as sandbox:
        result = sandbox.exec("python3", "-c", "print(6 * 7)")

Any number of threads may use a sandbox, and have sandboxes of their own, at the same time. KeyboardInterrupt, or any
exception that a signal handler raises in the waiting thread, cancels what it waits for: commands are killed,
boxes closed, before it goes on. Inside of trio every call raises ``WrongLoop``. Inside of asyncio it works,
and stops the event loop meanwhile: ``kavach_core.aio`` is made for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Unpack

from kavach_core import pool as core_pool
from kavach_core import sandbox as core_sandbox
from kavach_core import single
from kavach_core.blocking.calls import Caller, call, hold, lease
from kavach_core.blocking.options import ExecOptions, RunOptions, for_core
from kavach_core.blocking.pool import Pool
from kavach_core.blocking.process import Process, ReceiveStream, SendStream
from kavach_core.blocking.sandbox import Sandbox
from kavach_core.config import SandboxConfig
from kavach_core.sandbox import SandboxFields
from kavach_core.types import ExecResult

__all__ = [
    "ExecOptions",
    "Pool",
    "Process",
    "ReceiveStream",
    "RunOptions",
    "Sandbox",
    "SendStream",
    "open_pool",
    "open_sandbox",
    "run",
]


def run(
    *argv: str, check: bool = False, config: SandboxConfig | None = None, **options: Unpack[RunOptions]
) -> ExecResult:
    """Boot a sandbox, run a command in it to its end, and end the sandbox.

    Args:
        argv: program and arguments, as in ``Sandbox.exec``.
        check: raise when the command does not succeed.
        config: what sandbox is wanted; the default configuration if left out.
        options: fields of ``SandboxConfig``, over those of ``config``, and options of ``exec``. What
            both have (env, cwd, user, timeout) is the command's.

    Cancellation: KeyboardInterrupt leaves when the box is ended and removed.

    Raises:
        ConfigError: when a field or an option is wrong, or is none; nothing was started.
        WrongLoop: inside of trio.
        KavachError: as ``open_sandbox`` and ``Sandbox.exec`` do.
    """
    with lease() as portal:
        caller = Caller(portal)
        given = for_core(options, caller)
        return call(portal, lambda: single.run(*argv, check=check, config=config, **given), caller=caller)


@contextmanager
def open_sandbox(config: SandboxConfig | None = None, /, **fields: Unpack[SandboxFields]) -> Iterator[Sandbox]:
    """Boot a sandbox for the length of a ``with`` block.

    Args:
        config: what is wanted; the default configuration if left out.
        fields: fields of ``SandboxConfig``, over those of ``config``.

    Cancellation: KeyboardInterrupt leaves the block when the box is ended and removed.

    Raises:
        ConfigError: when a field is wrong; nothing was started.
        UnsupportedPolicy: when the backend cannot enforce what is asked.
        DiscoveryError: when no such backend is installed, or none works here.
        CreateError: when the box does not start.
        WrongLoop: inside of trio.
    """
    with lease() as portal, hold(portal, core_sandbox.open_sandbox(config, **fields)) as opened:
        yield Sandbox(portal, opened)


@contextmanager
def open_pool(
    config: SandboxConfig | None = None,
    /,
    *,
    size: int,
    uses: int = 1,
    starting: int | None = None,
    **fields: Unpack[SandboxFields],
) -> Iterator[Pool]:
    """Keep boxes ready for the length of a ``with`` block.

    Args:
        config: what each box is to be; the default configuration if left out.
        size: how many to keep ready.
        uses: how many times each is given out, 1 unless said otherwise.
        starting: how many are started at once, as many as there are processors unless said otherwise.
        fields: fields of ``SandboxConfig``, over those of ``config``.

    Cancellation: KeyboardInterrupt leaves the block when every box that nobody has is ended and removed.

    Raises:
        ConfigError: when an argument is wrong; nothing was started.
        WrongLoop: inside of trio.
    """
    manager = core_pool.open_pool(config, size=size, uses=uses, starting=starting, **fields)
    with lease() as portal, hold(portal, manager) as opened:
        yield Pool(portal, opened)
