"""Many boxes, many commands, many runs: all right, and nothing grows.

The short form is for every change; `KAVACH_SOAK=1` makes the long one.
"""

from __future__ import annotations

import gc
import time

import pytest
import trio
from soaking import MIB, Holdings, Show, rounds, settled

import kavach_core as kavach_api
from kavach_core import Limits

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


async def test_runs_in_a_row_leave_everything_flat(backend: str, show: Show) -> None:
    """A box each, opened, used and closed."""
    count = rounds(short=30, long=2000 if backend != "gvisor" else 300)

    async def run(number: int) -> None:
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            assert (await sandbox.exec("echo", str(number), timeout=60)).stdout == f"{number}\n"

    for number in range(10):
        await run(number)
    gc.collect()
    await settled()
    before, began = Holdings.now(), time.monotonic()
    for number in range(count):
        await run(number)
    gc.collect()
    await settled()
    after, seconds = Holdings.now(), time.monotonic() - began
    show(
        before.row(f"{backend}, before"),
        after.row(f"{backend}, after {count}"),
        f"{seconds / count:.3f} s each",
    )
    assert after.rss - before.rss < 8 * MIB
    flat = {"descriptors", "children", "cgroups", "mounts"}
    assert {name: getattr(after, name) for name in flat} == {name: getattr(before, name) for name in flat}
    assert after.threads <= before.threads + 1


async def test_commands_in_a_row_leave_everything_flat(backend: str, show: Show) -> None:
    count = rounds(short=200, long=2000)
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        for _ in range(20):
            await sandbox.exec("true", timeout=60)
        gc.collect()
        await settled()
        before = Holdings.now()
        for number in range(count):
            assert (await sandbox.exec("echo", str(number), timeout=60)).stdout == f"{number}\n"
        gc.collect()
        await settled()
        after = Holdings.now()
        assert await sandbox.processes() == ()
    show(before.row(f"{backend}, before"), after.row(f"{backend}, after {count} commands"))
    assert after.rss - before.rss < 4 * MIB
    assert (after.descriptors, after.children, after.cgroups) == (before.descriptors, before.children, before.cgroups)


async def test_boxes_at_once(backend: str, show: Show) -> None:
    """All alive at the same moment."""
    most = 50 if backend == "gvisor" else 200
    count = rounds(short=8 if backend == "gvisor" else 25, long=most)
    results: dict[int, str] = {}
    opened = 0
    all_open = trio.Event()
    starting = trio.CapacityLimiter(4)

    async def use(number: int) -> None:
        nonlocal opened
        async with starting:
            stack = kavach_api.open_sandbox(backend=backend)
            sandbox = await stack.__aenter__()
        try:
            opened += 1
            if opened == count:
                all_open.set()
            await all_open.wait()
            results[number] = (await sandbox.shell(f"echo {number} >/tmp/x; cat /tmp/x", timeout=300)).stdout
        finally:
            await stack.__aexit__(None, None, None)

    began = time.monotonic()
    with trio.fail_after(1200):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(use, number)
    show(f"{backend}: {count} boxes at once, {time.monotonic() - began:.1f} s from the first to the last close")
    assert results == {number: f"{number}\n" for number in range(count)}


async def test_commands_at_once(backend: str, show: Show) -> None:
    """Each with input, both outputs and a status of its own."""
    count = rounds(short=100 if backend == "gvisor" else 500, long=500)
    script = "read line; echo out $line; echo err $line >&2; exit $((line % 200))"
    limits = Limits(pids=2048, memory=4096 * MIB)  # type: ignore[arg-type]  # a size in bytes
    seen: list[tuple[str, str, int]] = []
    began = time.monotonic()
    async with kavach_api.open_sandbox(backend=backend, limits=limits) as sandbox:

        async def run(number: int) -> None:
            result = await sandbox.shell(script, input=f"{number}\n", timeout=600)
            seen.append((result.stdout, result.stderr, result.exit_code))

        with trio.fail_after(900):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(run, number)
        assert await sandbox.processes() == ()
    show(f"{backend}: {count} commands at once, {time.monotonic() - began:.1f} s")
    assert sorted(seen) == sorted((f"out {n}\n", f"err {n}\n", n % 200) for n in range(count))
