"""Trees of a hostile file tool: what is made on the host is below its place and within its bounds, or nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile_tool import CLOSE, DIRECTORY, DONE, FIFO, SYMLINK, TREE, UP, Tool, data, entry, file, files, record

from kavach_core.errors import FileOperationFailed, FileTooLarge


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the host, and beside it what a breach would reach."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("unchanged")
    return tmp_path / "inside"


def untouched(place: Path) -> bool:
    """Say whether nothing was made or changed."""
    return (place.parent / "secret").read_text() == "unchanged" and not list(place.iterdir())


async def download(stream: bytes, place: Path, **options: Any) -> Any:  # noqa: ANN401
    pieces = [stream[at : at + 50] for at in range(0, len(stream), 50)]
    return await files(Tool(*pieces)).download("x", place / "tree", **options)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(file(b""), id="no name"),
        pytest.param(entry(b"d", DIRECTORY) + record(UP) + record(UP) + record(UP), id="above the root"),
        pytest.param(entry(b"l", SYMLINK, b".") + entry(b"l", DIRECTORY) + file(b"f"), id="into a link"),
        pytest.param(entry(b"l", SYMLINK, b"f") + file(b"l"), id="through a link"),
        pytest.param(file(b"f") + file(b"f"), id="twice"),
        pytest.param(file(b"f") + entry(b"f", SYMLINK, b"f"), id="a link over a file"),
        pytest.param(data(b"x"), id="contents of a directory"),
        pytest.param(record(CLOSE), id="an end of no file"),
        pytest.param(entry(b"f") + entry(b"g"), id="a file in a file"),
        pytest.param(entry(b"f") + record(UP), id="up out of a file"),
        pytest.param(entry(b"l", SYMLINK), id="a link to nowhere"),
        pytest.param(entry(b"d", DIRECTORY), id="an open directory"),
        pytest.param(entry(b"f") + data(b"x"), id="an open file"),
    ],
)
@pytest.mark.parametrize("outside_links", [False, True])
async def test_what_is_no_tree_leaves_nothing(body: bytes, place: Path, outside_links: bool) -> None:  # noqa: FBT001
    for end in (DONE, record(UP) + DONE):
        with pytest.raises(FileOperationFailed):
            await download(TREE + body + end, place, outside_links=outside_links)
        assert untouched(place)


@pytest.mark.parametrize(
    "root",
    [
        pytest.param(entry(b"", SYMLINK, b"/etc/passwd"), id="a link"),
        pytest.param(entry(b"", FIFO), id="a FIFO"),
        pytest.param(file(b"name"), id="a root with a name"),
        pytest.param(file(b"") + file(b""), id="two roots"),
        pytest.param(TREE + record(UP) + file(b"x"), id="more after the root"),
        pytest.param(entry(), id="an open file"),
        pytest.param(TREE, id="an open directory"),
    ],
)
async def test_what_is_no_root_leaves_nothing(root: bytes, place: Path) -> None:
    with pytest.raises(FileOperationFailed):
        await download(root + DONE, place)
    assert untouched(place)


async def test_links_that_lead_out_are_left_out_unless_wanted(place: Path) -> None:
    links = {
        b"absolute": b"/etc/passwd",
        b"up": b"../secret",
        b"later": b"d/../../secret",
        b"fine": b"d/f",
        b"dots": b"./d/./f",
    }
    inner = {b"climbs": b"../f", b"too far": b"../../secret"}
    body = b"".join(entry(name, SYMLINK, target) for name, target in links.items())
    body += entry(b"d", DIRECTORY) + b"".join(entry(name, SYMLINK, target) for name, target in inner.items())
    body += record(UP) + entry(b"pipe", FIFO)
    result = await download(TREE + body + record(UP) + DONE, place)
    made = {str(path.relative_to(place / "tree")) for path in (place / "tree").rglob("*")}
    assert made == {"fine", "dots", "d", "d/climbs"}
    assert set(result.skipped) == {"absolute", "up", "later", "d/too far", "pipe"}
    assert (result.symlinks, result.skipped_count) == (3, 5)

    all_of_them = await files(Tool(TREE + body + record(UP) + DONE)).download("x", place / "all", outside_links=True)
    assert all_of_them.symlinks == 7
    assert (place / "all" / "absolute").readlink() == Path("/etc/passwd")


async def test_bits_that_give_rights_are_dropped(place: Path) -> None:
    body = file(b"suid", mode=0o7755) + entry(b"d", DIRECTORY, mode=0o7000) + file(b"f", mode=0o000) + record(UP)
    await download(TREE + body + record(UP) + DONE, place)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (place / "tree").rglob("*")}
    assert modes == {"suid": 0o755, "d": 0o700, "f": 0o000}


@pytest.mark.parametrize(
    ("body", "bounds"),
    [
        pytest.param(file(b"a", bytes(600)) + file(b"b", bytes(600)), {"max_bytes": 1199}, id="bytes"),
        pytest.param(b"".join(file(b"%d" % number) for number in range(20)), {"max_entries": 20}, id="files"),
        pytest.param(b"".join(entry(b"%d" % n, FIFO) for n in range(20)), {"max_entries": 20}, id="left out"),
        pytest.param(entry(b"d", DIRECTORY) * 256 + record(UP) * 256, {}, id="depth"),
    ],
)
async def test_bounds_of_a_tree(body: bytes, bounds: dict[str, int], place: Path) -> None:
    with pytest.raises(FileTooLarge):
        await download(TREE + body + record(UP) + DONE, place, **bounds)
    assert untouched(place)


async def test_a_tree_at_its_bounds(place: Path) -> None:
    body = file(b"a", bytes(600)) + file(b"b", bytes(600)) + entry(b"d", DIRECTORY) * 255 + record(UP) * 255
    result = await download(TREE + body + record(UP) + DONE, place, max_bytes=1200, max_entries=258)
    assert (result.files, result.directories, result.size) == (2, 256, 1200)


async def test_what_was_left_out_is_told_up_to_a_bound(place: Path) -> None:
    body = b"".join(entry(b"%d" % number, FIFO) for number in range(500))
    result = await download(TREE + body + record(UP) + DONE, place)
    assert (len(result.skipped), result.skipped_count) == (100, 500)


async def test_a_download_that_breaks_off_leaves_nothing(place: Path) -> None:
    whole = TREE + file(b"a") + entry(b"d", DIRECTORY) + file(b"b") + record(UP) + record(UP) + DONE
    for length in range(len(whole)):
        with pytest.raises(FileOperationFailed):
            await download(whole[:length], place)
        assert untouched(place)
    result = await download(whole, place)
    assert (result.files, result.directories, result.size) == (2, 2, 2)
