"""A quick ``kavach run`` whose box is asked for: it goes on as if nobody had asked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from held_runs import BOUND_SECONDS, Held, Hold

from kavach_core.control.wire import Copied
from kavach_core.errors import SandboxError

MIB = 1024**2


def feed(pipe: IO[bytes], data: bytes) -> None:
    with pipe:
        pipe.write(data)


@pytest.mark.parametrize("after", [0, 1, 70_000, 1_000_000, 5_000_000, 11_900_000])
def test_no_byte_is_lost_or_doubled(hold: Hold, after: int, tmp_path: Path) -> None:
    """A stream goes both ways while somebody asks for the box when so much of it has come.

    The last times the command has ended and some of its output has not been read.
    """
    data = secrets.token_bytes(12_000_000)
    box = hold("cat; exit 7", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stdin, stdout = box.process.stdin, box.process.stdout
    assert stdin is not None
    assert stdout is not None
    feeder = threading.Thread(target=feed, args=(stdin, data))
    feeder.start()
    seen = stdout.read(after)
    with ThreadPoolExecutor() as others:
        asked = others.submit(box.download, "/etc/passwd", tmp_path / "first")
        while len(seen) < len(data) - 100_000 and not asked.done():
            seen += stdout.read(30_000)
        answer = asked.result()
    seen += stdout.read()
    feeder.join()
    assert isinstance(answer, Copied), answer
    assert box.process.wait(BOUND_SECONDS) == 7
    assert hashlib.sha256(seen).digest() == hashlib.sha256(data).digest()


def test_it_is_reached_while_nobody_reads_its_output(hold: Hold, tmp_path: Path) -> None:
    size = 4 * MIB
    script = f"read x; head -c {size} /dev/zero | tr '\\0' x; head -c {size} /dev/zero | tr '\\0' y; exec sleep 1000"
    box = hold(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert box.process.stdin is not None
    feed(box.process.stdin, b"\n")
    stdout = box.process.stdout
    assert stdout is not None
    assert isinstance(box.download("/etc/passwd", tmp_path / "one"), Copied)
    assert stdout.read(size) == b"x" * size
    assert isinstance(box.download("/etc/passwd", tmp_path / "two"), Copied)
    assert stdout.read(size) == b"y" * size
    assert box.end() == 128 + signal.SIGTERM


def test_our_output_does_not_become_another_for_others(hold: Hold, tmp_path: Path) -> None:
    """Whoever shares a pipe with us relies on its flags."""
    reading, writing = os.pipe()
    try:
        box = hold("read x; head -c 1000000 /dev/zero; exec sleep 1000", stdin=subprocess.PIPE, stdout=writing)
        assert box.process.stdin is not None
        feed(box.process.stdin, b"\n")  # what is stuck would keep the word on the other stream back
        assert isinstance(box.download("/etc/passwd", tmp_path / "one"), Copied)
        assert os.get_blocking(writing)
    finally:
        os.close(reading)
        os.close(writing)
    assert box.process.wait(BOUND_SECONDS) == 141


def asked_in_time(hold: Hold, target: Path) -> Held:
    """Return a run with a deadline whose box was asked for before that; where that comes too soon, with a later one."""
    for seconds in (2, 8, 32):
        begun = time.monotonic()
        with contextlib.suppress(SandboxError):
            box = hold("echo out; exec sleep 1000", "--timeout", str(seconds), stdout=subprocess.PIPE)
            if isinstance(box.download("/etc/passwd", target), Copied):
                return box
        assert time.monotonic() - begun >= seconds, "its deadline is the only excuse"
    pytest.fail("never before its deadline")


def test_bounds_and_ends_are_the_same_afterwards(hold: Hold, tmp_path: Path) -> None:
    late = asked_in_time(hold, tmp_path / "late")
    killed = hold("read x; kill -9 $$", stdin=subprocess.PIPE)
    unread = hold("read x; while echo y; do :; done", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for name, box in (("killed", killed), ("unread", unread)):
        assert isinstance(box.download("/etc/passwd", tmp_path / name), Copied)
    assert unread.process.stdout is not None
    unread.process.stdout.close()
    for box in (killed, unread):
        assert box.process.stdin is not None
        feed(box.process.stdin, b"\n")
    assert killed.process.wait(BOUND_SECONDS) == 128 + signal.SIGKILL
    assert unread.process.wait(BOUND_SECONDS) == 141
    assert late.process.wait(BOUND_SECONDS) == 124
    assert late.process.stdout is not None
    assert late.process.stdout.read() == b"out\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_afterwards(hold: Hold, number: int, tmp_path: Path) -> None:
    box = hold("trap '' INT TERM HUP; while :; do sleep 1; done")
    assert isinstance(box.download("/etc/passwd", tmp_path / "one"), Copied)
    assert box.end(number) == 128 + number


def test_a_signal_in_the_middle_of_it(hold: Hold) -> None:
    for _ in range(5):
        box = hold("exec sleep 1000")
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.connect(box.control)
            assert box.end() == 128 + signal.SIGTERM
        assert box.process.stderr is not None
        assert box.process.stderr.read() == b""
