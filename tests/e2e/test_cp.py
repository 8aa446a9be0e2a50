"""``kavach cp`` with real boxes of other processes: the long way, the quick way, and from one to the other."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
import trio

import kavach_core as kavach_api
from kavach_core import blocking
from kavach_core.control.client import ask, find_boxes
from kavach_core.control.wire import Copied, Direction, Refused, Request, encode_request
from kavach_core.errors import SandboxError

MIB = 1024**2
BOUND_SECONDS = 60


class Held:
    """A ``kavach run`` whose box is asked for."""

    def __init__(self, process: subprocess.Popen[bytes], host: Any) -> None:  # noqa: ANN401 - a witness of conftest
        self.process = process
        self.boxes = host.boxes_of(process.pid)
        (self.id,) = self.boxes

    @property
    def control(self) -> str:
        """The path of its socket."""
        return f"{find_boxes(self.id)[0].directory}/control"

    def ask(self, direction: Direction, local: Path | str, remote: str) -> Copied | Refused:
        """Do what ``kavach cp`` does, without its start."""
        request = Request(box=self.id, direction=direction, local=str(local), remote=remote)
        return ask(find_boxes(self.id)[0], request)

    def upload(self, local: Path | str, remote: str) -> Copied | Refused:
        return self.ask(Direction.UPLOAD, local, remote)

    def download(self, remote: str, local: Path | str) -> Copied | Refused:
        return self.ask(Direction.DOWNLOAD, local, remote)

    def has_trio(self) -> bool:
        """Say whether it has imported trio, which brings the library's TLS along."""
        return "/_ssl." in Path(f"/proc/{self.process.pid}/maps").read_text()

    def has_open(self, directory: Path) -> bool:
        """Say whether it has a file below a directory open."""
        links = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return any(os.path.realpath(link).startswith(f"{directory}/") for link in links)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(BOUND_SECONDS)


Hold = Callable[..., Held]


