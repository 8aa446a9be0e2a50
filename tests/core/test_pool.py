"""A pool at every step that waits: cancelled, closed or failing there, it loses no box and nobody waits for ever."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from scripted import SLEEPER, timeless
from scripted_boxes import Box, Gate, Host, gone, raising

from kavach_core import Pool, Sandbox, SandboxConfig, State, open_pool
from kavach_core.errors import CleanupError, CreateError, KavachError, PoolClosed, SandboxError, SandboxGone
from kavach_core.pool import keeping
from kavach_core.pool.boxes import Lease
from kavach_core.types import ProcessInfo

BOUND_SECONDS = 1000
"""On a clock that jumps: what takes so long hangs."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Where the boxes of every pool come from."""
    value = Host()
    monkeypatch.setattr(keeping, "create_sandbox", value.create)
    return value


@asynccontextmanager
async def filled(host: Host, *, size: int = 1, uses: int = 1, starting: int = 1) -> AsyncIterator[Pool]:
    """Give a pool that is filled; afterwards no box is alive."""
    with trio.fail_after(BOUND_SECONDS):
        async with open_pool(size=size, uses=uses, starting=starting) as pool:
            await pool.wait_filled()
            yield pool
        assert host.alive() == []


class Claim:
    """A user in a task of his own, who holds his box until he is let go.

    Attributes:
        sandbox: what he got.
        error: what his block ended with.
    """

    def __init__(self, pool: Pool) -> None:
        self.scope = trio.CancelScope()
        self.got = trio.Event()
        self.ended = trio.Event()
        self.leave = trio.Event()
        self.sandbox: Sandbox | None = None
        self.error: BaseException | None = None
        self._pool = pool

    async def run(self) -> None:
        """Claim, hold, give back."""
        try:
            with self.scope:
                async with self._pool.sandbox() as self.sandbox:
                    self.got.set()
                    await self.leave.wait()
        except Exception as error:  # noqa: BLE001 - for the test to look at
            self.error = error
        finally:
            self.ended.set()


# --- a claim that is cancelled -----------------------------------------------------------------


@pytest.mark.parametrize("step", ["resume", "ping", "aclose"])
@timeless
async def test_a_claim_cancelled_at_any_step_leaves_a_pool_that_fills(host: Host, step: str) -> None:
    async with filled(host, size=2) as pool, trio.open_nursery() as nursery:
        for box in list(host.boxes):
            gate = box.steps[step] = Gate()
            if step == "aclose":
                box.steps["ping"] = gone()
            claim = Claim(pool)
            nursery.start_soon(claim.run)
            await gate.reached.wait()
            claim.scope.cancel()
            if step == "aclose":
                gate.open()
            await claim.ended.wait()
            assert box.closed
        await pool.wait_filled()
        assert host.states() == {State.PAUSED: 2, State.DESTROYED: 2}
        async with pool.sandbox() as sandbox:
            assert sandbox.state is State.RUNNING


@timeless
async def test_a_claim_cancelled_before_it_begins_takes_no_box(host: Host) -> None:
    async with filled(host) as pool:
        with trio.move_on_after(0):
            async with pool.sandbox():
                pytest.fail("it was cancelled")
        assert pool.stats().ready == 1
        assert host.attempts == 1


@pytest.mark.parametrize("fails", [False, True], ids=["pauses", "does not pause"])
@timeless
async def test_a_box_brought_to_somebody_who_has_just_gone_is_kept(host: Host, *, fails: bool) -> None:
    await host.create(SandboxConfig())
    (box,) = host.boxes
    if fails:
        box.steps["pause"] = raising(SandboxError("it does not stop"))
    gate = host.starting[2] = Gate()
    async with filled(host) as pool, trio.open_nursery() as nursery:
        first, second = Claim(pool), Claim(pool)
        nursery.start_soon(first.run)
        await first.got.wait()
        nursery.start_soon(second.run)
        await trio.testing.wait_all_tasks_blocked()
        second.scope.cancel()  # and before his task runs:
        pool._waiters.popleft().bring(Lease(box.sandbox, 1))
        await second.ended.wait()
        assert second.error is None
        assert box.closed is fails
        assert pool.stats().ready == (0 if fails else 1)
        gate.open()
        first.leave.set()
        await pool.wait_filled()


