"""The file tool packs and unpacks trees: the same there and back, and nothing outside of its place."""

from __future__ import annotations

import errno
import os
import secrets
import subprocess
from pathlib import Path

import pytest
from file_tool import (
    ABANDONED,
    AS_IT_IS,
    CLOSE,
    END,
    SECONDS,
    UP,
    Run,
    data,
    directory,
    entry,
    file,
    hidden,
    mode_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kavach_guest import file_records
from kavach_guest.file_records import Failed, Record, RecordParser

from kavach_core.guest_files import FileKind, TreeEntry


def make_tree(root: Path) -> None:
    """Make one of everything."""
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "file").write_bytes(bytes(range(256)) * 2000)
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("d/file")
    (root / "loose").symlink_to("/no/where")
    (root / "odd \udcff\n").touch()
    (root / "d").chmod(0o750)


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None  # noqa: PTH115
        found[str(path.relative_to(root))] = (path.lstat().st_mode, what)
    return found


def as_told(records: list[Record]) -> bytes:
    """Return a tree as the host would send it."""
    events = [file_records.as_tree_event(record) for record in records]
    return b"".join(
        data(event) if isinstance(event, bytes) else file_records.encode_event(event)
        for event in events
        if not isinstance(event, TreeEntry) or event.kind is not FileKind.FIFO
    )


def test_a_packed_tree_unpacks_to_the_same(tool: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    packed = tool("pack", tmp_path / "from")
    assert packed.ok
    told = as_told(packed.records)
    assert tool("unpack", "0", tmp_path / "to", told=told + END).ok
    assert snapshot(tmp_path / "to") == snapshot(tmp_path / "from")
    (tmp_path / "to" / "run").write_text("other")
    (tmp_path / "to" / "link").unlink()
    (tmp_path / "to" / "more").touch()
    assert tool("unpack", "0", tmp_path / "to", told=told + END).ok, "merged"
    (tmp_path / "to" / "more").unlink()
    assert snapshot(tmp_path / "to") == snapshot(tmp_path / "from")
    assert not hidden(tmp_path)


def test_pack_follows_no_link_but_the_one_it_is_given(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "out").symlink_to("/etc")
    os.mkfifo(tmp_path / "tree" / "fifo")
    (tmp_path / "link").symlink_to("tree")
    said = tool("pack", tmp_path / "link")
    assert said.ok
    kinds = {found.name: found.kind.value for found in said.entries}
    assert kinds == {b"": "directory", b"out": "symlink", b"fifo": "fifo"}


def test_unpack_of_a_file(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    assert tool("unpack", "0", tmp_path / "file", told=file("", b"new", 0o751) + END).ok
    assert ((tmp_path / "file").read_text(), mode_of(tmp_path / "file")) == ("new", 0o751)
    assert tool("unpack", "1", tmp_path / "a" / "b", told=file("", b"") + END).ok
    assert tool("unpack", "0", tmp_path, told=file("", b"") + END).reason == errno.EISDIR
    assert not hidden(tmp_path)


TREE = directory(
    "", file("a", bytes(1000)), directory("d", file("b"), mode=0o555), entry("l", FileKind.SYMLINK, target="a")
)


def test_an_unpack_that_breaks_off_leaves_nothing(tool: Run, tmp_path: Path) -> None:
    whole = TREE + END
    for cut in [*range(0, len(whole), 97), len(whole) - 1, len(whole) - 9]:
        said = tool("unpack", "0", tmp_path / "tree", told=whole[:cut])
        assert (said.status, said.last) == (ABANDONED, None)
        assert not list(tmp_path.iterdir())
    assert tool("unpack", "0", tmp_path / "tree", told=whole).ok
    assert mode_of(tmp_path / "tree" / "d") == 0o555


@pytest.mark.needs_root
def test_its_own_closed_directories_are_no_hindrance_to_it(tool: Run, mine: Path) -> None:
    told = entry("", FileKind.DIRECTORY) + directory("d", directory("e", file("f"), mode=0o500), mode=0o000)
    assert tool("unpack", "0", mine / "tree", told=told, user=65534).status == ABANDONED
    assert not list(mine.iterdir())


def test_nothing_is_made_before_it_is_spoken_to(tool: Run, tmp_path: Path) -> None:
    assert tool("write", AS_IT_IS, "0", "1", tmp_path / "a" / "file", told=b"").status == ABANDONED
    assert tool("unpack", "1", tmp_path / "b" / "tree", told=b"").status == ABANDONED
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("build", ["release", "sanitized"])
def test_a_directory_that_is_moved_meanwhile_leads_nowhere_else(
    builds: dict[str, Path], tmp_path: Path, build: str
) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    tree.mkdir()
    elsewhere.mkdir()
    command = [builds[build], "--files", "unpack", "0", tree]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(entry("", FileKind.DIRECTORY) + entry("d", FileKind.DIRECTORY) + file("f"))
        process.stdin.flush()
        while not (tree / "d" / "f").exists():
            assert process.poll() is None
        (tree / "d").rename(elsewhere / "d")
        said, _ = process.communicate(UP + file("intruder") + UP + END, timeout=SECONDS)
    assert RecordParser().feed(said) == [Failed(errno.ESTALE, os.fsencode(tree / "d"))]
    assert [path.name for path in elsewhere.iterdir()] == ["d"]


def test_a_merge_that_breaks_off_leaves_whole_files(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    told = entry("", FileKind.DIRECTORY) + file("b", b"whole") + entry("a") + data(b"half")
    assert tool("unpack", "0", tmp_path, told=told).status == ABANDONED
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "whole"}


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(file("x"), id="a root with a name"),
        pytest.param(entry("", FileKind.SYMLINK, target="x"), id="a link for a root"),
        pytest.param(entry("", FileKind.FIFO), id="a FIFO for a root"),
        pytest.param(directory("", file("a/b")), id="slash"),
        pytest.param(directory("", file("..")), id="up"),
        pytest.param(directory("", file("")), id="no name"),
        pytest.param(directory("", entry("x", FileKind.FIFO)), id="a FIFO"),
        pytest.param(directory("", data(b"x")), id="contents of a directory"),
        pytest.param(directory("", entry("x"), entry("y")), id="a file in a file"),
        pytest.param(directory("", CLOSE), id="an end of no file"),
        pytest.param(directory("") + UP, id="up from the root"),
        pytest.param(END, id="nothing"),
    ],
)
def test_what_is_no_tree_leaves_nothing(tool: Run, tmp_path: Path, bad: bytes) -> None:
    assert tool("unpack", "0", tmp_path / "tree", told=bad + END).reason == errno.EPROTO
    assert not list(tmp_path.iterdir())


