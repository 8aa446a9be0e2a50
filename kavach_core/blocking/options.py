"""What commands take in this face: plain functions and iterables where the core has async ones."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import trio

from kavach_core import commands, single
from kavach_core.blocking.calls import Caller
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.types import TerminalSize

_END: Final = object()
_CALLBACKS: Final = ("on_stdout", "on_stderr")
_ITERABLES: Final = ("input", "tty_sizes")

T = TypeVar("T")


class ExecOptions(commands.CommandOptions, total=False):
    """What ``exec`` and ``shell`` take beside the command.

    Attributes:
        input: what the command reads from standard input, at once or as it comes; None gives it
            ``/dev/null``. What gives
            it piece by piece is iterated in a thread of its own.
        timeout: seconds of wall clock after which it is killed with all it has started; None = as configured.
        cpu_timeout: seconds of CPU time, of all its processes together, after which it is killed likewise.
        max_output: bytes to keep of each output stream, 8 MiB unless said otherwise; all of them are counted.
        output_limit: bytes of both streams together after which it is killed; None = it may write on.
        on_stdout: called with each piece of standard output as it comes, in the thread of the caller; the
            command waits.
        on_stderr: likewise for standard error.
        tty_sizes: new sizes of its terminal, as they come; iterated as ``input`` is.
    """

    input: bytes | str | Iterable[bytes] | None
    timeout: float | None
    cpu_timeout: float | None
    max_output: int
    output_limit: int | None
    on_stdout: Callable[[bytes], object] | None
    on_stderr: Callable[[bytes], object] | None
    tty_sizes: Iterable[TerminalSize] | None


class RunOptions(single.BoxFields, ExecOptions, total=False):
    """What ``run`` takes beside the command: fields of the sandbox, and options of ``exec``."""


def for_core(options: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """Return the options with what is plain made async, for the loop.

    Args:
        options: as the caller wrote them.
        caller: the thread that calls back.

    Raises:
        ConfigError: when only async code can iterate over what the caller gave.
    """
    given = dict(options)
    for name in _CALLBACKS:
        if given.get(name) is not None:
            given[name] = caller.asking(given[name])
    for name in _ITERABLES:
        if name in given:
            given[name] = as_async(name, given[name])
    return given


def as_async(name: str, data: object) -> Any:  # noqa: ANN401 - the core judges it
    """Return what gives its pieces one by one as an async iterable, and all else as it is.

    Args:
        name: of the argument, for errors.
        data: what the caller gave.

    Raises:
        ConfigError: when only async code can iterate over it.
    """
    if isinstance(data, AsyncIterable):
        raise ConfigError([FieldProblem(name, "only async code can iterate over it", "kavach_core.aio takes it")])
    if isinstance(data, Iterable) and not isinstance(data, (bytes, str, bytearray, memoryview)):
        return _pieces(data)
    return data


async def _pieces(source: Iterable[Any]) -> AsyncIterator[Any]:
    """Iterate in worker threads. One that is left behind in the midst of a piece ends with it."""
    alone = trio.CapacityLimiter(1)  # and not one of the few that all of the loop share
    iterator = iter(source)
    while (piece := await _in_thread(functools.partial(next, iterator, _END), alone)) is not _END:
        yield piece


async def _in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