# --- a pool that is closed meanwhile -----------------------------------------------------------


@pytest.mark.parametrize("step", ["resume", "ping", "aclose"])
@timeless
async def test_a_claim_that_finds_the_pool_closed_is_told_at_any_step(host: Host, step: str) -> None:
    """And the pool's block is not left before the box that nobody has is closed."""
    async with trio.open_nursery() as nursery:
        async with filled(host) as pool:
            (box,) = host.boxes
            gate = box.steps[step] = Gate()
            if step == "aclose":
                box.steps["ping"] = gone()
            claim = Claim(pool)
            nursery.start_soon(claim.run)
            await gate.reached.wait()
            nursery.start_soon(open_when_closed, pool, gate)
        await claim.ended.wait()
        assert isinstance(claim.error, PoolClosed)
        assert claim.sandbox is None


async def open_when_closed(pool: Pool, gate: Gate) -> None:
    while not pool._closed:
        await pool._changed.wait()
    gate.open()


@pytest.mark.parametrize("step", ["processes", "pause", "aclose"])
@timeless
async def test_a_box_that_is_being_taken_back_goes_with_the_pool(host: Host, step: str) -> None:
    async with trio.open_nursery() as nursery:
        async with filled(host, uses=5) as pool:
            claim = Claim(pool)
            nursery.start_soon(claim.run)
            await claim.got.wait()
            (box,) = host.boxes
            gate = box.steps[step] = Gate()
            if step == "aclose":
                box.steps["processes"] = gone()
            claim.leave.set()
            await gate.reached.wait()
            nursery.start_soon(open_when_closed, pool, gate)
        assert box.closed
        await claim.ended.wait()
        assert claim.error is None


@timeless
async def test_a_box_that_somebody_has_outlives_the_pool(host: Host) -> None:
    with trio.fail_after(BOUND_SECONDS):
        async with trio.open_nursery() as nursery:
            async with open_pool(size=1) as pool:
                claim = Claim(pool)
                nursery.start_soon(claim.run)
                await claim.got.wait()
            assert [box.sandbox for box in host.alive()] == [claim.sandbox]
            claim.leave.set()
    assert host.alive() == []


@timeless
async def test_a_pool_that_is_closed_and_cannot_end_a_box_ends_the_others_and_says_so(host: Host) -> None:
    with trio.fail_after(BOUND_SECONDS), pytest.raises(CleanupError) as caught:
        async with open_pool(size=3) as pool:
            await pool.wait_filled()
            host.boxes[0].steps["aclose"] = raising(CleanupError("it lives"))
            raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert host.alive() == []


@timeless
async def test_waiting_for_a_closed_pool_to_be_filled(host: Host) -> None:
    del host
    async with open_pool(size=1) as pool:
        pass
    with pytest.raises(PoolClosed):
        await pool.wait_filled()


# --- a box that does not start -----------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [CreateError("no"), FileNotFoundError("the root"), ZeroDivisionError(), ExceptionGroup("of a plugin", [OSError()])],
    ids=lambda error: type(error).__name__,
)
@timeless
async def test_a_start_that_fails_however_harms_nobody_else(host: Host, error: Exception) -> None:
    """Whoever waits is told; who has a box keeps it; the next one starts."""
    host.starting[1] = raising(error)
    async with filled(host) as pool, pool.sandbox() as mine:
        with pytest.raises(type(error)) as caught:
            async with pool.sandbox():
                pytest.fail("there is no box")
        assert caught.value is error
        await pool.wait_filled()
        assert mine.state is State.RUNNING
        assert pool.stats().failed == 1
        async with pool.sandbox() as other:
            assert other is not mine