def test_unpack_goes_through_no_link(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "d").symlink_to(tmp_path / "outside")
    (tree / "f").symlink_to(tmp_path / "outside" / "f")
    said = tool("unpack", "0", tree, told=directory("", directory("d", file("x"))) + END)
    assert (said.reason, said.path) == (errno.ENOTDIR, str(tree / "d"))
    assert tool("unpack", "0", tree, told=directory("", file("f")) + END).ok
    assert not (tree / "f").is_symlink()
    assert not list((tmp_path / "outside").iterdir())
    assert tool("unpack", "0", tree / "f", told=directory("") + END).reason == errno.ENOTDIR


@pytest.mark.parametrize("second", [file("l"), directory("l", file("x")), entry("l", FileKind.SYMLINK, target=".")])
def test_a_name_that_comes_twice_is_no_way_through_a_link(tool: Run, tmp_path: Path, second: bytes) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for target in ("../outside", "../outside/new"):
        told = directory("", entry("l", FileKind.SYMLINK, target=target), second) + END
        assert tool("unpack", "0", tmp_path / "tree", told=told).reason == errno.EEXIST
    assert [path.name for path in tmp_path.rglob("*")] == ["outside"]


@given(
    st.lists(
        st.sampled_from(
            [
                *(file("a"), entry("b"), data(b"x"), CLOSE, UP, END, b"\0", b"\xff" * 9),
                *(directory("d"), entry("d", FileKind.DIRECTORY), entry("", FileKind.DIRECTORY)),
                entry("l", FileKind.SYMLINK, target=".."),
            ]
        ),
        max_size=12,
    )
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_sent_stays_in_its_place(builds: dict[str, Path], tmp_path: Path, pieces: list[bytes]) -> None:
    place = tmp_path / secrets.token_hex(8)
    place.mkdir()
    done = subprocess.run(
        [builds["sanitized"], "--files", "unpack", "0", place / "tree"],
        input=entry("", FileKind.DIRECTORY) + b"".join(pieces),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=86"},
    )
    assert done.returncode in (0, 1, ABANDONED), done.stderr
    assert [path.name for path in place.iterdir()] == (["tree"] if done.returncode == 0 else [])
