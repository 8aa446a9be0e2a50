"""The file tool itself, as a process of the host's: how it is called, what it sees, what it reads."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import subprocess
from pathlib import Path

import pytest
from file_tool import ABANDONED, AS_IT_IS, END, MISUSED, SECONDS, Run, data, hidden
from kavach_guest import file_records

from kavach_core.guest_files import FileKind

# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["stat"],
        ["stat", "1"],
        ["stat", "2", "/"],
        ["stat", "", "/"],
        ["stat", "-1", "/"],
        ["stat", "1x", "/"],
        ["stat", "1", "/", "more"],
        ["list", "99999999999999999999999", "/"],
        ["write", "420", "0", "/tmp/x"],
    ],
)
def test_a_call_that_makes_no_sense(tool: Run, words: list[str]) -> None:
    said = tool(*words)
    assert (said.status, said.records, said.last) == (MISUSED, [], None)


@pytest.mark.needs_root
def test_nobody_of_the_same_user_may_look_into_it(builds: dict[str, Path], mine: Path) -> None:
    """Its memory and its descriptors are root's, and its pipes have no permissions. Seen while it waits for more."""
    command = [builds["release"], "--files", "write", AS_IT_IS, "0", "0", mine / "x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=65534) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            os.fchown(pipe.fileno(), 65534, 65534)
        process.stdin.write(data(b"x"))
        process.stdin.flush()
        while not hidden(mine):
            assert process.poll() is None
        assert Path(f"/proc/{process.pid}/fd").stat().st_uid == 0
        process.stdin.close()
        assert process.wait(SECONDS) == ABANDONED


def test_its_pipes_cannot_be_opened_anew(builds: dict[str, Path], tmp_path: Path) -> None:
    command = [builds["release"], "--files", "write", AS_IT_IS, "0", "0", tmp_path / "x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data(b"x"))
        process.stdin.flush()
        while not hidden(tmp_path):
            assert process.poll() is None
        assert [os.fstat(pipe.fileno()).st_mode & 0o777 for pipe in (process.stdin, process.stdout)] == [0, 0]
        process.stdin.write(data(b"y") + END)
        process.stdin.close()
        assert process.wait(SECONDS) == 0
    assert (tmp_path / "x").read_text() == "xy"


# --- looking ----------------------------------------------------------------------------------------


def test_stat_of_all_kinds(tool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o4751)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loose").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
        listener.bind("socket")
    about = (tmp_path / "file").stat()
    (found,) = tool("stat", "1", tmp_path / "file").entries
    assert (found.kind, found.mode, found.size, found.name) == (FileKind.FILE, 0o4751, 5, b"")
    assert (found.uid, found.gid, found.modified_ns) == (about.st_uid, about.st_gid, about.st_mtime_ns)
    kinds = {name: tool("stat", "0", tmp_path / name).entries[0] for name in ("link", "fifo", "socket", ".", "loose")}
    assert [kind.kind.value for kind in kinds.values()] == ["symlink", "fifo", "socket", "directory", "symlink"]
    assert (kinds["link"].target, kinds["loose"].target) == (b"file", b"nowhere")
    assert tool("stat", "1", tmp_path / "link").entries[0].kind is FileKind.FILE
    assert tool("stat", "0", "/dev/null").entries[0].kind is FileKind.CHARACTER_DEVICE
    missing = tool("stat", "1", tmp_path / "loose")
    assert (missing.reason, missing.path) == (errno.ENOENT, str(tmp_path / "loose"))


def test_list(tool: Run, tmp_path: Path) -> None:
    names = {f"name {number}" for number in range(50)} | {"ü", "\udcff", "new\nline", "x" * 255}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("/" + "t" * 4000)
    said = tool("list", "100", tmp_path)
    assert said.ok
    assert {os.fsdecode(found.name) for found in said.entries} == {*names, "link"}
    assert max(len(found.target) for found in said.entries) == 4001
    assert tool("list", str(len(names) + 1), tmp_path).ok
    assert tool("list", str(len(names)), tmp_path).reason == file_records.TOO_MANY
    assert tool("list", "100", tmp_path / "x").reason == errno.ENOENT
    assert tool("list", "100", tmp_path / "ü").reason == errno.ENOTDIR


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 3_000_000])
def test_read_is_exact(tool: Run, tmp_path: Path, size: int) -> None:
    contents = secrets.token_bytes(size)
    (tmp_path / "file").write_bytes(contents)
    said = tool("read", "0", str(size), "0", tmp_path / "file")
    assert said.ok
    assert said.contents == contents
    assert said.entries[0].size == size
    if size:
        large = tool("read", "0", str(size - 1), "0", tmp_path / "file")
        assert (large.reason, large.records) == (file_records.TOO_LARGE, [])
        assert tool("read", "0", str(size - 1), "1", tmp_path / "file").contents == contents[:-1]
        assert tool("read", "1", str(size - 1), "0", tmp_path / "file").contents == contents[1:]
    assert tool("read", str(size + 10), "5", "0", tmp_path / "file").contents == b""


def test_read_of_what_does_not_know_its_size(tool: Run) -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    said = tool("read", "0", "1000000", "0", "/proc/version")
    assert said.contents == Path("/proc/version").read_bytes()
    assert tool("read", "0", "5", "0", "/proc/version").reason == file_records.TOO_LARGE


def test_read_of_what_is_no_file_does_not_wait(tool: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", "/dev/zero", "/dev/tty"):
        assert tool("read", "0", "10", "0", path).reason == file_records.NOT_REGULAR
        assert tool("pack", path).reason == file_records.NOT_REGULAR
        assert tool("write", AS_IT_IS, "0", "0", path, told=END).reason == file_records.NOT_REGULAR
        assert tool("write", AS_IT_IS, "1", "0", path, told=END).reason == file_records.NOT_REGULAR
    assert tool("read", "0", "10", "0", tmp_path).reason == errno.EISDIR
