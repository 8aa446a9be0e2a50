"""The socket of an owner: who is heard, what is understood, what is bounded, and that nothing here ends a program."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from kavach_core.cli import cp
from kavach_core.control import attending, client, registry, server
from kavach_core.control.client import Owned, ask
from kavach_core.control.copying import copy
from kavach_core.control.listening import listen
from kavach_core.control.peers import Peer
from kavach_core.control.server import MOST_AT_ONCE, Server
from kavach_core.control.wire import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    UNKNOWN_BOX,
    Copied,
    Direction,
    Refused,
    Request,
    WireViolation,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    refusal_of,
)
from kavach_core.errors import ConfigError, FileTooLarge, SandboxError, SandboxGone
from kavach_core.files import Transferred
from kavach_core.guest_files import FileKind

BOX = "0123456789abcdef"
ASKED = Request(box=BOX, direction=Direction.UPLOAD, local="/etc/hosts", remote="x")
DONE = Copied(path="x", files=1, directories=0, symlinks=0, size=5, skipped_count=0)
BOUND_SECONDS = 30
NOBODY = 65534

Work = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Do no work."""


class Files:
    """Files of a box that notes what it is asked, and does what a test wants meanwhile."""

    def __init__(self, work: Work = nothing, directories: tuple[str, ...] = ()) -> None:
        self.work = work
        self.directories = directories
        self.calls: list[tuple[str, str, str]] = []
        self.began = trio.Event()
        self.cancelled = trio.Event()

    async def stat(self, path: str, **_: object) -> SimpleNamespace:
        if path not in self.directories:
            raise FileNotFoundError(2, "No such file or directory", path)
        return SimpleNamespace(kind=FileKind.DIRECTORY)

    async def upload(self, local: str, remote: str, **_: object) -> Transferred:
        return await self._do("upload", local, remote)

    async def download(self, remote: str, local: str, **_: object) -> Transferred:
        return await self._do("download", remote, local)

    async def _do(self, *call: str) -> Transferred:
        self.calls.append(call)  # type: ignore[arg-type]  # there are three
        self.began.set()
        try:
            await self.work()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return Transferred(files=1, directories=0, symlinks=0, size=5)


class Box:
    """A box that can be reached."""

    def __init__(self, files: Files, name: str = BOX) -> None:
        self.id = name
        self.files: Any = files


@asynccontextmanager
async def served(directory: Path, files: Files) -> AsyncIterator[str]:
    """Serve a box; give the path of the socket."""
    descriptor, path = listen(str(directory))
    box = Box(files)
    with trio.fail_after(BOUND_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server(descriptor, path, {BOX: box}.get).serve)
            yield path
            nursery.cancel_scope.cancel()
    assert not os.path.exists(path)  # noqa: ASYNC240, PTH110 - it does not block


async def say(path: str, data: bytes) -> bytes:
    """Say something and return all that is answered."""
    async with await trio.open_unix_socket(path) as stream:
        try:
            await stream.send_all(data)
            return b"".join([piece async for piece in stream])
        except trio.BrokenResourceError:
            return b""


async def ask_at(path: str, request: Request = ASKED) -> Copied | Refused:
    return decode_answer(await say(path, encode_request(request)))


# --- what is said -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        ASKED,
        Request(box=BOX, direction=Direction.DOWNLOAD, local="/\udcff\n", remote="a\udc80b", inside=True, user="0:5"),
        Request(box=BOX, direction=Direction.DOWNLOAD, local="/" + "\udcff" * 4095, remote="\udcff" * 4096),
    ],
)
def test_a_request_comes_as_it_was_sent(request_: Request) -> None:
    line = encode_request(request_)
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_REQUEST_BYTES
    assert decode_request(line) == request_


@pytest.mark.parametrize("answer", [DONE, Refused(code="os_error", message="no \udcff", errno="ENOENT")])
def test_an_answer_comes_as_it_was_sent(answer: Copied | Refused) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_the_largest_answer_is_one_that_is_heard() -> None:
    names = tuple("\udcff" * 4096 for _ in range(100))
    many = Copied(path="\udcff" * 8192, files=1, directories=0, symlinks=0, size=0, skipped_count=100, skipped=names)
    for answer in (many, Refused(code="os_error", message="\udcff" * 100_000)):
        line = encode_answer(answer)
        assert len(line) <= MAX_ANSWER_BYTES
        decode_answer(line)


