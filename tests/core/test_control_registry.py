"""The socket in a program that has boxes: who is reached, and that nothing here ends a program."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from control_box import BOUND_SECONDS, BOX, DONE, Box, Files, ask_at

from kavach_core.control import registry, server
from kavach_core.control.client import Owned, ask
from kavach_core.control.wire import UNKNOWN_BOX, Copied, Direction, Refused, Request


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an instance of this process."""
    monkeypatch.setattr(registry, "workspace", lambda: SimpleNamespace(path=tmp_path))
    return tmp_path


def test_a_box_is_reached_from_its_registration_to_the_end_of_it(instance: Path) -> None:
    path = instance / "control"

    async def main() -> None:
        assert not path.exists()
        box = Box(Files())
        registry.register(box)
        assert await ask_at(str(path)) == DONE
        registry.unregister(box)
        registry.unregister(box)
        gone = await ask_at(str(path))
        assert isinstance(gone, Refused)
        assert gone.code == UNKNOWN_BOX
        registry.register(box)
        assert await ask_at(str(path)) == DONE

    for _ in range(2):
        trio.run(main)
        assert not path.exists()


def test_a_box_that_is_forgotten_is_not_kept(instance: Path) -> None:
    async def main() -> None:
        box = Box(Files())
        registry.register(box)
        del box
        gc.collect()
        gone = await ask_at(str(instance / "control"))
        assert isinstance(gone, Refused)

    trio.run(main)


def test_two_loops_of_a_process_are_reached_both(instance: Path) -> None:
    barrier = threading.Barrier(2)
    names = [BOX, "f" * 16]
    answers: list[Copied | Refused] = []

    async def main(name: str) -> None:
        box = Box(Files(), name)
        registry.register(box)
        await trio.to_thread.run_sync(barrier.wait)
        asked = Request(box=name, direction=Direction.UPLOAD, local="/a", remote="x")
        answers.append(await trio.to_thread.run_sync(ask, Owned(box_id=name, directory=str(instance)), asked))
        await trio.to_thread.run_sync(barrier.wait)

    threads = [threading.Thread(target=trio.run, args=(main, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS)
    assert answers == [DONE, DONE]
    assert not list(instance.iterdir())


def test_a_program_without_an_instance_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "workspace", lambda: None)

    async def main() -> None:
        registry.register(Box(Files()))

    trio.run(main)


def test_a_program_that_cannot_listen_is_told_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "workspace", lambda: SimpleNamespace(path="/nonexistent"))

    async def main() -> None:
        for _ in range(2):
            registry.register(Box(Files()))

    trio.run(main)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_failing_server_ends_no_program(
    instance: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server, "_accept", fail)

    async def main() -> None:
        registry.register(Box(Files()))
        with trio.fail_after(BOUND_SECONDS):
            while (instance / "control").exists():  # noqa: ASYNC110 - the file system sets no trio.Event
                await trio.sleep(0.01)

    trio.run(main)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_forked_child_neither_holds_nor_removes_it(tmp_path: Path) -> None:
    script = """
import os, sys, threading, trio
from types import SimpleNamespace
from kavach_core.control import registry

registry.workspace = lambda: SimpleNamespace(path=sys.argv[1])
ready, over = threading.Event(), threading.Event()

class Box:
    id = "0" * 16
    files = None

async def main():
    box = Box()
    registry.register(box)
    await trio.sleep(0)
    ready.set()
    await trio.to_thread.run_sync(over.wait)

def listeners():
    path = sys.argv[1] + "/control"
    inodes = {line.split()[6] for line in open("/proc/net/unix") if line.endswith(f" {path}\\n")}
    links = [os.readlink(entry.path) for entry in list(os.scandir("/proc/self/fd")) if os.path.islink(entry.path)]
    return sum(link == f"socket:[{inode}]" for link in links for inode in inodes)

threading.Thread(target=trio.run, args=(main,)).start()
ready.wait()
assert listeners() == 1, "listening"
child = os.fork()
if not child:
    sys.exit(listeners())
assert os.waitpid(child, 0)[1] == 0, "the child holds it"
assert os.path.exists(sys.argv[1] + "/control"), "the child has removed it"
over.set()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_SECONDS,
    )
    assert done.returncode == 0, done.stderr
