"""The file tool itself, as a process of the host's: what it makes of paths, files and what it is told."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kavach_guest import file_records
from kavach_guest.agent import agent_program
from kavach_guest.file_records import DONE, Entry, Failed, Record, RecordParser

from kavach_core.guest_files import FileKind, TreeEntry, TreeMark

SOURCES = Path(__file__).parents[2] / "plugins" / "kavach_guest" / "agent"
MAIN = '#include "files.h"\nint main(int argc, char **argv) { return files_main(argc, argv); }\n'
DATA, FINISHED = 2, 5
AS_IT_IS = "65536"
ABANDONED, MISUSED = 3, 2
SECONDS = 30


@pytest.fixture(scope="session")
def programs() -> Iterator[dict[str, Path]]:
    """The tool as it is installed, and alone, built so that it dies of a mistake; where every user reaches them."""
    folder = Path(tempfile.mkdtemp(prefix="kavach-file-tool-"))
    folder.chmod(0o755)
    release = Path(shutil.copy(agent_program(), folder / "release"))
    main = folder / "main.c"
    main.write_text(MAIN)
    units = [str(path) for path in sorted(SOURCES.glob("files*.c"))]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    warn = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", f"-I{SOURCES}", *warn, *sanitize, str(main), *units]
    subprocess.run([*command, "-o", str(folder / "sanitized")], check=True)
    yield {"release": release, "sanitized": folder / "sanitized"}
    shutil.rmtree(folder)


class Said:
    """What the tool said, and how it ended."""

    def __init__(self, records: list[Record], status: int) -> None:
        self.status = status
        self.last = records[-1] if records else None
        self.records = records[:-1]

    @property
    def contents(self) -> bytes:
        """All contents."""
        return b"".join(record for record in self.records if isinstance(record, bytes))

    @property
    def entries(self) -> list[Entry]:
        """All entries."""
        return [record for record in self.records if isinstance(record, Entry)]

    @property
    def ok(self) -> bool:
        """True when it said that all is done, and ended well."""
        return self.last is DONE and self.status == 0

    @property
    def reason(self) -> int:
        """Why it failed."""
        assert isinstance(self.last, Failed)
        assert self.status == 1
        return self.last.reason

    @property
    def path(self) -> str:
        """What that was about."""
        assert isinstance(self.last, Failed)
        return os.fsdecode(self.last.path)


Run = Callable[..., Said]


@pytest.fixture(params=["release", "sanitized"])
def tool(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Run:
    """Run the tool to its end."""
    program = programs[request.param]

    def run(*words: str | Path, told: bytes | None = None, user: int | None = None) -> Said:
        done = subprocess.run(
            [program, "--files", *words],
            input=told,
            stdin=subprocess.DEVNULL if told is None else None,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            user=user,
            env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=86"},
        )
        assert done.stderr == b""
        return Said(RecordParser().feed(done.stdout), done.returncode)

    return run


def data(contents: bytes) -> bytes:
    pieces = [contents[at : at + 262_144] for at in range(0, len(contents), 262_144)]
    return b"".join(struct.pack("<II", len(piece), DATA) + piece for piece in pieces)


END = struct.pack("<II", 0, FINISHED)


def entry(name: str, kind: FileKind = FileKind.FILE, mode: int = 0o644, target: str = "") -> bytes:
    return file_records.encode_event(
        TreeEntry(kind=kind, name=os.fsencode(name), mode=mode, target=os.fsencode(target))
    )


CLOSE = file_records.encode_event(TreeMark.CLOSE)
UP = file_records.encode_event(TreeMark.UP)


def file(name: str, contents: bytes = b"x", mode: int = 0o644) -> bytes:
    return entry(name, mode=mode) + data(contents) + CLOSE


def directory(name: str, *inside: bytes, mode: int = 0o755) -> bytes:
    return entry(name, FileKind.DIRECTORY, mode) + b"".join(inside) + UP


def hidden(folder: Path) -> list[Path]:
    """Return what was left of hidden names."""
    return list(folder.rglob(".kavach-*"))


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


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
def test_nobody_of_the_same_user_may_look_into_it(programs: dict[str, Path], mine: Path) -> None:
    """Its memory and its descriptors are root's, and its pipes have no permissions. Seen while it waits for more."""
    command = [programs["release"], "--files", "write", AS_IT_IS, "0", "0", mine / "x"]
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


def test_its_pipes_cannot_be_opened_anew(programs: dict[str, Path], tmp_path: Path) -> None:
    command = [programs["release"], "--files", "write", AS_IT_IS, "0", "0", tmp_path / "x"]
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


# --- writing ----------------------------------------------------------------------------------------


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


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A directory that user 65534 reaches and owns."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(0o711)
    path = tmp_path / "mine"
    path.mkdir()
    os.chown(path, 65534, 65534)
    return path


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


# --- names ------------------------------------------------------------------------------------------


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


# --- trees ------------------------------------------------------------------------------------------


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
    programs: dict[str, Path], tmp_path: Path, build: str
) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    tree.mkdir()
    elsewhere.mkdir()
    command = [programs[build], "--files", "unpack", "0", tree]
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
def test_whatever_is_sent_stays_in_its_place(programs: dict[str, Path], tmp_path: Path, pieces: list[bytes]) -> None:
    place = tmp_path / secrets.token_hex(8)
    place.mkdir()
    done = subprocess.run(
        [programs["sanitized"], "--files", "unpack", "0", place / "tree"],
        input=entry("", FileKind.DIRECTORY) + b"".join(pieces),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=86"},
    )
    assert done.returncode in (0, 1, ABANDONED), done.stderr
    assert [path.name for path in place.iterdir()] == (["tree"] if done.returncode == 0 else [])