GOOD = json.loads(encode_request(ASKED))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        "x",
        {**GOOD, "version": 2},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "user"},
        *({**GOOD, "box": box} for box in (None, 1, "", "../../etc", BOX + "0", BOX.upper())),
        *({**GOOD, "direction": way} for way in (None, "sideways", ["upload"], {})),
        *({**GOOD, "local": path} for path in (None, "", "relative", "/a\0b", "/" + "a" * 4096, ["/a"])),
        *({**GOOD, "remote": path} for path in (None, "", "a\0b", "a" * 4097, 5)),
        *({**GOOD, "inside": value} for value in (None, 1, "true")),
        *({**GOOD, "user": value} for value in (0, "x" * 65, [])),
    ],
)
def test_what_is_no_request_is_refused(data: object) -> None:
    with pytest.raises(WireViolation):
        decode_request(json.dumps(data).encode())


@pytest.mark.parametrize("line", [b"", b"\xff", b"[" * 60_000, b"{", b"nan", b"1" * 5000])
def test_what_is_no_json_is_refused(line: bytes) -> None:
    with pytest.raises(WireViolation):
        decode_request(line)
    with pytest.raises(WireViolation):
        decode_answer(line)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"copied": 1},
        {"copied": {}, "refused": {}},
        {"other": {}},
        {"refused": {"code": "x", "message": "m"}},
        {"refused": {"code": "x", "message": "m", "errno": "ENONSENSE"}},
        {"refused": {"code": "x", "message": ["m"], "errno": None}},
        *(
            {"copied": {**json.loads(encode_answer(DONE))["copied"], **change}}
            for change in ({"size": -1}, {"files": True}, {"files": 1.5}, {"skipped": "x"}, {"skipped": [1]}, {"x": 1})
        ),
    ],
)
def test_what_is_no_answer_is_refused(data: object) -> None:
    with pytest.raises(WireViolation):
        decode_answer(json.dumps(data).encode())


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (FileNotFoundError(2, "No such file", b"/\xff"), ("os_error", "No such file: '/\\udcff'", "ENOENT")),
        (FileTooLarge("'x' is larger than allowed", filename="x"), ("file_too_large", "'x' is larger", "EFBIG")),
        (SandboxGone("the box has ended"), ("sandbox_gone", "the box has ended", None)),
        (OSError("odd"), ("os_error", "odd", None)),
        (OSError(9999, "unknown"), ("os_error", "unknown", None)),
        (ZeroDivisionError("secret"), ("kavach_error", "the owner of the box failed: ZeroDivisionError", None)),
    ],
)
def test_errors_are_told(error: Exception, refused: tuple[str, str, str | None]) -> None:
    told = refusal_of(error)
    assert (told.code, told.errno) == (refused[0], refused[2])
    assert told.message.startswith(refused[1])
    assert decode_answer(encode_answer(told)) == told


# --- where to ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "remote", "target"),
    [
        ("/a/file", "new", "new"),
        ("/a/file", "there", "there/file"),
        ("/a/dir/", "there", "there/dir"),
        ("/a/dir//", "there/", "there/dir"),
        ("/a/.", "there", "there"),
        ("/a/..", "there", "there"),
        ("/", "there", "there"),
    ],
)
async def test_a_directory_takes_what_is_copied_into_it(local: str, remote: str, target: str, tmp_path: Path) -> None:
    files: Any = Files(directories=("there", "there/"))
    done = await copy(files, Request(box=BOX, direction=Direction.UPLOAD, local=local, remote=remote))
    assert done.path == target
    (tmp_path / "there").mkdir()
    here = str(tmp_path / remote)
    done = await copy(files, Request(box=BOX, direction=Direction.DOWNLOAD, local=here, remote=local))
    assert done.path == str(tmp_path / target)
    assert files.calls == [("upload", local, target), ("download", local, str(tmp_path / target))]


