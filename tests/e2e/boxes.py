"""Boxes for tests: in trio with a bound to all waiting, and in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

import kavach_core as kavach_api
from kavach_core import aio

MIB = 1024**2


@asynccontextmanager
async def box(backend: str, **fields: Any) -> AsyncIterator[kavach_api.Sandbox]:  # noqa: ANN401
    """Give a sandbox, and fail where something hangs."""
    with trio.fail_after(90):
        async with kavach_api.open_sandbox(backend=backend, **fields) as sandbox:
            yield sandbox


async def names(sandbox: kavach_api.Sandbox, path: str = "/work") -> list[str]:
    """Ask a command of the box what is in a directory."""
    return (await sandbox.exec("ls", "-A", path, check=True)).stdout.split()


def in_asyncio(backend: str, body: Callable[[aio.Sandbox], Awaitable[Any]]) -> str:
    """Run ``body`` with a sandbox, in an event loop of asyncio in debug mode; return the sandbox's id."""

    async def main() -> str:
        async with aio.open_sandbox(backend=backend) as sandbox:
            await body(sandbox)
            return sandbox.id

    return asyncio.run(main(), debug=True)
