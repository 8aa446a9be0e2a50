"""Bytes without end, in both directions: exact where they are kept, bounded where they are not."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator

import pytest
import trio
from soaking import MIB, Show, host_rss, rounds

import kavach_core as kavach_api
from kavach_core.errors import ConfigError

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

GROWTH = 32 * MIB
FLOOD = "head -c {half} /dev/zero & head -c {half} /dev/zero >&2; wait"


class Peak:
    """The most memory that this process has held while a block ran, above what it held before."""

    def __init__(self) -> None:
        self.before = host_rss()
        self.most = self.before

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.most = max(self.most, host_rss())
            await trio.sleep(0.02)

    @property
    def growth(self) -> int:
        """How many bytes more."""
        return max(self.most, host_rss()) - self.before


async def test_a_flood_that_nobody_keeps(backend: str, show: Show) -> None:
    """It passes, is counted to the byte, and costs no memory."""
    total = rounds(short=200, long=5000 if backend != "gvisor" else 2000) * 1_000_000
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        await sandbox.exec("true")
        peak = Peak()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peak.watch)
            result = await sandbox.shell(FLOOD.format(half=total // 2), max_output=1000, timeout=1800)
            nursery.cancel_scope.cancel()
    show(
        f"{backend}: {total / 1e6:.0f} MB dropped in {result.duration_seconds:.1f} s, +{peak.growth / MIB:.1f} MiB",
    )
    assert (result.stdout_total_bytes, result.stderr_total_bytes) == (total // 2, total // 2)
    assert (len(result.stdout_bytes), result.truncated) == (1000, True)
    assert peak.growth < GROWTH


async def test_a_flood_that_nobody_reads(backend: str, show: Show) -> None:
    """Its command stands still, as many of them as there are, and others go on."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        await sandbox.exec("true")
        peak = Peak()
        floods = [await sandbox.spawn("sh", "-c", FLOOD.format(half=2_500_000_000)) for _ in range(8)]
        for number in range(rounds(short=30, long=300)):
            assert (await sandbox.exec("echo", str(number), timeout=60)).stdout == f"{number}\n"
        assert all(flood.poll() is None for flood in floods)
        show(f"{backend}: 8 floods of 5 GB unread, +{peak.growth / MIB:.1f} MiB")
        assert peak.growth < GROWTH


async def test_bytes_come_as_they_went(backend: str) -> None:
    """Binary, no newline, no valid UTF-8; in both directions at once."""
    size = rounds(short=5, long=100) * 1_000_000
    dice = random.Random(5)
    sent, came = hashlib.sha256(), hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        left = size
        while left:
            piece = dice.randbytes(min(left, dice.randrange(1, 200_000)))
            sent.update(piece)
            left -= len(piece)
            yield piece

    async def take(data: bytes) -> None:
        came.update(data)

    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("cat", input=pieces(), on_stdout=take, max_output=0, timeout=1800)
    assert result.stdout_total_bytes == result.stdin_total_bytes == size
    assert came.digest() == sent.digest()


@pytest.mark.parametrize("command", [("sleep", "0.5"), ("sh", "-c", "exec <&-; sleep 0.5"), ("true",)])
async def test_input_that_nobody_reads_holds_nothing_up(backend: str, command: tuple[str, ...]) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        peak = Peak()
        with trio.fail_after(60):
            result = await sandbox.exec(*command, input=bytes(50_000_000))
        assert result.ok
        assert peak.growth < 50_000_000 + GROWTH
        assert (await sandbox.exec("echo", "next")).stdout == "next\n"


@pytest.mark.parametrize("size", [100_000, 900_000, 1_000_000, 2_000_000])
async def test_a_long_command_is_passed_whole_or_refused(backend: str, size: int) -> None:
    words = ["x" * 1000] * (size // 1000)
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        try:
            result = await sandbox.exec("sh", "-c", 'echo $#; printf %s "$@" | wc -c', "sh", *words, timeout=60)
        except ConfigError as error:
            assert size >= 900_000
            assert "at most" in str(error)  # noqa: PT017 - one of two ends
        else:
            assert result.stdout.split() == [str(len(words)), str(size)]
