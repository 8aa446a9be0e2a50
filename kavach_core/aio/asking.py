"""What the loop wants of asyncio while a call waits: callbacks, and the pieces of an input."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import trio

from kavach_core.aio.calls import running_loop
from kavach_core.portal import Portal

_STOP_SECONDS: Final = 5.0
_CALLBACKS: Final = ("on_stdout", "on_stderr")
_ITERABLES: Final = ("input", "tty_sizes")
_END: Final = object()

R = TypeVar("R")
T = TypeVar("T")


class Asker:
    """A task of asyncio that waits for the loop, seen from the loop; an async context manager around the call.

    All that is asked runs in the event loop of the task, in tasks of its own that share a copy of its context.
    """

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._loop = running_loop()
        self._task = asyncio.current_task()
        self._context = contextvars.copy_context()
        self._sources: list[_Source] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self._sources:
            await source.stop()

    def for_core(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of ``exec`` with what is asyncio's replaced by what asks for it."""
        given = dict(options)
        for name in _CALLBACKS:
            if given.get(name) is not None:
                given[name] = self._asking(given[name])
        for name in _ITERABLES:
            if name in given:
                given[name] = self.as_trio(given[name])
        return given

    def as_trio(self, data: T) -> T | AsyncIterator[Any]:
        """Return what gives its pieces one by one as something for the loop to iterate over, and all else as it is."""
        return self._pieces(data) if isinstance(data, AsyncIterable) else data

    def _asking(self, function: Callable[[bytes], Awaitable[object]]) -> Callable[[bytes], Awaitable[None]]:
        async def ask(data: bytes) -> None:
            await self._ask(lambda: function(data))

        return ask

    async def _pieces(self, iterable: AsyncIterable[Any]) -> AsyncIterator[Any]:
        source = _Source(iterable)
        self._sources.append(source)
        while (piece := await self._ask(source.next)) is not _END:
            yield piece

    async def _ask(self, work: Callable[[], Awaitable[R]]) -> R:
        """Have asyncio do some work, and wait for it; called in the loop."""
        answer = _Answer(work, self._cancel_task)
        self._in_asyncio(answer.start, self._loop, self._context, self._portal)
        try:
            await answer.given.wait()
        except trio.Cancelled:
            with trio.move_on_after(_STOP_SECONDS, shield=True):
                self._in_asyncio(answer.stop)
                await answer.given.wait()
            raise
        if answer.failure is not None:
            raise answer.failure
        return answer.values[0]

    def _in_asyncio(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # closed; whoever waits is cancelled at the end of the interpreter
            self._loop.call_soon_threadsafe(function, *arguments)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _Answer(Generic[R]):
    """A piece of work that the loop wants of asyncio.

    Attributes:
        given: set when it is done.
        values: what it returned.
        failure: what it raised, or None.
    """

    def __init__(self, work: Callable[[], Awaitable[R]], on_cancel: Callable[[], object]) -> None:
        self.given = trio.Event()
        self.values: list[R] = []
        self.failure: Exception | None = None
        self._work = work
        self._on_cancel = on_cancel
        self._stopped = False

    def start(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context, portal: Portal) -> None:
        """Begin, in asyncio."""
        self._portal = portal
        self._task = loop.create_task(self._carry_out(), context=context)

    def stop(self) -> None:
        """Cancel it, in asyncio."""
        self._stopped = True
        self._task.cancel()
        if self._task.done():
            self._tell()

    async def _carry_out(self) -> None:
        try:
            self.values.append(await self._work())
        except Exception as error:  # noqa: BLE001 - handed on
            self.failure = error
        except BaseException:
            if not self._stopped:  # somebody else cancels it, so the call in which it would be awaited is cancelled
                self._on_cancel()
                raise
        self._tell()

    def _tell(self) -> None:
        self._portal.soon(self.given.set)


class _Source:
    """An async iterable that one task iterates over, a piece for each time it is asked."""

    def __init__(self, iterable: AsyncIterable[Any]) -> None:
        self._iterable = iterable
        self._wanted = asyncio.Event()
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> Any:  # noqa: ANN401 - the core judges what an input gives
        """Return the next piece, or ``_END``; raise what the iterable raises."""
        if self._task is None:
            self._task = asyncio.create_task(self._iterate())
        self._wanted.set()
        piece = await self._pieces.get()
        if isinstance(piece, _Raised):
            raise piece.error
        return piece

    async def stop(self) -> None:
        """Cancel what it is at, and wait for that."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _iterate(self) -> None:
        iterator = aiter(self._iterable)
        piece: Any = None
        while piece is not _END:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                piece = await anext(iterator, _END)
            except Exception as error:  # noqa: BLE001 - handed on
                piece = _Raised(error)
            self._pieces.put_nowait(piece)


class _Raised:
    """What an iterable raised instead of giving a piece."""

    def __init__(self, error: Exception) -> None:
        self.error = error