@pytest.mark.parametrize("direction", Direction)
async def test_what_has_to_be_in_a_directory_is_not_copied_without_one(direction: Direction, tmp_path: Path) -> None:
    files: Any = Files()
    with pytest.raises(NotADirectoryError):
        await copy(files, Request(box=BOX, direction=direction, local=f"{tmp_path}/no", remote="no", inside=True))
    assert not files.calls


# --- who is heard -----------------------------------------------------------------------------------


def test_the_socket_is_its_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        descriptor, path = listen(str(tmp_path))
        other, second = listen(str(tmp_path))
    finally:
        os.umask(before)
    assert [Path(name).name for name in (path, second)] == ["control", "control2"]
    for name, number in ((path, descriptor), (second, other)):
        assert stat.filemode(Path(name).stat().st_mode) == "srw-------"
        assert not os.get_inheritable(number)
        os.close(number)


def test_who_cannot_listen_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        listen(str(tmp_path / "missing"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def say_as_nobody(path: str) -> bytes:
    """Let another user ask; return what it hears."""
    script = f"""
import os, socket, sys
peer = socket.socket(socket.AF_UNIX)
os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    peer.connect(sys.argv[1])
    peer.sendall(sys.stdin.buffer.read())
    while piece := peer.recv(4096):
        sys.stdout.buffer.write(piece)
except (PermissionError, BrokenPipeError, ConnectionResetError) as error:
    sys.stdout.write(type(error).__name__)
"""
    run = functools.partial(
        subprocess.run,
        [sys.executable, "-c", script, path],
        input=encode_request(ASKED),
        capture_output=True,
        check=True,
    )
    return (await trio.to_thread.run_sync(run)).stdout


@pytest.mark.needs_root
async def test_another_user_does_not_get_in(open_path: Path) -> None:
    files = Files()
    async with served(open_path, files) as path:
        assert await say_as_nobody(path) == b"PermissionError"
    assert not files.calls


@pytest.mark.needs_root
async def test_another_user_who_gets_in_is_not_heard(open_path: Path) -> None:
    files = Files()
    async with served(open_path, files) as path:
        os.chmod(path, 0o666)  # noqa: PTH101 - nothing waits for it
        assert await say_as_nobody(path) in (b"", b"BrokenPipeError", b"ConnectionResetError")
        assert await ask_at(path) == DONE
    assert len(files.calls) == 1


@pytest.mark.needs_root
async def test_without_the_look_at_the_peer_it_is(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "peer_of", lambda _: Peer(pid=1, uid=os.geteuid()))
    files = Files()
    async with served(open_path, files) as path:
        os.chmod(path, 0o666)  # noqa: PTH101 - nothing waits for it
        assert decode_answer(await say_as_nobody(path)) == DONE


@pytest.mark.needs_root
def test_whose_paths_mean_the_same() -> None:
    assert Peer(pid=os.getpid(), uid=0).sees_our_files()
    assert not Peer(pid=0, uid=0).sees_our_files()
    with subprocess.Popen(["unshare", "-m", "sh", "-c", "echo; read x"], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert not Peer(pid=other.pid, uid=0).sees_our_files()
        other.communicate(b"\n")


# --- the server -------------------------------------------------------------------------------------


async def test_it_answers(tmp_path: Path) -> None:
    files = Files()
    async with served(tmp_path, files) as path:
        assert await ask_at(path) == DONE
        unknown = await ask_at(path, Request(box="f" * 16, direction=Direction.UPLOAD, local="/a", remote="b"))
        assert isinstance(unknown, Refused)
        assert unknown.code == UNKNOWN_BOX
    assert files.calls == [("upload", "/etc/hosts", "x")]


@pytest.mark.parametrize("error", [OSError(28, "full"), SandboxGone("gone"), RuntimeError("?"), SystemExit(3)])
async def test_errors_are_answers(tmp_path: Path, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    files = Files(fail)
    async with served(tmp_path, files) as path:
        assert await ask_at(path) == refusal_of(error)
        files.work = nothing
        assert await ask_at(path) == DONE


@pytest.mark.parametrize(
    "data", [b"\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * (MAX_REQUEST_BYTES + 1), encode_request(ASKED) + b"more"]
)
async def test_nonsense_is_refused_and_others_are_heard(tmp_path: Path, data: bytes) -> None:
    files = Files()
    async with served(tmp_path, files) as path:
        told = await say(path, data)
        if told:  # what was not read yet takes the answer along
            answer = decode_answer(told)
            assert isinstance(answer, Refused)
            assert answer.code == "invalid_request"
        assert not files.calls
        assert await ask_at(path) == DONE


async def test_an_endless_line_is_not_kept(tmp_path: Path) -> None:
    async with served(tmp_path, Files()) as path:
        sent = 0
        async with await trio.open_unix_socket(path) as stream:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(bytes(65_536))
                    sent += 65_536
        assert sent < 100 * MAX_REQUEST_BYTES
        assert await ask_at(path) == DONE


async def test_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "REQUEST_SECONDS", 0.05)
    async with served(tmp_path, Files()) as path:
        for data in (b"", b'{"version":'):
            assert await say(path, data) == b""


async def test_the_silent_keep_others_out_for_so_long_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "REQUEST_SECONDS", 3600)
    async with served(tmp_path, Files()) as path:
        silent = [await trio.open_unix_socket(path) for _ in range(MOST_AT_ONCE)]
        answers: list[Copied | Refused] = []

        async def ask_too() -> None:
            answers.append(await ask_at(path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_too)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not answers
            await silent.pop().aclose()
        assert answers == [DONE]
        for stream in silent:
            await stream.aclose()


@pytest.mark.parametrize("more", [None, b"x"])
async def test_who_goes_away_or_goes_on_ends_the_work(tmp_path: Path, more: bytes | None) -> None:
    files = Files(trio.sleep_forever)
    async with served(tmp_path, files) as path, await trio.open_unix_socket(path) as stream:
        await stream.send_all(encode_request(ASKED))
        await files.began.wait()
        assert not files.cancelled.is_set()
        if more is None:
            await stream.aclose()
        else:
            await stream.send_all(more)
        await files.cancelled.wait()


async def test_its_end_ends_the_work(tmp_path: Path) -> None:
    files = Files(trio.sleep_forever)
    heard: list[bytes] = []
    async with trio.open_nursery() as nursery, served(tmp_path, files) as path:

        async def ask_for_long() -> None:
            heard.append(await say(path, encode_request(ASKED)))

        nursery.start_soon(ask_for_long)
        await files.began.wait()
    assert heard == [b""]
    assert files.cancelled.is_set()


async def test_out_of_descriptors_it_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSE_SECONDS", 0.01)
    failures = [OSError(24, "Too many open files")]
    wrap = trio.socket.from_stdlib_socket

    class Listener:
        def __init__(self, plain: socket.socket) -> None:
            self._listener = wrap(plain)

        async def accept(self) -> object:
            if failures:
                raise failures.pop()
            return await self._listener.accept()

    monkeypatch.setattr(trio.socket, "from_stdlib_socket", Listener)
    async with served(tmp_path, Files()) as path:
        assert await ask_at(path) == DONE
    assert not failures


# --- in a program that has boxes --------------------------------------------------------------------


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


# --- the client -------------------------------------------------------------------------------------


@contextmanager
def owner(directory: Path, answer: bytes) -> Iterator[None]:
    """Be an owner that answers the first client so, and goes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "control"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(answer)
                except BrokenPipeError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(BOUND_SECONDS)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"", SandboxGone, "has ended"),
        (b'{"copied"', SandboxGone, "has ended"),
        (b"nonsense\n", SandboxError, "makes no sense"),
        (b"x" * (MAX_ANSWER_BYTES * 2), SandboxError, "makes no sense"),
        (encode_answer(Refused(code=UNKNOWN_BOX, message="?")), SandboxError, "does not answer for it"),
    ],
)
def test_an_owner_that_makes_no_sense(tmp_path: Path, answer: bytes, error: type[Exception], text: str) -> None:
    with owner(tmp_path, answer), pytest.raises(error, match=text):
        ask(Owned(box_id=BOX, directory=str(tmp_path)), ASKED)


def test_an_owner_that_sees_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "sees_our_files", lambda _: False)
    with owner(tmp_path, b""), pytest.raises(SandboxError, match="other files"):
        ask(Owned(box_id=BOX, directory=str(tmp_path)), ASKED)


def test_nobody_listens(tmp_path: Path) -> None:
    owned = Owned(box_id=BOX, directory=str(tmp_path))
    with pytest.raises(SandboxError, match="does not answer"):
        ask(owned, ASKED)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control"))
    with pytest.raises(SandboxError, match="does not answer"):
        ask(owned, ASKED)
    with pytest.raises(SandboxError, match="does not answer"):
        ask(Owned(box_id=BOX, directory=str(tmp_path / "gone")), ASKED)


# --- the command ------------------------------------------------------------------------------------


def options(*paths: str) -> Any:  # noqa: ANN401 - a namespace of argparse
    return SimpleNamespace(paths=list(paths), user=None, json=False)


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of live boxes, and a caller who may ask for them."""
    ids = [BOX, "0123ffffffffffff", "aaaa000000000000"]
    monkeypatch.setattr(cp, "require_root", lambda: None)
    monkeypatch.setattr(
        cp, "find_boxes", lambda prefix: [Owned(box_id=i, directory="/x") for i in ids if i.startswith(prefix)]
    )
    return ids


@pytest.mark.parametrize(
    ("paths", "problems"),
    [
        (["a"], ["target: is missing"]),
        (["a", "b"], ["a: neither it nor the target is in a box"]),
        (["aaaa:a", "aaaa:b"], ["aaaa:a: it and the target are in boxes"]),
        (["a", "aaaa:b", "aaaa:c"], ["aaaa:b: it and the target are in boxes"]),
        (["a", "aaaa:"], ["aaaa:: names no path"]),
        (["", "aaaa:b"], [": names no path"]),
        (["a", "0123:b"], [f"0123: may be {BOX}, 0123ffffffffffff (write more digits)"]),
        (["a", "aaa:b"], ["aaa: no such box"]),
        (["a", "AAAA:b"], ["AAAA: no such box"]),
        (["bbbb:a", "cc\ncc:b", "."], ["bbbb: no such box", "cc cc: no such box"]),
    ],
)
@pytest.mark.usefixtures("boxes")
def test_usage(paths: list[str], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cp.copy_files(options(*paths), [])
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == len(problems)
    assert all(text.startswith(start) for text, start in zip(told, problems, strict=True)), told


@pytest.mark.usefixtures("boxes")
def test_what_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Request] = []

    def note(_: Owned, request: Request) -> Copied:
        asked.append(request)
        return DONE

    monkeypatch.setattr(cp, "ask", note)
    monkeypatch.chdir(tmp_path)
    assert cp.copy_files(options("x/.", "./a:b", "aaaa:to"), []) == 0
    assert cp.copy_files(options("0123f:from", "here/"), []) == 0
    up = functools.partial(Request, box="aaaa000000000000", direction=Direction.UPLOAD, remote="to", inside=True)
    down = Request(
        box="0123ffffffffffff", direction=Direction.DOWNLOAD, local=f"{tmp_path}/here/", remote="from", inside=True
    )
    assert asked == [up(local=f"{tmp_path}/x/."), up(local=f"{tmp_path}/./a:b"), down]


@pytest.mark.usefixtures("boxes")
def test_what_cannot_be_copied_keeps_nothing_else_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        "/a": Refused(code="os_error", message="No such file: '\x1b[2J\n'", errno="ENOENT"),
        "/b": client.SandboxGone("its owner has ended it meanwhile"),
        "/c": Copied(path="x", files=1, directories=0, symlinks=0, size=5, skipped_count=2, skipped=("p", "q\n")),
    }

    def answer(_: Owned, request: Request) -> Copied | Refused:
        found = told[request.local]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(cp, "ask", answer)
    given = options("/a", "/b", "/c", "aaaa:x")
    given.json = True
    assert cp.copy_files(given, []) == 125
    out, err = capsys.readouterr()
    assert [row["source"] for row in json.loads(out)] == ["/c"]
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("kavach: ") and line.isprintable() for line in lines)
    assert lines[2] == "kavach: left out of /c: 2, for example p, q "
