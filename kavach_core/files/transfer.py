"""Trees between the host and a box, with the host's side in worker threads and a bounded part of it in memory."""

from __future__ import annotations

from typing import Final

import trio

from kavach_core.files.local_source import Batches, read_tree
from kavach_core.files.local_target import Bounds, LocalTarget
from kavach_core.files.threads import in_thread
from kavach_core.files.transferred import Tally, Transferred
from kavach_core.guest_files import GuestFiles, PackRequest, TreeEvent, TreeReader, UnpackRequest

_BATCH_BYTES: Final = 1024 * 1024
_BATCH_EVENTS: Final = 1000


async def send_tree(files: GuestFiles, request: UnpackRequest, path: str) -> Transferred:
    """Copy what is at ``path`` of the host into a box; see ``SandboxFiles.upload``."""
    tally = Tally()
    batches = read_tree(path, tally)
    try:
        first = await _next(batches)  # what is wrong with the host's side is found before the box has begun
        async with files.unpack(request) as writer:
            batch = first
            while batch:
                await writer.send(batch)
                batch = await _next(batches)
    finally:
        batches.close()
    return tally.total()


async def _next(batches: Batches) -> list[TreeEvent]:
    nothing: list[TreeEvent] = []
    return await in_thread(next, batches, nothing)


async def receive_tree(files: GuestFiles, request: PackRequest, path: str, bounds: Bounds) -> Transferred:
    """Copy what a box has to ``path`` of the host; see ``SandboxFiles.download``."""
    target = await in_thread(LocalTarget, path, bounds)
    try:
        async with files.pack(request) as reader:
            while batch := await _gather(reader):
                await in_thread(target.apply, batch)
        await in_thread(target.commit)
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(target.close)
    return target.tally.total()


async def _gather(reader: TreeReader) -> list[TreeEvent]:
    """Receive so much that a trip to a worker thread is worth it; nothing after the last."""
    batch: list[TreeEvent] = []
    size = 0
    while size < _BATCH_BYTES and len(batch) < _BATCH_EVENTS:
        events = await reader.receive()
        if not events:
            break
        batch += events
        size += sum(len(event) for event in events if isinstance(event, bytes))
    return batch
