"""What the exec engine costs: inside a box, in many boxes, in a pool, at the end, in bytes, when nothing happens."""

from __future__ import annotations

import os
import time
from typing import Any

import trio
from measure import Measurements
from raw import RawBox
from startup import TRUE, kavach_warm

from kavach_core import Limits, Pool, Sandbox, open_pool, open_sandbox

BOXES = 16
LIVE_SECONDS = 3.0
MEGABYTE = 1_000_000
FILE_MEGABYTES = 50
STDOUT_MEGABYTES = 200
_REST_SECONDS = 0.1

# For each line: one vfork+exec+wait of the command, and the milliseconds it took, on the box's own clock.
INSIDE = f"""
import os, sys, time
for line in sys.stdin:
    began = time.perf_counter()
    os.waitpid(os.posix_spawn({TRUE!r}, [{TRUE!r}], {{}}), 0)
    print((time.perf_counter() - began) * 1000, flush=True)
"""


async def measure_inside(names: list[str], into: Measurements, rounds: int) -> None:
    """Compare a command from outside with a bare vfork+exec that a program of the same box does."""
    for name in names:
        async with (
            open_sandbox(backend=name) as sandbox,
            await sandbox.spawn("python3", "-c", INSIDE, stdin=True) as inside,
        ):
            assert inside.stdin is not None
            for number in range(rounds * 5 + 1):
                await inside.stdin.send_all(b"\n")
                bare = float(await inside.stdout.receive_some())
                began = time.perf_counter()
                await sandbox.exec(TRUE, check=True)
                if number:
                    into.add(f"{name}: exec", (time.perf_counter() - began) * 1000)
                    into.add(f"{name}: vfork+exec inside", bare)


async def measure_live(boxes: list[RawBox], into: Measurements, rounds: int) -> None:
    """Count commands per second, with as many at once as there are boxes, against the runtime's own exec."""
    for box in boxes:
        for _ in range(max(rounds // 10, 1)):
            into.add(f"{box.backend}: kavach, commands/s", await _kavach_rate(box.backend))
            with box.running():
                into.add(f"{box.backend}: raw exec, commands/s", await _rate([_raw_exec(box)] * BOXES))


async def _kavach_rate(name: str) -> float:
    async with trio.open_nursery() as nursery:
        opened: list[Sandbox] = []
        done = trio.Event()

        async def hold() -> None:
            async with open_sandbox(backend=name) as sandbox:
                opened.append(sandbox)
                await done.wait()

        for _ in range(BOXES):
            nursery.start_soon(hold)
        while len(opened) < BOXES:  # noqa: ASYNC110 - as they come
            await trio.sleep(0.01)
        rate = await _rate([kavach_warm(sandbox) for sandbox in opened])
        done.set()
    return rate


def _raw_exec(box: RawBox) -> Any:  # noqa: ANN401 - a case
    command = box.exec(TRUE)
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]

    async def case() -> None:
        pid = os.posix_spawn(command[0], command, {}, file_actions=null)  # noqa: ASYNC221 - as lean as can be
        pidfd = os.pidfd_open(pid)
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended
        assert status == 0

    return case


async def _rate(cases: list[Any]) -> float:
    """Return how many cases end in a second when each begins anew at its end."""
    ended = 0
    began = trio.current_time()

    async def repeat(case: Any) -> None:  # noqa: ANN401 - a case
        nonlocal ended
        while trio.current_time() - began < LIVE_SECONDS:
            await case()
            ended += 1

    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(repeat, case)
    return ended / (trio.current_time() - began)


async def measure_pool(names: list[str], into: Measurements, rounds: int) -> None:
    """Compare a box from a pool, with its first command, with a command in a live box."""
    for name in names:
        async with open_sandbox(backend=name) as sandbox, open_pool(backend=name, size=2) as pool:
            await sandbox.exec(TRUE, check=True)
            for _ in range(rounds):
                await pool.wait_filled()
                await trio.sleep(_REST_SECONDS)
                began = time.perf_counter()
                await sandbox.exec(TRUE, check=True)
                into.add(f"{name}: warm", (time.perf_counter() - began) * 1000)
                await trio.sleep(_REST_SECONDS)
                into.add(f"{name}: claim", await _claim(pool))


async def _claim(pool: Pool) -> float:
    began = time.perf_counter()
    async with pool.sandbox() as claimed:
        await claimed.exec(TRUE, check=True)
        return (time.perf_counter() - began) * 1000


async def measure_close(names: list[str], into: Measurements, rounds: int) -> None:
    """Measure the end of a box that has something to do."""
    for _ in range(rounds):
        for name in names:
            async with open_sandbox(backend=name) as sandbox:
                await sandbox.spawn("sh", "-c", "trap '' TERM; sleep 1000")
                await sandbox.exec(TRUE)
                began = time.perf_counter()
            into.add(f"{name}: close", (time.perf_counter() - began) * 1000)


async def measure_bytes(into: Measurements, rounds: int) -> None:
    """Measure how fast bytes go in and out of a box."""
    data = os.urandom(FILE_MEGABYTES * MEGABYTE)
    limits = Limits(tmp=256 * 1024 * 1024, memory=1024**3)  # type: ignore[arg-type]  # sizes in bytes
    async with open_sandbox(backend="runc", limits=limits) as sandbox:
        for _ in range(max(rounds // 4, 3)):
            began = time.perf_counter()
            await sandbox.files.write("/tmp/data", data)
            back = await sandbox.files.read("/tmp/data")
            into.add("runc: files, MB/s", 2 * FILE_MEGABYTES / (time.perf_counter() - began))
            assert back == data
            began = time.perf_counter()
            size = STDOUT_MEGABYTES * MEGABYTE
            result = await sandbox.exec("head", "-c", str(size), "/dev/zero", max_output=0, check=True)
            into.add("runc: stdout, MB/s", STDOUT_MEGABYTES / (time.perf_counter() - began))
            assert result.stdout_total_bytes == size


async def measure_idle(names: list[str], into: Measurements, rounds: int) -> None:
    """Measure the CPU time that we ourselves use while boxes are open and nothing happens."""
    for name in names:
        async with open_sandbox(backend=name) as sandbox:
            await sandbox.exec(TRUE)
            for _ in range(max(rounds // 4, 3)):
                before = time.process_time()
                await trio.sleep(1)
                into.add(f"{name}: idle, ms CPU/s", (time.process_time() - before) * 1000)
