"""Boxes started ahead: ready, paused, given out once, replaced, and gone with the pool."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import trio
import trio.testing

import kavach_core as kavach_api
from kavach_core import State
from kavach_core.errors import ConfigError, CreateError, KavachError, PoolClosed, UnknownPlugin
from kavach_core.pool import pace

BOUND_SECONDS = 120


def kill_the_box(sandbox: kavach_api.Sandbox) -> None:
    """End a box as the kernel of the host might."""
    for pid in sandbox._session._box._launch.cgroup.pids():  # type: ignore[attr-defined]  # nobody else knows its pids
        with contextlib.suppress(ProcessLookupError):  # the first one that dies takes the others along
            os.kill(pid, signal.SIGKILL)


async def test_boxes_are_ready_and_stand_still(backend: str) -> None:
    async with kavach_api.open_pool(backend=backend, size=2) as pool:
        with trio.fail_after(BOUND_SECONDS):
            await pool.wait_filled()
        boxes = [lease.sandbox for lease in pool._ready]
        assert [box.state for box in boxes] == [State.PAUSED] * 2
        before = [(await box.usage()).cpu_seconds for box in boxes]
        await trio.sleep(0.5)
        assert [(await box.usage()).cpu_seconds for box in boxes] == before
        async with pool.sandbox() as sandbox:
            assert sandbox in boxes
            assert (await sandbox.exec("echo", "hi", timeout=30)).stdout == "hi\n"
        stats = pool.stats()
        assert (stats.hits, stats.waits, stats.wait_seconds) == (1, 0, 0.0)
    assert [box.state for box in boxes] == [State.DESTROYED] * 2


async def test_each_box_is_used_once(backend: str) -> None:
    seen = set()
    async with kavach_api.open_pool(backend=backend, size=1) as pool:
        with trio.fail_after(BOUND_SECONDS):
            for _ in range(3):
                async with pool.sandbox() as sandbox:
                    result = await sandbox.shell("test ! -e /tmp/mark; echo $? $(ls /tmp); touch /tmp/mark")
                    assert result.stdout == "0\n"
                    seen.add(sandbox.id)
                assert sandbox.state is State.DESTROYED
    assert len(seen) == 3


async def test_more_who_want_one_than_there_are(backend: str) -> None:
    """Each waits until a box has been started for it."""
    done: list[str] = []
    async with kavach_api.open_pool(backend=backend, size=1) as pool:

        async def use(number: int) -> None:
            async with pool.sandbox() as sandbox:
                done.append((await sandbox.exec("echo", str(number), timeout=60)).stdout.strip())

        with trio.fail_after(BOUND_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(use, number)
        stats = pool.stats()
        assert stats.hits + stats.waits == 8
        assert stats.waits >= 7
        assert stats.wait_seconds > 0
        assert stats.in_use == 0
    assert sorted(done) == [str(number) for number in range(8)]


async def test_a_box_that_died_while_it_waited_is_replaced(backend: str) -> None:
    async with kavach_api.open_pool(backend=backend, size=1) as pool:
        with trio.fail_after(BOUND_SECONDS):
            await pool.wait_filled()
            dead = pool._ready[0].sandbox
            kill_the_box(dead)
            async with pool.sandbox() as sandbox:
                assert sandbox is not dead
                assert (await sandbox.exec("true", timeout=30)).ok
        assert pool.stats().discarded == 1


async def test_a_box_that_may_be_used_again(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_SETTLE_SECONDS", BOUND_SECONDS)  # no other is started while this one is in use
    async with kavach_api.open_pool(backend=backend, size=1, uses=3) as pool:
        with trio.fail_after(BOUND_SECONDS):
            await pool.wait_filled()
            used = []
            for _ in range(4):
                async with pool.sandbox() as sandbox:
                    await sandbox.exec("true", timeout=30)
                    used.append(sandbox.id)
        assert used[0] == used[1] == used[2] != used[3]


@pytest.mark.parametrize("leave", ["sleep 1000 >/dev/null 2>&1 &", "kill the box"])
async def test_a_box_with_something_left_in_it_is_not_used_again(leave: str) -> None:
    async with kavach_api.open_pool(size=1, uses=10) as pool:
        with trio.fail_after(BOUND_SECONDS):
            async with pool.sandbox() as first:
                if leave == "kill the box":
                    kill_the_box(first)
                else:
                    await first.shell(leave)
            assert first.state is State.DESTROYED
            async with pool.sandbox() as second:
                assert second.id != first.id
        assert pool.stats().discarded == 1


async def test_what_cannot_be_started_is_told_to_who_waits() -> None:
    async with kavach_api.open_pool(backend="runc", rootfs="/etc", cwd="/nowhere", size=3) as pool:
        for _ in range(2):
            with trio.fail_after(BOUND_SECONDS), pytest.raises(KavachError) as caught:
                async with pool.sandbox():
                    pytest.fail("there is no box")
            assert isinstance(caught.value, (ConfigError, CreateError))
        assert pool.stats().failed >= 2


async def test_an_unknown_backend_is_told_alike() -> None:
    async with kavach_api.open_pool(backend="nothing-like-it", size=1) as pool:
        with trio.fail_after(BOUND_SECONDS), pytest.raises(UnknownPlugin):
            async with pool.sandbox():
                pytest.fail("there is no box")


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": -1}, {"size": 1, "uses": 0}, {"size": 1, "starting": 0}, {"size": 1.5}]
)
async def test_options_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        async with kavach_api.open_pool(**options):  # type: ignore[arg-type]  # what is tested
            pytest.fail("it was opened")


async def test_a_closed_pool_gives_nothing() -> None:
    async with kavach_api.open_pool(size=1) as pool:
        pass
    with pytest.raises(PoolClosed):
        async with pool.sandbox():
            pytest.fail("there is no box")
    with pytest.raises(PoolClosed):
        await pool.wait_filled()


async def test_who_waits_when_it_is_closed_is_told() -> None:
    async with trio.open_nursery() as nursery:
        told = trio.Event()

        async def wait(pool: kavach_api.Pool) -> None:
            with pytest.raises(PoolClosed):
                async with pool.sandbox():
                    pytest.fail("there is no box")
            told.set()

        async with kavach_api.open_pool(size=1) as pool:
            nursery.start_soon(wait, pool)
            await trio.testing.wait_all_tasks_blocked()  # also on the box that boots
        await told.wait()


async def test_errors_of_the_caller_come_out_bare() -> None:
    with pytest.raises(ZeroDivisionError):
        async with kavach_api.open_pool(size=1):
            _ = 1 / 0


@pytest.mark.parametrize("step_seconds", [0.0, 0.002, 0.01, 0.05])
async def test_a_claim_that_is_cancelled_loses_no_box(step_seconds: float) -> None:
    async with kavach_api.open_pool(backend="runc", size=2) as pool:
        with trio.fail_after(BOUND_SECONDS):
            for number in range(8):
                with trio.move_on_after(step_seconds * number / 4):
                    async with pool.sandbox() as sandbox:
                        await sandbox.exec("true")
            await pool.wait_filled()
            async with pool.sandbox() as sandbox:
                assert (await sandbox.exec("true", timeout=30)).ok
            stats = pool.stats()
            assert stats.in_use == 0


async def test_a_pool_that_is_cancelled_leaves_nothing(backend: str) -> None:
    for seconds in (0.0, 0.01, 0.05, 0.2):
        with trio.move_on_after(seconds):
            async with kavach_api.open_pool(backend=backend, size=3) as pool, pool.sandbox() as sandbox:
                await sandbox.exec("sleep", "1000")
