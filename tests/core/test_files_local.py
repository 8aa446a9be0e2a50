"""The host's side of copying: what a hostile tree can do to it, with each protection and without, and what is read."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kavach_core.errors import FileOperationFailed, FileTooLarge, NotRegularFile
from kavach_core.files import local_target
from kavach_core.files.links import stays_inside
from kavach_core.files.local_source import read_tree
from kavach_core.files.local_target import Bounds, LocalTarget
from kavach_core.files.transferred import Tally
from kavach_core.guest_files import FileKind, TreeEntry, TreeEvent, TreeMark

BOUNDS = Bounds(max_bytes=1_000_000, max_entries=1000, outside_links=False)
ALL_LINKS = Bounds(max_bytes=1_000_000, max_entries=1000, outside_links=True)
ROOT = TreeEntry(kind=FileKind.DIRECTORY, mode=0o755)
UP, CLOSE = TreeMark.UP, TreeMark.CLOSE


def directory(name: bytes) -> TreeEntry:
    return TreeEntry(kind=FileKind.DIRECTORY, name=name, mode=0o755)


def link(name: bytes, target: bytes) -> TreeEntry:
    return TreeEntry(kind=FileKind.SYMLINK, name=name, target=target)


def file(name: bytes, contents: bytes = b"changed") -> list[TreeEvent]:
    return [TreeEntry(kind=FileKind.FILE, name=name, mode=0o644), contents, CLOSE]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the tree is to be; beside it is what a breach would reach."""
    (tmp_path / "secret").write_text("unchanged")
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "tree"


def make(place: Path, events: list[TreeEvent], bounds: Bounds = BOUNDS) -> LocalTarget:
    target = LocalTarget(str(place), bounds)
    try:
        target.apply(events)
        target.commit()
    finally:
        target.close()
    return target


def secret(place: Path) -> str:
    return (place.parents[1] / "secret").read_text()


# --- a protection taken away lets something through -------------------------------------------------

THROUGH_A_LINK: list[TreeEvent] = [ROOT, link(b"l", b"../../secret"), *file(b"l"), UP]
BY_NAME: list[TreeEvent] = [ROOT, *file(b"../../secret"), UP]
INTO_A_LINK: list[TreeEvent] = [ROOT, link(b"l", b"../.."), directory(b"l"), *file(b"made"), UP, UP]


def test_no_file_is_written_through_a_link(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileOperationFailed, match="twice"):
        make(place, THROUGH_A_LINK, ALL_LINKS)
    assert secret(place) == "unchanged"
    monkeypatch.setattr(local_target, "_NEW_FILE", os.O_WRONLY | os.O_CREAT)
    make(place, THROUGH_A_LINK, ALL_LINKS)
    assert secret(place).startswith("changed"), "the protection was not what protects"


def test_no_name_is_a_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileOperationFailed, match="impossible name"):
        make(place, BY_NAME)
    assert secret(place) == "unchanged"
    monkeypatch.setattr(local_target, "_is_name", lambda _: True)
    monkeypatch.setattr(local_target, "_NEW_FILE", os.O_WRONLY | os.O_CREAT)
    make(place, BY_NAME)
    assert secret(place).startswith("changed")


