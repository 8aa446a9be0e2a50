"""The file tool makes, removes and renames."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from file_tool import Run, mode_of
from kavach_guest import file_records


def test_mkdir(tool: Run, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert tool("mkdir", "448", "0", "0", path).reason == errno.ENOENT
    assert tool("mkdir", "448", "1", "0", path).ok
    assert (mode_of(path), mode_of(path.parent)) == (0o700, 0o755)
    assert tool("mkdir", "448", "1", "0", path).reason == errno.EEXIST
    assert tool("mkdir", "511", "0", "1", path).ok
    assert mode_of(path) == 0o700
    (tmp_path / "file").touch()
    assert tool("mkdir", "448", "0", "1", tmp_path / "file").reason == errno.EEXIST
    assert tool("mkdir", "448", "0", "0", f"{tmp_path}/c/").ok


def test_remove(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").touch()
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "out").symlink_to(tmp_path / "keep")
    (tree / "d" / "file").touch()
    (tmp_path / "link").symlink_to(tree)
    os.mkfifo(tree / "fifo")
    assert tool("remove", "0", tree).reason == errno.ENOTEMPTY
    assert tool("remove", "1", tmp_path / "link").ok
    assert tree.is_dir()
    assert tool("remove", "1", tree).ok
    assert (tmp_path / "keep" / "file").is_file()
    assert tool("remove", "0", tmp_path / "keep" / "file").ok
    assert tool("remove", "0", tmp_path / "keep").ok
    assert tool("remove", "1", tree).reason == errno.ENOENT
    assert not list(tmp_path.iterdir())


def test_remove_and_pack_of_what_is_deeper_than_any_path(tool: Run, deep_path: Path) -> None:
    descriptor = os.open(deep_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=descriptor)
        below = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    packed = tool("pack", deep_path / "deep")
    assert packed.reason == file_records.TOO_DEEP
    assert packed.path == str(deep_path / Path(*["deep"] * 257))
    assert tool("remove", "1", deep_path / "deep").ok
    assert not list(deep_path.iterdir())


@pytest.mark.needs_root
def test_remove_tells_what_cannot_be(tool: Run, mine: Path) -> None:
    closed = mine / "a" / "closed"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    os.chown(mine / "a", 65534, 65534)
    said = tool("remove", "1", mine / "a", user=65534)
    assert (said.reason, said.path) == (errno.EACCES, str(closed / "file"))


def test_rename(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert tool("rename", tmp_path / "a", tmp_path / "b").ok
    assert (tmp_path / "b").read_text() == "a"
    said = tool("rename", tmp_path / "a", tmp_path / "b")
    assert (said.reason, said.path) == (errno.ENOENT, str(tmp_path / "a"))
