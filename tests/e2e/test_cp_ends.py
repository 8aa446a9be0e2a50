"""``kavach cp`` when a client or an owner ends in the middle of it, and clients that are odd."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio
from held_runs import BOUND_SECONDS, Hold, described

import kavach_core as kavach_api
from kavach_core.control.client import ask, find_boxes
from kavach_core.control.wire import Copied, Direction, Refused, Request, encode_request
from kavach_core.errors import SandboxError

LARGE = "truncate -s 1000M /work/large"
"""A file that costs the box nothing, and is not copied in a moment."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory to copy into."""
    path = tmp_path / "target"
    path.mkdir()
    return path


def outcome(asked: Callable[[], Copied | Refused]) -> str:
    """Return the code of what came of a copy, whoever tells it."""
    try:
        answer = asked()
    except SandboxError as error:
        return error.code
    return answer.code if isinstance(answer, Refused) else "copied"


def test_a_client_that_ends_ends_its_copy(hold: Hold, host: Any, target: Path, tmp_path: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000", before=LARGE)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(box.control)
        asked = Request(box=box.id, direction=Direction.DOWNLOAD, local=str(target), remote="large")
        connection.sendall(encode_request(asked))
        assert host.until(lambda: box.has_open(target), seconds=30)
    assert host.until(lambda: not box.has_open(target) and list(target.iterdir()) == [], seconds=30)
    assert isinstance(box.download("/etc/passwd", tmp_path / "one"), Copied)
    assert box.process.poll() is None


def test_kavach_cp_that_is_killed(hold: Hold, host: Any, kavach: Path, target: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000", before=LARGE)
    with subprocess.Popen([kavach, "cp", f"{box.id}:large", target]) as client:
        assert host.until(lambda: box.has_open(target), seconds=30)
        client.kill()
    assert host.until(lambda: not box.has_open(target) and list(target.iterdir()) == [], seconds=30)


def test_an_owner_that_ends_meanwhile(hold: Hold, host: Any, target: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000", before=LARGE)
    with ThreadPoolExecutor() as others:
        asked = others.submit(box.download, "large", target)
        assert host.until(lambda: box.has_open(target), seconds=30)
        assert box.end() == 128 + signal.SIGTERM
        assert outcome(asked.result) == "sandbox_gone"
    assert list(target.iterdir()) == []


async def test_a_sandbox_that_is_closed_meanwhile(backend: str, target: Path) -> None:
    codes: list[str] = []
    with trio.fail_after(BOUND_SECONDS):
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            await sandbox.shell(LARGE, check=True)
            owned = find_boxes(sandbox.id)[0]
            asked = Request(box=sandbox.id, direction=Direction.DOWNLOAD, local=str(target), remote="large")

            async def copy() -> None:
                codes.append(await trio.to_thread.run_sync(outcome, lambda: ask(owned, asked)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy)
                while not list(target.iterdir()):  # noqa: ASYNC110, ASYNC240 - the file system sets no trio.Event
                    await trio.sleep(0.01)
                await sandbox.aclose()
    assert codes == ["sandbox_gone"]
    assert list(target.iterdir()) == []  # noqa: ASYNC240 - nothing waits for it


def test_odd_clients_do_no_harm(hold: Hold, tmp_path: Path) -> None:
    box = hold("exec sleep 1000")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for connection in silent:
        connection.connect(box.control)
    for data in (b"garbage\n", bytes(1_000_000), b"", b'{"version":1'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(box.control)
            try:
                connection.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                continue
    assert isinstance(box.download("/etc/passwd", tmp_path / "one"), Copied)
    for connection in silent:
        connection.close()
    assert box.has_trio()
    assert box.process.poll() is None
    assert box.end() == 128 + signal.SIGTERM


def test_many_at_once_and_nothing_held(hold: Hold, host: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000")

    def both_ways(number: int) -> bool:
        up = box.upload(tree, f"tree{number}")
        down = box.download(f"tree{number}", tmp_path / f"back{number}")
        return isinstance(up, Copied) and isinstance(down, Copied)

    assert both_ways(0)
    before = box.descriptors()
    with ThreadPoolExecutor(8) as others:
        assert all(others.map(both_ways, range(1, 9)))
    assert all(described(tmp_path / f"back{number}") == described(tree) for number in range(9))
    assert host.until(lambda: box.descriptors() <= before)