def test_no_directory_is_entered_through_a_link(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileOperationFailed, match="twice"):
        make(place, INTO_A_LINK, ALL_LINKS)
    assert not (place.parents[1] / "made").exists()
    real = os.mkdir

    def forgiving(name: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:  # noqa: ANN401
        if name != b"l":
            real(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(local_target.os, "mkdir", forgiving)
    with pytest.raises(OSError, match="Not a directory"):
        make(place, INTO_A_LINK, ALL_LINKS)
    monkeypatch.setattr(local_target, "_DIRECTORY", os.O_RDONLY | os.O_DIRECTORY)
    make(place, INTO_A_LINK, ALL_LINKS)
    assert (place.parents[1] / "made").read_text() == "changed"


def test_no_link_leads_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[TreeEvent] = [ROOT, link(b"l", b"../../secret"), UP]
    made = make(place, events)
    assert not list(place.iterdir())
    assert made.tally.total().skipped == ("l",)
    place.rmdir()
    monkeypatch.setattr(local_target, "stays_inside", lambda *_: True)
    make(place, events)
    assert (place / "l").read_text() == "unchanged"


def test_no_bit_gives_rights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[TreeEvent] = [TreeEntry(kind=FileKind.FILE, mode=0o6755), CLOSE]
    make(place, events)
    assert place.stat().st_mode & 0o7777 == 0o755
    monkeypatch.setattr(local_target, "_ORDINARY_BITS", 0o7777)
    make(place, events)
    assert place.stat().st_mode & 0o7777 == 0o6755


def test_nothing_is_seen_before_it_is_complete(place: Path) -> None:
    target = LocalTarget(str(place), BOUNDS)
    target.apply([ROOT, *file(b"a"), UP])
    assert not place.exists()
    hidden = list(place.parent.iterdir())
    assert [path.stat().st_mode & 0o077 for path in hidden if path.name.startswith(".kavach-")] == [0o055]
    target.commit()
    target.close()
    target.close()
    assert [path.name for path in place.parent.iterdir()] == ["tree"]


def test_what_is_being_made_is_closed_to_others(place: Path) -> None:
    target = LocalTarget(str(place), BOUNDS)
    target.apply([ROOT, directory(b"d"), TreeEntry(kind=FileKind.FILE, name=b"f", mode=0o666), b"x"])
    (hidden,) = place.parent.iterdir()
    modes = [path.stat().st_mode & 0o777 for path in (hidden, hidden / "d", hidden / "d" / "f")]
    assert modes == [0o700, 0o700, 0o600]
    target.close()
    assert not list(place.parent.iterdir())


def test_a_commit_before_the_end(place: Path) -> None:
    for events in ([], [ROOT], [ROOT, directory(b"d"), UP], [TreeEntry(kind=FileKind.FILE), b"x"]):
        with pytest.raises(FileOperationFailed):
            make(place, list(events))
    assert not list(place.parent.iterdir())


def test_no_descriptor_is_left(place: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    with pytest.raises(FileOperationFailed):
        make(place, [ROOT, *[directory(b"d")] * 50, *file(b"f"), b"x"])
    make(place, [ROOT, *[directory(b"d")] * 50, *file(b"f"), *[UP] * 51])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))  # noqa: PTH208
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_descriptors")
def test_what_the_host_cannot_do_leaves_nothing(place: Path) -> None:
    with pytest.raises(OSError, match="Too many open files"):
        make(place, [ROOT, *[directory(b"d")] * 100])
    assert not list(place.parent.iterdir())


# --- links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        (b"a", 0, True),
        (b"a/b/./c", 0, True),
        (b".", 0, True),
        (b"", 0, True),
        (b"..", 0, False),
        (b"..", 1, True),
        (b"../..", 1, False),
        (b"./../x", 1, True),
        (b"../x", 0, False),
        (b"a/..", 5, False),
        (b"a/../b", 5, False),
        (b"/", 5, False),
        (b"/a", 5, False),
        (b"//a", 5, False),
        (b"...", 0, True),
        (b"..a", 0, True),
    ],
)
def test_which_links_stay(target: bytes, depth: int, inside: bool) -> None:  # noqa: FBT001
    assert stays_inside(target, depth) is inside


PARTS = st.lists(st.sampled_from(["..", ".", "a", "b", "c", ""]), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from("dlu"), PARTS), max_size=25))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_links_there_are_none_leads_out(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, list[str]]]
) -> None:
    """Each kept link is resolved by the kernel's rules; none ends outside of the tree."""
    place = tmp_path_factory.mktemp("links") / "tree"
    events: list[TreeEvent] = [ROOT]
    used: list[set[str]] = [set()]
    for name, what, parts in steps:
        if what == "u" and len(used) > 1:
            events.append(UP)
            used.pop()
        elif what == "d" and name not in used[-1]:
            used[-1].add(name)
            events.append(directory(name.encode()))
            used.append(set())
        elif what == "l" and name not in used[-1] and "/".join(parts):
            used[-1].add(name)
            events.append(link(name.encode(), "/".join(parts).encode()))
    make(place, [*events, *[UP] * len(used)])
    root = os.path.realpath(place)
    for folder, directories, files in os.walk(place):
        for name in (*directories, *files):
            try:
                path = os.path.realpath(Path(folder) / name, strict=True)
            except FileNotFoundError:
                path = os.path.realpath(Path(folder) / name)
            except OSError:  # it leads to itself: nowhere
                continue
            assert path == root or path.startswith(root + "/"), (events, name)


