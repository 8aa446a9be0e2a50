"""The table of states, pair by pair."""

from __future__ import annotations

import itertools

import pytest

from kavach_core.errors import InvalidTransition
from kavach_core.lifecycle import TRANSITIONS, State, require_running, transition

# The ancestor's eight, so that its users find what they know ...
ANCESTOR = {
    ("created", "running"),
    ("running", "paused"),
    ("paused", "running"),
    ("running", "stopped"),
    ("paused", "stopped"),
    ("running", "destroyed"),
    ("paused", "destroyed"),
    ("stopped", "destroyed"),
}
# ... and two for a sandbox that never ran: without them it could not be given up.
ADDED = {("created", "stopped"), ("created", "destroyed")}
ALLOWED = ANCESTOR | ADDED
PAIRS = list(itertools.product(State, State))


def test_there_are_five_states() -> None:
    assert [state.value for state in State] == ["created", "running", "paused", "stopped", "destroyed"]
    assert set(TRANSITIONS) == set(State)
    assert len(PAIRS) == 25


@pytest.mark.parametrize(("current", "target"), PAIRS)
def test_each_pair(current: State, target: State) -> None:
    if (current.value, target.value) in ALLOWED:
        assert transition(current, target) is target
        return
    with pytest.raises(InvalidTransition) as caught:
        transition(current, target, sandbox_id="00ff")
    assert caught.value.sandbox_id == "00ff"
    assert str(current) in str(caught.value)
    assert str(target) in str(caught.value)


def test_the_end_is_final_and_always_reachable() -> None:
    assert TRANSITIONS[State.DESTROYED] == frozenset()
    for state in set(State) - {State.DESTROYED}:
        assert State.DESTROYED in TRANSITIONS[state]


@pytest.mark.parametrize("state", State)
def test_only_a_running_sandbox_takes_commands(state: State) -> None:
    if state is State.RUNNING:
        require_running(state)
        return
    with pytest.raises(InvalidTransition, match=f"the sandbox is {state}, not running") as caught:
        require_running(state, sandbox_id="00ff")
    assert caught.value.sandbox_id == "00ff"
