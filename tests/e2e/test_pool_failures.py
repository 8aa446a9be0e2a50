"""A pool of real boxes when something goes wrong at a bad moment: it goes on, and no box outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import kavach_core as kavach_api
from kavach_core import State
from kavach_core.errors import CreateError, PoolClosed

BOUND_SECONDS = 120


def pids(sandbox: kavach_api.Sandbox) -> list[int]:
    return list(sandbox._session._box._launch.cgroup.pids())  # type: ignore[attr-defined]  # nobody else knows them


def kill_the_box(sandbox: kavach_api.Sandbox) -> None:
    """End a box as the kernel of the host might."""
    for pid in pids(sandbox):
        with contextlib.suppress(ProcessLookupError):  # the first one that dies takes the others along
            os.kill(pid, signal.SIGKILL)


def move(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


@pytest.fixture
def root() -> Iterator[Path]:
    """A root file system; not in tmp_path, which pytest keeps closed to other users."""
    with tempfile.TemporaryDirectory(prefix="kavach-pool-") as name:
        Path(name).chmod(0o755)
        root = Path(name) / "root"
        for directory in ("dev", "proc", "sys", "tmp"):
            (root / directory).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        yield root


async def test_a_claim_that_is_cancelled_while_its_box_is_woken(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kavach_api.open_pool(backend=backend, size=1) as pool:
        with trio.fail_after(BOUND_SECONDS):
            await pool.wait_filled()
            box = pool._ready[0].sandbox
            with trio.CancelScope() as scope:

                async def ping() -> None:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()

                monkeypatch.setattr(box._session, "ping", ping)
                async with pool.sandbox():
                    pytest.fail("it was cancelled")
            assert (box.state, pids(box)) == (State.DESTROYED, [])
            await pool.wait_filled()
            async with pool.sandbox() as sandbox:
                assert (await sandbox.exec("true", timeout=30)).ok


async def test_a_pool_that_is_closed_while_a_claim_removes_a_dead_box(backend: str) -> None:
    ended = trio.Event()

    async def claim(pool: kavach_api.Pool) -> None:
        with pytest.raises(PoolClosed):
            async with pool.sandbox():
                pytest.fail("there is no box")
        ended.set()

    with trio.fail_after(BOUND_SECONDS):
        async with trio.open_nursery() as nursery:
            async with kavach_api.open_pool(backend=backend, size=1) as pool:
                await pool.wait_filled()
                kill_the_box(pool._ready[0].sandbox)
                nursery.start_soon(claim, pool)
                while pool._ready:
                    await trio.lowlevel.checkpoint()
            await ended.wait()


async def test_a_box_that_dies_while_it_is_taken_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has done with it hears nothing, and the pool has another."""
    async with kavach_api.open_pool(backend=backend, size=1, uses=3) as pool:
        with trio.fail_after(BOUND_SECONDS):
            async with pool.sandbox() as box:
                really_pause = box._session.pause

                async def pause() -> None:
                    kill_the_box(box)
                    while pids(box):
                        await trio.lowlevel.checkpoint()
                    await really_pause()

                monkeypatch.setattr(box._session, "pause", pause)
            assert (box.state, pids(box)) == (State.DESTROYED, [])
            assert pool.stats().discarded == 1
            async with pool.sandbox() as other:
                assert other is not box


async def test_a_box_that_the_host_does_not_stop(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kavach_api.open_pool(backend=backend, size=1, uses=3) as pool:
        with trio.fail_after(BOUND_SECONDS):
            async with pool.sandbox() as box:
                freezer = box._session._box._freezer  # type: ignore[attr-defined]  # as above
                really_freeze = freezer.freeze

                def freeze() -> bool:
                    really_freeze()
                    return False

                monkeypatch.setattr(freezer, "freeze", freeze)
            assert (box.state, pids(box)) == (State.DESTROYED, [])


async def test_a_root_that_is_away_for_a_moment(backend: str, root: Path) -> None:
    """Whoever waits is told, who has a box keeps it, and the pool goes on when the root is back."""
    async with kavach_api.open_pool(backend=backend, rootfs=root, size=1) as pool:
        with trio.fail_after(BOUND_SECONDS):
            await pool.wait_filled()
            async with pool.sandbox() as mine:
                move(root, "away")
                with pytest.raises(CreateError, match="No such file") as caught:
                    async with pool.sandbox():
                        pytest.fail("there is no root")
                assert str(root) in str(caught.value)
                move(root.with_name("away"), root.name)
                await pool.wait_filled()
                assert mine.state is State.RUNNING
                async with pool.sandbox() as other:
                    assert other is not mine
