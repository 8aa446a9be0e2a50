"""Who is heard by an owner: its own user, and those who see the same files."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from control_box import ASKED, DONE, Files, ask_at, served

from kavach_core.control import attending
from kavach_core.control.listening import listen
from kavach_core.control.peers import Peer
from kavach_core.control.wire import decode_answer, encode_request

NOBODY = 65534


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
