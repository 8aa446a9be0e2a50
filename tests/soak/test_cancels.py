"""Cancelled at random moments: none hangs, none leaves anything."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from soaking import Holdings, Show, rounds, settled

import kavach_core as kavach_api
from kavach_core.errors import SandboxError

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("KAVACH_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
HANG_SECONDS = 30.0
Work = Callable[[], Awaitable[None]]


def works(backend: str, place: Path) -> dict[str, tuple[Work, float]]:
    """Return what is cancelled, and after how long at most."""
    place.mkdir()
    (place / "file").write_bytes(bytes(3_000_000))

    async def open_and_close() -> None:
        async with kavach_api.open_sandbox(backend=backend):
            pass

    async def use() -> None:
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(sandbox.shell, "setsid sleep 1000 >/dev/null 2>&1 & head -c 300000 /dev/zero")
                nursery.start_soon(lambda: sandbox.exec("cat", input=bytes(500_000)))
            await sandbox.exec("sleep", "1000")

    async def copy() -> None:
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            while True:
                await sandbox.files.upload(place, "/tmp/up")
                await sandbox.files.download("/tmp/up", place.with_name("down"))
                await sandbox.files.remove("/tmp/up", recursive=True)
                await trio.to_thread.run_sync(remove, place.with_name("down"))

    slow = 4.0 if backend == "gvisor" else 1.0
    return {"open and close": (open_and_close, 0.08 * slow), "exec": (use, 0.2 * slow), "files": (copy, 0.3 * slow)}


def remove(tree: Path) -> None:
    for path in sorted(tree.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    tree.rmdir()


def leftovers(place: Path) -> list[str]:
    """Return what is there beside the source and a copy that was complete, which is removed."""
    for whole in place.glob("down"):
        remove(whole)
    return [path.name for path in place.iterdir() if path.name != "place"]


async def test_cancelled_at_random_moments(backend: str, tmp_path: Path, show: Show) -> None:
    count = rounds(short=36, long=1000)
    chance = random.Random(f"{SEED} {backend}")
    kinds = works(backend, tmp_path / "place")
    await one(kinds["open and close"][0], 60.0)  # what is made once in a process is there now
    await settled()
    before, slowest = Holdings.now(), 0.0
    for number in range(count):
        name = list(kinds)[number % len(kinds)]
        work, most = kinds[name]
        slowest = max(slowest, await one(work, chance.random() * most))
        assert leftovers(tmp_path) == [], f"{name}, seed {SEED}"
    await settled()
    after = Holdings.now()
    show(
        before.row(f"{backend}, before"),
        after.row(f"{backend}, after {count} cancels"),
        f"the slowest took {slowest:.2f} s to leave, seed {SEED}",
    )
    assert (after.descriptors, after.children, after.cgroups) == (before.descriptors, before.children, before.cgroups)


async def one(work: Work, seconds: float) -> float:
    """Cancel some work after a while; return how long it took to leave."""
    began = time.monotonic()
    with trio.fail_after(seconds + HANG_SECONDS), trio.move_on_after(seconds):
        await work()
    return max(time.monotonic() - began - seconds, 0.0)


@pytest.mark.parametrize("how", ["close", "kill"])
async def test_closed_at_random_moments_of_commands(backend: str, how: str, show: Show) -> None:
    """Whoever waits for a command is told that the box has gone, and does not wait for ever."""
    count = rounds(short=6, long=200)
    chance = random.Random(f"{SEED} {backend} {how}")
    told = 0
    for _ in range(count):
        sandbox = await kavach_api.create_sandbox(backend=backend)

        async def run(sandbox: kavach_api.Sandbox = sandbox) -> None:
            nonlocal told
            try:
                while True:
                    await sandbox.exec("cat", input=bytes(100_000))
            except SandboxError:
                told += 1

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(run)
                await trio.sleep(chance.random() * 0.05)
                if how == "kill":
                    sandbox._session._box.kill()  # type: ignore[attr-defined]  # as the kernel of the host might
                else:
                    await sandbox.aclose()
            await sandbox.aclose()
    show(f"{backend}: {count} boxes ended by {how} under 4 commands each; {told} of {4 * count} were told")
    assert told == 4 * count
