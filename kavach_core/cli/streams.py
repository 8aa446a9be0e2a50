"""Our own standard streams, on their way to and from a command."""

from __future__ import annotations

import os
import select
import time
from collections.abc import AsyncIterator
from typing import Final

import trio

from kavach_core.cli.foreground import NAP_SECONDS, in_background
from kavach_core.errors import KavachError
from kavach_core.runs import Forward

_CHUNK_BYTES: Final = 65_536


async def our_input() -> AsyncIterator[bytes]:
    """Give what comes on our standard input, read in a thread: it may be a file, or a terminal that others share."""
    alone = trio.CapacityLimiter(1)  # it may wait for ever, and so takes no thread of those that all share
    read = _read_when_ours if os.isatty(0) else _read_some
    try:
        while data := await trio.to_thread.run_sync(read, 0, abandon_on_cancel=True, limiter=alone):
            yield data
    except OSError:
        return  # we have no standard input


def writer(descriptor: int, scope: trio.CancelScope) -> Forward:
    """Return a function that writes to one of our streams and ends the command when nobody reads that any more."""
    alone = trio.CapacityLimiter(1)

    async def write(data: bytes) -> None:
        try:
            await trio.to_thread.run_sync(_write_all, descriptor, data, abandon_on_cancel=True, limiter=alone)
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


def _read_when_ours(terminal: int) -> bytes:
    """Read from a terminal, but not in the background, where the kernel would stop us: what is typed is for others."""
    while True:
        _wait_for(terminal, select.POLLIN)
        if not in_background(terminal):
            return _read_some(terminal)
        time.sleep(NAP_SECONDS)


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
