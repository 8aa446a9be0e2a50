"""What is done behind the back of whoever closed a box: counted, bounded, and never the end of a program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from kavach_core.errors import CleanupError
from kavach_core.oci import aftermath
from kavach_core.oci.aftermath import Tally, finish, finish_later


@pytest.fixture(autouse=True)
def tally(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tally]:
    fresh = Tally()
    monkeypatch.setattr(aftermath, "tally", fresh)
    yield fresh
    assert fresh.pending == 0


async def test_nobody_waits_for_it(tally: Tally) -> None:
    go = trio.Event()
    await finish_later(go.wait)
    await trio.testing.wait_all_tasks_blocked()
    assert (tally.pending, tally.removed) == (1, 0)
    go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (tally.pending, tally.removed) == (0, 1)


async def test_who_closes_faster_than_boxes_can_go_waits(tally: Tally) -> None:
    go = trio.Event()
    for _ in range(64):
        await finish_later(go.wait)
    await trio.testing.wait_all_tasks_blocked()
    assert tally.pending == 64
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish_later, go.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert tally.pending == 65
        assert len(nursery.child_tasks) == 1
        go.set()
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("error", [CleanupError("left"), OSError("odd")])
async def test_a_failure_ends_no_program(tally: Tally, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise error

    await finish_later(fail)
    await trio.testing.wait_all_tasks_blocked()
    assert tally.failed == 1
    assert caplog.records
    with pytest.raises(type(error)):
        await finish(fail)
    assert tally.failed == 2


def test_a_run_does_not_return_before_it_is_done(tally: Tally) -> None:
    async def slow() -> None:
        await trio.sleep(0.05)

    async def main() -> None:
        await finish_later(slow)

    trio.run(main)
    assert tally.removed == 1


async def test_a_cancellation_does_not_reach_it(tally: Tally) -> None:
    async def slow() -> None:
        await trio.sleep(0.05)

    with trio.CancelScope() as scope:
        scope.cancel()
        await finish(slow)
    assert tally.removed == 1