@pytest.fixture
def hold(kavach: Path, backend: str, way: str, host: Any) -> Iterator[Hold]:  # noqa: ANN401, ARG001 - chosen by it
    """Start ``kavach run`` with a script that says ``ready`` on standard error, and wait for that."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str, *options: str, before: str = "true", **streams: Any) -> Held:  # noqa: ANN401 - for Popen
        words = ["sh", "-c", f"{before} && echo ready >&2; {script}"]
        command = [kavach, "run", "-b", backend, *options, "--", *words]
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, **given)
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line == b"ready\n", line + process.stderr.read()
        return Held(process, host)

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


def described(path: Path) -> dict[str, tuple[str, object]]:
    """Return all that is to be kept of a tree."""

    def about(entry: Path) -> tuple[str, object]:
        if entry.is_symlink():
            return "link", os.readlink(entry)  # noqa: PTH115 - text
        mode = oct(entry.stat().st_mode)
        return mode, None if entry.is_dir() else hashlib.sha256(entry.read_bytes()).hexdigest()

    return {str(entry.relative_to(path)): about(entry) for entry in path.rglob("*")}


# --- the command ------------------------------------------------------------------------------------


def test_there_and_back(hold: Hold, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401 - of conftest
    box = hold("exec sleep 1000")
    up = run_kavach("cp", "--json", tree, f"{box.id[:15]}:new")
    assert (up.returncode, up.stderr) == (0, b"")
    (told,) = json.loads(up.stdout)
    assert (told["path"], told["files"], told["directories"], told["symlinks"]) == ("new", 3, 3, 1)
    down = run_kavach("cp", f"{box.id}:/work/new", tmp_path / "back")
    assert (down.returncode, down.stdout, down.stderr) == (0, b"", b"")
    assert described(tmp_path / "back") == described(tree)
    (tmp_path / "into").mkdir()
    several = run_kavach("cp", f"{box.id}:new/script", f"{box.id}:new/sub", tmp_path / "into")
    assert several.returncode == 0
    assert sorted(path.name for path in (tmp_path / "into").iterdir()) == ["script", "sub"]
    assert box.end() == 128 + signal.SIGTERM


def test_errors_are_one_line_each(hold: Hold, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000")
    cases: list[tuple[tuple[str | Path, ...], list[str]]] = [
        ((f"{box.id}:none", tmp_path), ["No such file or directory: '/work/none'"]),
        ((tmp_path / "none", f"{box.id}:x"), [f"No such file or directory: '{tmp_path}/none'"]),
        ((tree / "script", f"{box.id}:/usr/x"), ["Read-only file system"]),
        ((tree / "script", f"{box.id}:none/"), ["Not a directory: 'none/'"]),
        ((tree / "link", f"{box.id}:x"), ["symbolic link"]),
        ((tree, f"{box.id}:/dev/null"), [""]),
        (("--user", "nonsense", tree, f"{box.id}:x"), ["'nonsense' is not a user"]),
        ((f"{box.id}:no", f"{box.id}:neither", tmp_path), ["'/work/no'", "'/work/neither'"]),
        ((f"{box.id}:a", f"{box.id}:b"), ["in boxes"]),
        (("a", "b"), ["neither it nor the target"]),
        (("a", "ffff:b"), ["ffff: no such box"]),
    ]
    for arguments, texts in cases:
        done = run_kavach("cp", *arguments)
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, len(lines)) == (125, len(texts)), (arguments, lines)
        assert all(line.startswith("kavach: ") and text in line for line, text in zip(lines, texts, strict=True)), lines
    assert box.process.poll() is None


def test_users(hold: Hold, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401 - of conftest
    box = hold("exec sleep 1000")
    (tree / "script").chmod(0o600)
    assert run_kavach("cp", "--user", "root", tree / "script", f"{box.id}:/tmp/secret").returncode == 0
    refused = run_kavach("cp", f"{box.id}:/tmp/secret", tmp_path)
    assert refused.returncode == 125
    assert b"Permission denied" in refused.stderr
    assert run_kavach("cp", "--user", "0:0", f"{box.id}:/tmp/secret", tmp_path).returncode == 0
    assert (tmp_path / "secret").read_bytes() == (tree / "script").read_bytes()


# --- other owners -----------------------------------------------------------------------------------


async def test_boxes_of_a_program(backend: str, tree: Path, tmp_path: Path) -> None:
    """A paused box says so, one that is closed is not there any more, and one of a pool is as good as any."""

    async def copied(box_id: str, target: Path) -> Copied | Refused:
        request = Request(box=box_id, direction=Direction.DOWNLOAD, local=str(target), remote="tree")
        return await trio.to_thread.run_sync(lambda: ask(find_boxes(box_id)[0], request))

    with trio.fail_after(BOUND_SECONDS):
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            await sandbox.files.upload(tree, "tree")
            assert isinstance(await copied(sandbox.id, tmp_path / "one"), Copied)
            await sandbox.pause()
            refused = await copied(sandbox.id, tmp_path / "two")
            assert isinstance(refused, Refused)
            assert refused.code == "invalid_transition"
            await sandbox.resume()
            assert isinstance(await copied(sandbox.id, tmp_path / "two"), Copied)
            owned = find_boxes(sandbox.id)[0]
            asked = Request(box=sandbox.id, direction=Direction.DOWNLOAD, local=str(tmp_path / "x"), remote="tree")
        with pytest.raises(SandboxError):
            await trio.to_thread.run_sync(ask, owned, asked)
        async with kavach_api.open_pool(backend=backend, size=1) as pool, pool.sandbox() as sandbox:
            await sandbox.files.upload(tree, "tree")
            assert isinstance(await copied(sandbox.id, tmp_path / "three"), Copied)
    assert described(tmp_path / "one") == described(tmp_path / "three") == described(tree)


def test_boxes_of_plain_code(backend: str, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401
    with blocking.open_sandbox(backend=backend) as sandbox:
        assert run_kavach("cp", tree, f"{sandbox.id}:tree").returncode == 0
        assert sandbox.files.exists("tree/script")
        assert run_kavach("cp", f"{sandbox.id}:tree", tmp_path / "back").returncode == 0
    assert described(tmp_path / "back") == described(tree)


# --- a quick run changes hands ----------------------------------------------------------------------


def feed(pipe: IO[bytes], data: bytes) -> None:
    with pipe:
        pipe.write(data)


@pytest.mark.parametrize("after", [0, 1, 70_000, 1_000_000, 5_000_000, 11_900_000])
def test_no_byte_is_lost_or_doubled(hold: Hold, way: str, after: int, tmp_path: Path) -> None:
    """A stream goes both ways while somebody asks for the box when so much of it has come.

    The last times the command has ended and some of its output has not been read.
    """
    data = secrets.token_bytes(12_000_000)
    box = hold("cat; exit 7", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stdin, stdout = box.process.stdin, box.process.stdout
    assert stdin is not None
    assert stdout is not None
    assert way == "long way" or not box.has_trio()
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


def test_bounds_and_ends_are_the_same_afterwards(hold: Hold, tmp_path: Path) -> None:
    late = hold("echo out; exec sleep 1000", "--timeout", "10", stdout=subprocess.PIPE)
    assert isinstance(late.download("/etc/passwd", tmp_path / "late"), Copied)
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


# --- clients and owners that end, and clients that are odd ------------------------------------------


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
    assert host.until(lambda: not box.has_open(target), seconds=30)
    assert list(target.iterdir()) == []
    assert isinstance(box.download("/etc/passwd", tmp_path / "one"), Copied)
    assert box.process.poll() is None


def test_kavach_cp_that_is_killed(hold: Hold, host: Any, kavach: Path, target: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000", before=LARGE)
    with subprocess.Popen([kavach, "cp", f"{box.id}:large", target]) as client:
        assert host.until(lambda: box.has_open(target), seconds=30)
        client.kill()
    assert host.until(lambda: not box.has_open(target), seconds=30)
    assert list(target.iterdir()) == []


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


def test_odd_clients_do_no_harm(hold: Hold, way: str, tmp_path: Path) -> None:
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
    assert way
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
