"""A pool for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Unpack

import trio

from kavach_core.config import SandboxConfig
from kavach_core.pool.keeping import Pool
from kavach_core.pool.records import PoolOptions
from kavach_core.sandbox import SandboxFields, merge_fields


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

    Cancellation: every box that nobody has is ended and removed before Cancelled leaves the block.

    Raises:
        ConfigError: when an argument is wrong; nothing was started.
        CleanupError: at the end, when something of a box that nobody had could not be removed.
    """
    options = PoolOptions(size=size, uses=uses, **({} if starting is None else {"starting": starting}))
    pool = Pool(merge_fields(config, fields), options)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.keep_filled, nursery)
            try:
                yield pool
            except BaseException as error:  # noqa: BLE001 - raised below, bare: the nursery would wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        await pool.drain()
