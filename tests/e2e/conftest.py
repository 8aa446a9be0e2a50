"""What tests with real boxes share: runs that are held, trees, checkouts, and a look at the threads."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for what several modules here use

from checkouts import Checkout, copy_checkout
from held_runs import BOUND_SECONDS, Held, Hold


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """After the test there are as many threads as before; trio's own go by themselves when they are idle."""
    before = threads()
    yield
    assert threads() == before


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


@pytest.fixture
def hold(kavach: Path, backend: str, way: str, host: Any) -> Iterator[Hold]:  # noqa: ANN401 - a witness
    """Start ``kavach run`` with a script that says ``ready`` on standard error, and wait for that.

    It goes the way of the test whatever its options: a plan is kept for the very options of an earlier run.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str, *options: str, before: str = "true", **streams: Any) -> Held:  # noqa: ANN401 - for Popen
        words = ["sh", "-c", f"{before} && echo ready >&2; {script}"]
        base = [kavach, "run", "-b", backend, *options, "--"]
        if options and way == "kept plan":
            subprocess.run([*base, "true"], check=True, timeout=BOUND_SECONDS)
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams}
        process = subprocess.Popen([*base, *words], stderr=subprocess.PIPE, **given)
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line == b"ready\n", line + process.stderr.read()
        held = Held(process, host)
        assert held.has_trio() is (way == "long way")
        return held

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        process.wait(BOUND_SECONDS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with what can be copied."""
    path = tmp_path / "tree"
    (path / "sub/empty").mkdir(parents=True)
    (path / "sub/file").write_bytes(secrets.token_bytes(300_000))
    (path / "sub/file").chmod(0o640)
    (path / "script").write_text("#!/bin/sh\n")
    (path / "script").chmod(0o755)
    (path / "odd \xff\n name".encode("latin-1").decode(errors="surrogateescape")).touch()
    (path / "link").symlink_to("sub/file")
    return path


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    """A copy of the checkout that was never set up."""
    # Not tmp_path: pytest keeps that closed to other users.
    with tempfile.TemporaryDirectory(prefix="kavach scripts ") as name:
        Path(name).chmod(0o755)
        yield copy_checkout(Path(name) / "my checkout")


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    """One that was set up for tests."""
    checkout.ensure_ready("test")
    return checkout
