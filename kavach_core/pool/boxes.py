"""One box of a pool: who waits for it, and what is done with it between two who use it. Every step is bounded."""

from __future__ import annotations

import logging
from typing import Final

import trio
from attrs import frozen

from kavach_core import capabilities
from kavach_core.errors import SandboxError
from kavach_core.lifecycle import State
from kavach_core.sandbox import Sandbox

_logger = logging.getLogger(__name__)

_ANSWER_SECONDS: Final = 2.0
# More than a host takes that stops or wakes a box: this is for one that does not come back at all.
_STEP_SECONDS: Final = 5.0


@frozen(eq=False)
class Lease:
    """A live box and how often it may still be given out."""

    sandbox: Sandbox
    uses_left: int


class Waiter:
    """Somebody who waits for a box, and what is brought."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.brought: Lease | Exception | None = None

    def bring(self, what: Lease | Exception) -> None:
        """Give a box, or say why there is none."""
        self.brought = what
        self.came.set()


async def wake(sandbox: Sandbox) -> None:
    """Let a box go on that was ready, and hear a sign of life.

    Cancellation: it goes on or not; somebody must close it.

    Raises:
        SandboxError: when it has died meanwhile.
        TooSlowError: when it does not answer.
    """
    with trio.fail_after(_ANSWER_SECONDS):
        if sandbox.state is State.PAUSED:
            await sandbox.resume()
        await sandbox.ping()


async def check_clean(sandbox: Sandbox) -> None:
    """Check that a box can be given to somebody else.

    Raises:
        SandboxError: when it is dead, is not running, or has a process.
        TooSlowError: when it does not answer.
    """
    with trio.fail_after(_ANSWER_SECONDS):
        processes = await sandbox.processes()
    if processes:
        names = ", ".join(repr(process.name) for process in processes[:3])
        text = f"{len(processes)} processes were left in the box: {names}"
        raise SandboxError(text, sandbox_id=sandbox.id, backend=sandbox.backend, stage="take back")


def may_lie_ready(sandbox: Sandbox) -> bool:
    """Say whether a box stands as still as its backend can have it stand."""
    return sandbox.state is State.PAUSED or capabilities.PAUSE not in sandbox.capabilities


async def pause(sandbox: Sandbox) -> None:
    """Have a box stand still.

    Raises:
        SandboxError: when it has died, or does not stop.
        TooSlowError: when its backend does not come back.
    """
    with trio.fail_after(_STEP_SECONDS):
        await sandbox.pause()


async def resume(sandbox: Sandbox) -> None:
    """Let a box go on; nothing happens when it does already. Errors are those of ``pause``."""
    if sandbox.state is State.PAUSED:
        with trio.fail_after(_STEP_SECONDS):
            await sandbox.resume()


async def put_away(sandbox: Sandbox) -> None:
    """End and remove a box whose end nobody waits for: what goes wrong is logged.

    Cancellation: shielded; the backend bounds it in time.
    """
    try:
        with trio.CancelScope(shield=True):
            await sandbox.aclose()
    except Exception:
        _logger.exception("sandbox %s of the pool could not be closed", sandbox.id)
