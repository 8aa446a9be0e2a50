"""The states of a sandbox and the moves between them: a table, and nothing that does anything."""

from __future__ import annotations

import enum
from typing import Final

from kavach_core.errors import InvalidTransition


class State(enum.StrEnum):
    """Where a sandbox is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DESTROYED = "destroyed"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.CREATED: frozenset({State.RUNNING, State.STOPPED, State.DESTROYED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPED, State.DESTROYED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPED, State.DESTROYED}),
    State.STOPPED: frozenset({State.DESTROYED}),
    State.DESTROYED: frozenset(),
}
"""For each state, the states it may go to. There is no move from a state to itself."""


def transition(current: State, target: State, *, sandbox_id: str | None = None) -> State:
    """Return ``target`` when the table allows the move.

    Raises:
        InvalidTransition: when it does not.
    """
    if target in TRANSITIONS[current]:
        return target
    raise InvalidTransition(f"a {current} sandbox cannot become {target}", sandbox_id=sandbox_id)


def require_running(current: State, *, sandbox_id: str | None = None) -> None:
    """Check that commands may be started.

    Raises:
        InvalidTransition: when the sandbox is not running.
    """
    if current is not State.RUNNING:
        raise InvalidTransition(f"the sandbox is {current}, not running", sandbox_id=sandbox_id)
