# ruff: noqa: ANN401 - what the body of a test returns is its own
"""What tests of the faces share: either face driven by plain code, and work that shows what happens to it."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import trio

from kavach_core.aio import calls as aio_calls
from kavach_core.blocking import calls as blocking_calls
from kavach_core.portal import Portal


class Odd(Exception):  # noqa: N818 - no error that anybody could expect
    """An error that nobody else raises."""


class Face:
    """A face, driven by plain code."""

    name: str

    def lease(self, body: Callable[[Portal], Any]) -> Any:
        """Call ``body`` with a loop."""
        raise NotImplementedError

    def call(self, portal: Portal, work: Callable[[], Any]) -> Any:
        """Have the loop do some work."""
        raise NotImplementedError

    def hold(self, manager: AbstractAsyncContextManager[Any], body: Callable[[Any], Any]) -> Any:
        """Call ``body`` in the block of a context manager."""
        raise NotImplementedError


class Blocking(Face):
    name = "blocking"

    def lease(self, body: Callable[[Portal], Any]) -> Any:
        with blocking_calls.lease() as portal:
            return body(portal)

    def call(self, portal: Portal, work: Callable[[], Any]) -> Any:
        return blocking_calls.call(portal, work)

    def hold(self, manager: AbstractAsyncContextManager[Any], body: Callable[[Any], Any]) -> Any:
        with blocking_calls.lease() as portal, blocking_calls.hold(portal, manager) as value:
            return body(value)


class Aio(Face):
    name = "aio"

    def lease(self, body: Callable[[Portal], Any]) -> Any:
        async def main() -> Any:
            async with aio_calls.lease() as portal:
                result = body(portal)
                return await result if asyncio.iscoroutine(result) else result

        return asyncio.run(main())

    def call(self, portal: Portal, work: Callable[[], Any]) -> Any:
        return aio_calls.call(portal, work)

    def hold(self, manager: AbstractAsyncContextManager[Any], body: Callable[[Any], Any]) -> Any:
        async def main() -> Any:
            async with aio_calls.lease() as portal, aio_calls.hold(portal, manager) as value:
                return body(value)

        return asyncio.run(main())


FACES = (Blocking(), Aio())


# --- work ---------------------------------------------------------------------------------------------


async def until_cancelled() -> None:
    """Wait for the cancellation of the task without being ended by it."""
    while trio.current_effective_deadline() != -math.inf:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.001)


class Cleaning:
    """Work that never ends by itself, and takes its time to clean up."""

    def __init__(self, *, while_cleaning: Callable[[], object] = lambda: None) -> None:
        self.begun = threading.Event()
        self.cleaned = False
        self._while_cleaning = while_cleaning

    async def work(self) -> None:
        try:
            self.begun.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                self._while_cleaning()
                await trio.sleep(0.05)
                self.cleaned = True


def interrupt_main() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def interrupted_when(event: threading.Event) -> Iterator[None]:
    def interrupt() -> None:
        event.wait()
        interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield
    thread.join()
