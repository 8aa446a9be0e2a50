"""kavach for asyncio: the same names, types and errors as in the trio core.

    result = await kavach_core.aio.run("python3", "-c", "print(6 * 7)")

    async with kavach_core.aio.open_sandbox(policy="strict") as sandbox:
        result = await sandbox.exec("python3", "-c", "print(6 * 7)")

The core runs in a thread of its own. Callbacks and inputs run in the event loop of the call. Cancelling a
task cancels what it waits for, and CancelledError leaves when commands are killed and boxes closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Unpack

from kavach_core import pool as core_pool
from kavach_core import sandbox as core_sandbox
from kavach_core import single
from kavach_core.aio.asking import Asker
from kavach_core.aio.calls import call, hold, lease
from kavach_core.aio.pool import Pool
from kavach_core.aio.process import Process, ReceiveStream, SendStream
from kavach_core.aio.sandbox import Sandbox
from kavach_core.commands import ExecOptions
from kavach_core.config import SandboxConfig
from kavach_core.sandbox import SandboxFields
from kavach_core.single import RunOptions
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

    Cancellation: CancelledError leaves when the box is ended and removed.

    Raises:
        ConfigError: when a field or an option is wrong, or is none; nothing was started.
        WrongLoop: outside of asyncio.
        KavachError: as ``open_sandbox`` and ``Sandbox.exec`` do.
    """
    async with lease() as portal, Asker(portal) as asker:
        given = asker.for_core(options)
        return await call(portal, lambda: single.run(*argv, check=check, config=config, **given))


@asynccontextmanager
async def open_sandbox(
    config: SandboxConfig | None = None, /, **fields: Unpack[SandboxFields]
) -> AsyncIterator[Sandbox]:
    """Boot a sandbox for the length of a ``with`` block.

    Args:
        config: what is wanted; the default configuration if left out.
        fields: fields of ``SandboxConfig``, over those of ``config``.

    Cancellation: CancelledError leaves the block when the box is ended and removed.

    Raises:
        ConfigError: when a field is wrong; nothing was started.
        UnsupportedPolicy: when the backend cannot enforce what is asked.
        DiscoveryError: when no such backend is installed, or none works here.
        CreateError: when the box does not start.
        WrongLoop: outside of asyncio.
    """
    async with lease() as portal, hold(portal, core_sandbox.open_sandbox(config, **fields)) as opened:
        yield Sandbox(portal, opened)


@asynccontextmanager
async def open_pool(
    config: SandboxConfig | None = None,
    /,
    *,
    size: int,
    uses: int = 1,
    starting: int | None = None,
    **fields: Unpack[SandboxFields],
) -> AsyncIterator[Pool]:
    """Keep boxes ready for the length of a ``with`` block.

    Args:
        config: what each box is to be; the default configuration if left out.
        size: how many to keep ready.
        uses: how many times each is given out, 1 unless said otherwise.
        starting: how many are started at once, as many as there are processors unless said otherwise.
        fields: fields of ``SandboxConfig``, over those of ``config``.

    Cancellation: CancelledError leaves the block when every box that nobody has is ended and removed.

    Raises:
        ConfigError: when an argument is wrong; nothing was started.
        WrongLoop: outside of asyncio.
    """
    manager = core_pool.open_pool(config, size=size, uses=uses, starting=starting, **fields)
    async with lease() as portal, hold(portal, manager) as opened:
        yield Pool(portal, opened)