# --- any sequence of events -------------------------------------------------------------------------

EVENTS = st.sampled_from(
    [
        *(ROOT, UP, CLOSE, b"x", b"", directory(b"d"), TreeEntry(kind=FileKind.FILE, name=b"f", mode=0o777)),
        *(link(b"l", b".."), link(b"l", b"."), link(b"l", b"/"), link(b"l", b""), directory(b".."), directory(b"l")),
        *(
            TreeEntry(kind=FileKind.FIFO, name=b"p"),
            TreeEntry(kind=FileKind.FILE, name=b"../../secret"),
            directory(b""),
        ),
    ]
)


@given(st.lists(EVENTS, max_size=30), st.booleans())
@settings(max_examples=500)
def test_any_events_make_a_tree_or_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[TreeEvent],
    outside_links: bool,  # noqa: FBT001
) -> None:
    top = tmp_path_factory.mktemp("any")
    (top / "secret").write_text("unchanged")
    (top / "place").mkdir()
    place = top / "place" / "tree"
    try:
        make(place, events, ALL_LINKS if outside_links else BOUNDS)
    except FileOperationFailed:
        assert not list(place.parent.iterdir())
    else:
        assert [path.name for path in place.parent.iterdir()] == ["tree"]
    assert {path.name for path in top.iterdir()} == {"secret", "place"}
    assert (top / "secret").read_text() == "unchanged"


# --- reading the host's files -----------------------------------------------------------------------


def events_of(path: Path) -> tuple[list[TreeEvent], Tally]:
    tally = Tally()
    return [event for batch in read_tree(str(path), tally) for event in batch], tally


def test_a_tree_is_read_and_made_again(tmp_path: Path) -> None:
    source = tmp_path / "from"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(bytes(700_000))
    (source / "l").symlink_to("d/f")
    (source / "s").write_bytes(b"x")
    (source / "s").chmod(0o4711)
    events, tally = events_of(source)
    assert events[0] == TreeEntry(kind=FileKind.DIRECTORY, mode=stat.S_IMODE(source.stat().st_mode))
    assert (tally.files, tally.directories, tally.symlinks, tally.size) == (2, 2, 1, 700_001)
    make(tmp_path / "to", events)
    assert (tmp_path / "to" / "d" / "f").read_bytes() == bytes(700_000)
    assert (tmp_path / "to" / "l").readlink() == Path("d/f")
    assert (tmp_path / "to" / "s").stat().st_mode & 0o7777 == 0o711


def test_batches_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5_000_000))
    for number in range(3000):
        (tmp_path / f"{number}").touch()
    for batch in read_tree(str(tmp_path), Tally()):
        assert len(batch) <= 1000
        assert sum(len(event) for event in batch if isinstance(event, bytes)) <= 1024 * 1024 + 262_144


def test_the_root_is_no_link_and_no_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="symbolic links"):
        events_of(tmp_path / "link")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(NotRegularFile):
            events_of(path)


def test_links_in_a_tree_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shadow").symlink_to("/etc/shadow")
    (tmp_path / "etc").symlink_to("/etc")
    events, _ = events_of(tmp_path)
    assert events[1:] == [link(b"etc", b"/etc"), link(b"shadow", b"/etc/shadow"), UP]


def test_depth_is_bounded(deep_path: Path) -> None:
    deep = deep_path
    for _ in range(255):
        deep /= "d"
    deep.mkdir(parents=True)
    assert events_of(deep_path)[1].directories == 256
    (deep / "d").mkdir()
    with pytest.raises(FileTooLarge):
        events_of(deep_path)


def test_a_reader_that_is_given_up_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(bytes(5_000_000))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    batches = read_tree(str(tmp_path), Tally())
    next(batches)
    assert len(os.listdir("/proc/self/fd")) == before + 3  # noqa: PTH208 - as above
    batches.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
