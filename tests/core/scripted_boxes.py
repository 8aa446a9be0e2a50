"""Boxes of core's own protocols that do what a test says at each step: nothing of them takes real time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import trio
from scripted import Session

from kavach_core import Sandbox, SandboxConfig, State, capabilities
from kavach_core.abc import HostToolchain, SandboxSpec
from kavach_core.errors import SandboxGone
from kavach_core.resolution import resolve_spec
from kavach_core.types import ProbeReport, ProcessInfo

Step = Callable[[], Awaitable[None]]


class Box(Session):
    """A live box, until it is closed.

    Attributes:
        steps: what happens in a step, by its name; it may wait, and raise.
        closed: it has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, Step] = {}
        self.closed = False
        self.sandbox: Sandbox

    async def _step(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        if name in self.steps:
            await self.steps[name]()

    async def processes(self) -> tuple[ProcessInfo, ...]:
        """None, or as the test says."""
        await self._step("processes")
        return await super().processes()

    async def ping(self) -> None:
        """Answer, or as the test says."""
        await self._step("ping")

    async def pause(self) -> None:
        """Stand still, or as the test says."""
        await self._step("pause")

    async def resume(self) -> None:
        """Go on, or as the test says."""
        await self._step("resume")

    async def aclose(self) -> None:
        """End, shielded as the protocol demands, and then as the test says."""
        with trio.CancelScope(shield=True):
            self.closed = True
            await self._step("aclose")


class Host:
    """A host of such boxes, and their backend.

    Attributes:
        boxes: all that have started, in their order.
        attempts: how many starts have begun.
        starting: what happens while the n-th box starts, from 0; ``always`` is what happens otherwise.
        prepare: what is done to each box that has started.
    """

    name = "scripted"
    api_version = (1, 0)
    base_score = 50

    def __init__(self) -> None:
        self.capabilities = capabilities.ALL
        self.boxes: list[Box] = []
        self.attempts = 0
        self.starting: dict[int, Step] = {}
        self.always: Step = trio.lowlevel.checkpoint
        self.prepare: Callable[[Box], None] = lambda _: None

    async def create(self, config: SandboxConfig) -> Sandbox:
        """Start one, in place of ``create_sandbox``."""
        number, self.attempts = self.attempts, self.attempts + 1
        await trio.lowlevel.checkpoint()
        await self.starting.get(number, self.always)()
        spec = resolve_spec(config, HostToolchain())
        box = Box()
        self.prepare(box)
        box.sandbox = Sandbox(config=config, spec=spec, backend=self, session=box, root=AsyncExitStack())
        self.boxes.append(box)
        return box.sandbox

    def states(self) -> Counter[State]:
        """Return how many boxes there are in each state."""
        return Counter(box.sandbox.state for box in self.boxes)

    def alive(self) -> list[Box]:
        """Return those that nobody has closed."""
        return [box for box in self.boxes if not box.closed]

    async def probe(self) -> ProbeReport:
        """Not used by the code under test."""
        raise NotImplementedError

    async def open(self, spec: SandboxSpec) -> Session:
        """Not used by the code under test."""
        raise NotImplementedError


def raising(error: BaseException) -> Step:
    """Return a step that fails."""

    async def step() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return step


def gone() -> Step:
    """Return the step of a box that has died."""
    return raising(SandboxGone("the box has ended"))


class Gate:
    """A step that waits until it is let go on.

    Attributes:
        reached: somebody waits at it.
    """

    def __init__(self, then: Step = trio.lowlevel.checkpoint) -> None:
        self.reached = trio.Event()
        self._opened = trio.Event()
        self._then = then

    def open(self) -> None:
        """Let everybody go on."""
        self._opened.set()

    async def __call__(self, *_: Any) -> None:  # noqa: ANN401 - any step
        """Wait."""
        self.reached.set()
        await self._opened.wait()
        await self._then()