@timeless
async def test_a_failure_that_nobody_waits_for_is_logged(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.starting[0] = raising(ZeroDivisionError("of a plugin"))
    with caplog.at_level(logging.WARNING):
        async with filled(host):
            pass
    assert "did not start: of a plugin" in caplog.text
    assert "Traceback" in caplog.text


@timeless
async def test_boxes_that_fail_to_pause_are_not_started_at_full_speed(host: Host) -> None:
    """And none of them is left."""

    def prepare(box: Box) -> None:
        box.steps["pause"] = raising(SandboxError("the host cannot stop it"))

    host.prepare = prepare
    with trio.fail_after(BOUND_SECONDS):
        async with open_pool(size=2, starting=2) as pool:
            await trio.sleep(10)
            assert host.alive() == []
            assert 4 < host.attempts < 12
            host.prepare = lambda _: None
            await pool.wait_filled()
            assert pool.stats().discarded == host.attempts - 2


@timeless
async def test_one_that_starts_ends_the_rest_after_failures(host: Host) -> None:
    host.always = raising(CreateError("no"))
    with trio.fail_after(BOUND_SECONDS):
        async with open_pool(size=5, starting=1) as pool:
            await trio.sleep(100)
            assert 5 < pool.stats().failed < 30
            host.always = trio.lowlevel.checkpoint
            async with pool.sandbox():
                began = trio.current_time()
            await pool.wait_filled()
            assert trio.current_time() - began < 1


@timeless
async def test_somebody_who_waits_is_told_of_each_failure_in_its_turn(host: Host) -> None:
    host.always = raising(CreateError("no"))
    with trio.fail_after(BOUND_SECONDS):
        async with open_pool(size=1) as pool, trio.open_nursery() as nursery:
            claims = [Claim(pool) for _ in range(3)]
            for claim in claims:
                nursery.start_soon(claim.run)
            for claim in claims:
                await claim.ended.wait()
                assert isinstance(claim.error, CreateError)


# --- a box that cannot be given or taken back --------------------------------------------------


@pytest.mark.parametrize("step", ["processes", "pause"])
@pytest.mark.parametrize("error", [SandboxGone("gone"), OSError("of a plugin")], ids=["dead", "plugin"])
@timeless
async def test_a_box_that_fails_while_it_is_taken_back_is_replaced(host: Host, step: str, error: Exception) -> None:
    """Whoever gives it back has done with it, and hears nothing."""
    async with filled(host, uses=3) as pool:
        (box,) = host.boxes
        async with pool.sandbox():
            box.steps[step] = raising(error)
        assert box.closed
        assert pool.stats().discarded == 1
        await pool.wait_filled()
        assert host.states()[State.PAUSED] == 1


@timeless
async def test_a_box_that_does_not_come_back_from_a_step_is_replaced(host: Host) -> None:
    async with filled(host, uses=3) as pool:
        (box,) = host.boxes
        async with pool.sandbox():
            box.steps["pause"] = trio.sleep_forever
        assert box.closed
        await pool.wait_filled()
        host.boxes[-1].steps["resume"] = trio.sleep_forever
        async with pool.sandbox() as sandbox:
            assert sandbox.state is State.RUNNING


@timeless
async def test_a_process_that_was_left_is_named_in_the_log(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    async def one() -> tuple[ProcessInfo, ...]:
        await trio.lowlevel.checkpoint()
        return (SLEEPER,)

    async with filled(host, uses=3) as pool:
        async with pool.sandbox() as sandbox:
            host.boxes[0].processes = one  # type: ignore[method-assign]  # what is tested
        assert sandbox.state is State.DESTROYED
    assert "'sleep'" in caplog.text


@pytest.mark.parametrize("error", [CleanupError("it lives"), OSError("of a plugin")], ids=["in time", "plugin"])
@timeless
async def test_a_dead_box_that_cannot_be_removed_is_no_matter_of_the_next_user(
    host: Host, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with filled(host) as pool:
        host.boxes[0].steps |= {"ping": gone(), "aclose": raising(error)}
        async with pool.sandbox() as sandbox:
            assert sandbox is not host.boxes[0].sandbox
    assert "could not be closed" in caplog.text


@timeless
async def test_a_box_of_one_s_own_that_cannot_be_removed_is_told(host: Host) -> None:
    async with filled(host) as pool:
        with pytest.raises(CleanupError):
            async with pool.sandbox():
                host.boxes[0].steps["aclose"] = raising(CleanupError("it lives"))
        assert pool.stats().in_use == 0
        await pool.wait_filled()


@timeless
async def test_a_box_that_is_being_paused_is_for_whoever_comes_meanwhile(host: Host) -> None:
    host.starting[1] = Gate()  # no other box will ever start
    async with filled(host, uses=5) as pool, trio.open_nursery() as nursery:
        (box,) = host.boxes
        first, second = Claim(pool), Claim(pool)
        nursery.start_soon(first.run)
        await first.got.wait()
        gate = box.steps["pause"] = Gate()
        first.leave.set()
        await gate.reached.wait()
        nursery.start_soon(second.run)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
        await second.got.wait()
        assert second.sandbox is first.sandbox
        assert box.sandbox.state is State.RUNNING
        assert pool.stats().ready == 0
        second.leave.set()


@timeless
async def test_a_box_whose_next_user_goes_while_it_is_resumed_lies_ready(host: Host) -> None:
    host.starting[1] = Gate()
    async with filled(host, uses=5) as pool, trio.open_nursery() as nursery:
        (box,) = host.boxes
        first, second = Claim(pool), Claim(pool)
        nursery.start_soon(first.run)
        await first.got.wait()
        pausing, resuming = Gate(), Gate()
        box.steps |= {"pause": pausing, "resume": resuming}
        first.leave.set()
        await pausing.reached.wait()
        nursery.start_soon(second.run)
        await trio.testing.wait_all_tasks_blocked()
        pausing.open()
        await resuming.reached.wait()
        second.scope.cancel()
        await second.ended.wait()
        resuming.open()
        await pool.wait_filled()
        assert box.sandbox.state is State.PAUSED


# --- all of it at once -------------------------------------------------------------------------


class Trouble:
    """Steps that take a random time, and sometimes fail."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.over = False

    async def step(self) -> None:
        """Be one."""
        if self.over:
            return
        await trio.sleep(self.chance.choice((0, 0, 0.01, 0.1)))
        if self.chance.random() < 0.1:
            raise self.chance.choice((SandboxGone("gone"), OSError("of a plugin"), CleanupError("it lives")))

    def prepare(self, box: Box) -> None:
        """Have them in every place."""
        for name in ("processes", "ping", "pause", "resume", "aclose"):
            box.steps[name] = self.step


@pytest.mark.parametrize("seed", range(60))
@timeless
async def test_whatever_fails_whenever_no_box_is_lost_and_nobody_waits_for_ever(host: Host, seed: int) -> None:
    chance = random.Random(seed)
    trouble = Trouble(chance)
    host.prepare, host.always = trouble.prepare, trouble.step

    users_have_gone = trio.Event()

    async def use_by_many(pool: Pool) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(use, pool)
        users_have_gone.set()

    async def use(pool: Pool) -> None:
        await trio.sleep(chance.random() * 2)
        with trio.move_on_after(chance.choice((0.0, 0.01, 0.1, 0.3, 10))):
            try:
                async with pool.sandbox() as sandbox:
                    assert sandbox.state is State.RUNNING
                    await trio.sleep(chance.choice((0, 0.01, 0.1)))
            except (KavachError, OSError):
                return

    with trio.fail_after(BOUND_SECONDS):
        async with trio.open_nursery() as nursery:
            async with open_pool(size=chance.randint(1, 3), uses=chance.randint(1, 3), starting=2) as pool:
                nursery.start_soon(use_by_many, pool)
                await trio.sleep(chance.random() * 3)
                trouble.over = chance.random() < 0.5
                if trouble.over:
                    await users_have_gone.wait()
                    await pool.wait_filled()
                    while pool.stats().starting:
                        await pool._changed.wait()
                    assert len(host.alive()) == pool.stats().ready >= pool.options.size
                trouble.over = True
            assert len(host.alive()) == pool.stats().in_use
    assert host.alive() == []
    stats = pool.stats()
    assert (stats.ready, stats.starting, stats.in_use) == (0, 0, 0)
