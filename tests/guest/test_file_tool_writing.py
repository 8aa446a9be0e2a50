"""The file tool writes: exact contents in one step, or nothing, and with the user's permissions."""

from __future__ import annotations

import errno
import os
import secrets
import struct
import subprocess
from pathlib import Path

import pytest
from file_tool import (
    ABANDONED,
    AS_IT_IS,
    CLOSE,
    DATA,
    END,
    UP,
    Run,
    Said,
    data,
    directory,
    entry,
    file,
    hidden,
    mode_of,
)


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 3_000_000])
def test_write_is_exact(tool: Run, tmp_path: Path, size: int) -> None:
    contents = secrets.token_bytes(size)
    assert tool("write", AS_IT_IS, "0", "0", tmp_path / "file", told=data(contents) + END).ok
    assert (tmp_path / "file").read_bytes() == contents
    assert mode_of(tmp_path / "file") == 0o644
    assert tool("write", AS_IT_IS, "1", "0", tmp_path / "file", told=data(b"more") + END).ok
    assert (tmp_path / "file").read_bytes() == contents + b"more"
    assert not hidden(tmp_path)


def write(tool: Run, path: Path, contents: bytes = b"new", mode: str = AS_IT_IS) -> Said:
    return tool("write", mode, "0", "0", path, told=data(contents) + END)


def test_a_file_is_replaced_in_one_step(tool: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o751)
    with path.open() as reader:
        assert write(tool, path).ok
        assert reader.read() == "old"
    assert (path.read_text(), mode_of(path)) == ("new", 0o751)
    assert write(tool, path, mode=str(0o600)).ok
    assert mode_of(path) == 0o600


def test_a_file_with_further_names_or_behind_a_link_is_written_itself(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something older")
    (tmp_path / "other").hardlink_to(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    assert write(tool, tmp_path / "other").ok
    assert (tmp_path / "file").read_text() == "new"
    assert write(tool, tmp_path / "link", b"by link").ok
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "other").read_text() == "by link"
    (tmp_path / "fresh").symlink_to("made")
    assert write(tool, tmp_path / "fresh").ok
    assert (tmp_path / "made").read_text() == "new"
    assert not hidden(tmp_path)


def test_write_where_it_cannot_be(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, f"{tmp_path}/", f"{tmp_path}/.", f"{tmp_path}/..", "/"):
        assert tool("write", AS_IT_IS, "0", "0", path, told=END).reason == errno.EISDIR
    assert write(tool, tmp_path / "no" / "file").reason == errno.ENOENT
    assert write(tool, tmp_path / "file" / "file").reason == errno.ENOTDIR
    assert write(tool, tmp_path / ("x" * 256)).reason == errno.ENAMETOOLONG
    assert write(tool, Path("/" + "x/" * 3000 + "x")).reason == errno.ENAMETOOLONG
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_write_with_parents(tool: Run, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    assert tool("write", AS_IT_IS, "0", "1", path, told=data(b"x") + END).ok
    assert path.read_text() == "x"
    assert mode_of(path.parent) == 0o755
    assert tool("write", AS_IT_IS, "0", "1", path / "c" / "d", told=END).reason == errno.ENOTDIR


@pytest.mark.parametrize("cut", [0, 3, 8, 9, 1000, 300_000])
def test_input_that_breaks_off_changes_nothing(tool: Run, tmp_path: Path, cut: int) -> None:
    (tmp_path / "file").write_text("old")
    told = (data(bytes(300_000)) + END)[: cut if cut < 300_000 else -1]
    for path in (tmp_path / "file", tmp_path / "fresh"):
        said = tool("write", AS_IT_IS, "0", "0", path, told=told)
        assert (said.status, said.last) == (ABANDONED, None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("bad", [struct.pack("<II", 0, 9), struct.pack("<II", 2**32 - 1, DATA), CLOSE, UP, entry("x")])
def test_input_that_makes_no_sense_changes_nothing(tool: Run, tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "file").write_text("old")
    said = tool("write", AS_IT_IS, "0", "0", tmp_path / "file", told=data(b"new") + bad + END)
    assert said.reason == errno.EPROTO
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.needs_root
def test_a_full_file_system_leaves_the_old_file(tool: Run, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        (small / "file").write_text("old")
        said = write(tool, small / "file", bytes(1_000_000))
        assert (said.reason, said.path) == (errno.ENOSPC, str(small / "file"))
        tree = directory("", file("a"), directory("d", file("b", bytes(1_000_000))))
        said = tool("unpack", "0", small / "tree", told=tree + END)
        assert (said.reason, said.path) == (errno.ENOSPC, str(small / "tree" / "d" / "b"))
        assert [path.read_text() for path in small.iterdir()] == ["old"]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.needs_root
def test_permissions_are_the_user_s(tool: Run, mine: Path) -> None:
    (mine / "foreign").write_text("old")
    (mine / "closed").write_text("old")
    os.chown(mine / "closed", 65534, 65534)
    (mine / "closed").chmod(0o400)
    (mine / "open").write_text("old")
    (mine / "open").chmod(0o666)
    for name in ("foreign", "closed"):
        told = data(b"new") + END
        assert tool("write", AS_IT_IS, "0", "0", mine / name, told=told, user=65534).reason == errno.EACCES
    assert tool("write", AS_IT_IS, "0", "0", mine / "open", told=data(b"new") + END, user=65534).ok
    assert ((mine / "open").read_text(), (mine / "open").stat().st_uid) == ("new", os.getuid())
    mine.chmod(0o555)
    assert tool("write", AS_IT_IS, "0", "0", mine / "fresh", told=END, user=65534).reason == errno.EACCES
    assert tool("write", AS_IT_IS, "0", "0", mine / "open", told=data(b"newer") + END, user=65534).ok
    assert tool("remove", "0", mine / "open", user=65534).reason == errno.EACCES
    assert {path.name for path in mine.iterdir()} == {"foreign", "closed", "open"}
