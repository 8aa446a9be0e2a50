"""What the objects of both faces have in common: an object of the core behind them, what can be had at once."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar

from kavach_core import pool, sandbox
from kavach_core.abc import QuickPlan
from kavach_core.config import SandboxConfig
from kavach_core.lifecycle import State
from kavach_core.portal.loop import Job, Portal
from kavach_core.scoring import Score

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Mirror(Generic[T]):
    """An object of the core, seen from outside its loop.

    Args:
        portal: the loop that it lives in.
        core: the object.
    """

    def __init__(self, portal: Portal, core: T) -> None:
        self._portal = portal
        self._core = core

    def __repr__(self) -> str:
        return f"<{type(self).__module__.split('.')[1]}: {self._core!r}>"


def glance(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[Mirror[T], P], R]:
    """Make the method of a mirror that calls this one, which does not wait, in the loop, where all lives."""
    name = method.__name__

    @functools.wraps(method)
    def mirrored(self: Mirror[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        done: queue.SimpleQueue[None] = queue.SimpleQueue()

        async def look() -> R:
            value: R = getattr(self._core, name)(*args, **kwargs)
            return value

        job = Job(self._portal, look, lambda: done.put(None))
        job.submit()
        done.get()
        return job.result()

    return mirrored


class Leftover:
    """What a call had received just when it was cancelled: the next call has it, so nothing is lost."""

    def __init__(self) -> None:
        self._data = b""

    def __bool__(self) -> bool:
        return bool(self._data)

    async def put(self, data: bytes | bytearray) -> None:
        """Keep it."""
        self._data += data

    def take(self, max_bytes: int | None) -> bytes:
        """Return what is kept, up to ``max_bytes``."""
        size = len(self._data) if max_bytes is None else max_bytes
        data, self._data = self._data[:size], self._data[size:]
        return data


class SandboxView(Mirror[sandbox.Sandbox]):
    """What is known of a sandbox, and does not change unless it is asked to."""

    @property
    def id(self) -> str:
        """Its id, 16 hexadecimal digits."""
        return self._core.id

    @property
    def config(self) -> SandboxConfig:
        """What the caller asked for."""
        return self._core.config

    @property
    def backend(self) -> str:
        """Name of the backend that holds it."""
        return self._core.backend

    @property
    def score(self) -> Score:
        """Its declared strength."""
        return self._core.score

    @property
    def cwd(self) -> str:
        """Working directory of commands that do not say another."""
        return self._core.cwd

    @property
    def capabilities(self) -> frozenset[str]:
        """What its backend can do: see ``kavach_core.capabilities``."""
        return self._core.capabilities

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._core.state

    def plan(self) -> QuickPlan | None:
        """Return how a box like this one can be started without importing the backend, if the backend can say it."""
        return self._core.plan()


class PoolView(Mirror[pool.Pool]):
    """What is known of a pool."""

    @property
    def config(self) -> SandboxConfig:
        """What each box is to be."""
        return self._core.config

    @property
    def options(self) -> pool.PoolOptions:
        """How it keeps its boxes."""
        return self._core.options

    stats = glance(pool.Pool.stats)
