"""A hostile file tool: whatever it says, kills of it, and silence. The host gives an error and never a wrong answer."""

from __future__ import annotations

import errno
import math
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from kavach_guest.files import AgentFiles

from kavach_core.abc import GuestStartError
from kavach_core.errors import FileOperationFailed, FileTimeout, FileTooLarge, NotRegularFile, SandboxGone
from kavach_core.files import SandboxFiles
from kavach_core.types import ExecRequest, GuestExit, StartFailure, User

ENTRY, DATA, CLOSE, UP, FINISHED, FAILED = range(1, 7)
FILE, DIRECTORY, SYMLINK, FIFO = 1, 2, 3, 4
NOBODY = User(uid=65534, gid=65534)
OK = GuestExit(exit_code=0)


def record(type_: int, payload: bytes = b"") -> bytes:
    return struct.pack("<II", len(payload), type_) + payload


def entry(name: bytes = b"", kind: int = FILE, target: bytes = b"", mode: int = 0o644) -> bytes:
    fixed = struct.pack("<HHHHIIIQq", kind, len(name), len(target), 0, mode, 0, 0, 0, 0)
    return record(ENTRY, fixed + name + target)


def data(contents: bytes) -> bytes:
    return record(DATA, contents)


def file(name: bytes, contents: bytes = b"x", mode: int = 0o644) -> bytes:
    return entry(name, mode=mode) + (data(contents) if contents else b"") + record(CLOSE)


def failed(reason: int, path: bytes = b"") -> bytes:
    return record(FAILED, struct.pack("<I", reason) + path)


DONE = record(FINISHED)
TREE = entry(b"", DIRECTORY, mode=0o755)


class Reader(trio.abc.ReceiveStream):
    """What the tool says; after it the end of its output, or nothing any more."""

    def __init__(self, pieces: Iterable[bytes], *, ends: bool, gone: bool) -> None:
        self._pieces = iter(pieces)
        self._ends = ends
        self._gone = gone

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next piece."""
        del max_bytes
        await trio.lowlevel.checkpoint()
        piece = next(self._pieces, b"")
        if not piece and self._gone:
            raise SandboxGone("the box has ended")
        if not piece and not self._ends:
            await trio.sleep_forever()
        return piece

    async def aclose(self) -> None:
        """Do nothing."""


class Writer(trio.abc.SendStream):
    """What the tool hears: so many bytes, and then it has ended or takes nothing any more."""

    def __init__(self, takes: float, *, breaks: bool) -> None:
        self.heard = bytearray()
        self.closed = False
        self._takes = takes
        self._breaks = breaks

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take it, or not."""
        await trio.lowlevel.checkpoint()
        if len(self.heard) + len(data) > self._takes:
            if self._breaks:
                raise trio.BrokenResourceError
            await trio.sleep_forever()
        self.heard += data

    async def wait_send_all_might_not_block(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


class Tool:
    """A file tool that says what it is told to. Starts as often as it is asked to."""

    def __init__(
        self,
        *pieces: bytes,
        ends: bool = True,
        gone: bool = False,
        ended: GuestExit | None = OK,
        takes: float = math.inf,
        breaks: bool = False,
    ) -> None:
        self.pid = 7
        self.killed = False
        self.closed = False
        self.signals: list[int] = []
        self.request: ExecRequest | None = None
        self.stdin: Writer | None = None
        self.stdout = Reader(pieces, ends=ends, gone=gone)
        self._takes, self._breaks = takes, breaks
        self._ended = ended

    async def start(self, request: ExecRequest) -> Any:  # noqa: ANN401 - a GuestProcess as far as it is used
        """Be started."""
        self.request = request
        if request.stdin:
            self.stdin = Writer(self._takes, breaks=self._breaks)
        return self

    async def wait(self) -> GuestExit:
        """End, or never."""
        await trio.lowlevel.checkpoint()
        if self._ended is None and not self.killed:
            await trio.sleep_forever()
        return self._ended or GuestExit(exit_code=None, signal=9)

    async def send_signal(self, number: int) -> None:
        """Be woken."""
        self.signals.append(number)

    async def kill(self) -> None:
        """Be killed."""
        self.killed = True

    async def aclose(self) -> None:
        """Be let go."""
        self.closed = True


def files(tool: Tool) -> SandboxFiles:
    return SandboxFiles(
        AgentFiles(tool.start), cwd="/work", user=NOBODY, sandbox_id="00ff", require_running=lambda: None
    )


CALLS = {
    "stat": lambda f: f.stat("x"),
    "exists": lambda f: f.exists("x"),
    "list": lambda f: f.list("x"),
    "read": lambda f: f.read("x"),
    "write": lambda f: f.write("x", b"data"),
    "mkdir": lambda f: f.mkdir("x"),
    "remove": lambda f: f.remove("x"),
    "rename": lambda f: f.rename("x", "y"),
    "download": lambda f: f.download("x", "/tmp/kavach-hostile-never"),
    "upload": lambda f: f.upload("/etc/hostname", "x"),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401 - a function of SandboxFiles
    return CALLS[request.param]


ENDS = [
    pytest.param(GuestExit(exit_code=None, signal=9), "killed by signal 9", id="killed"),
    pytest.param(GuestExit(exit_code=0), "status 0", id="status 0"),
    pytest.param(GuestExit(exit_code=3), "status 3", id="status 3"),
]


@pytest.mark.parametrize(("ended", "words"), ENDS)
@pytest.mark.parametrize("said", [b"", DONE[:-1], entry()[:-1], failed(2)[:-1]], ids=["nothing", "half", "h", "ha"])
async def test_an_end_without_a_last_word(call: Any, ended: GuestExit, words: str, said: bytes) -> None:  # noqa: ANN401
    tool = Tool(*([said] if said else []), ended=ended)
    with pytest.raises(FileOperationFailed, match=words) as caught:
        await call(files(tool))
    assert caught.value.sandbox_id == "00ff"
    assert caught.value.code == "file_operation_failed"
    assert tool.closed


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(record(99), id="unknown record"),
        pytest.param(record(CLOSE) + DONE, id="a mark"),
        pytest.param(data(b"x") + DONE, id="contents of nothing"),
        pytest.param(entry() + entry(b"x") * 2 + DONE, id="entries"),
        pytest.param(entry(b"..") + DONE, id="a way up"),
        pytest.param(b"\xff" * 100, id="noise"),
        pytest.param(failed(5000), id="impossible reason"),
    ],
)
async def test_what_makes_no_sense(
    call: Any,  # noqa: ANN401
    said: bytes,
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    tool = Tool(said, ended=None)
    with pytest.raises(FileOperationFailed):
        await call(files(tool))
    assert tool.killed
    assert tool.closed


async def test_done_without_an_answer() -> None:
    for name in ("stat", "read", "download"):
        with pytest.raises(FileOperationFailed):
            await CALLS[name](files(Tool(DONE)))


async def test_an_answer_that_nobody_asked_for() -> None:
    for name in ("write", "mkdir", "remove", "rename", "upload"):
        with pytest.raises(FileOperationFailed):
            await CALLS[name](files(Tool(entry() + DONE)))


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.EEXIST, FileExistsError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.ENOSPC, OSError),
        (4000, OSError),
    ],
)
async def test_errors_are_the_built_in_ones(call: Any, number: int, error: type[OSError]) -> None:  # noqa: ANN401
    tool = Tool(failed(number, b"/work/x\xff"))
    if number == errno.ENOENT and call is CALLS["exists"]:
        assert await call(files(tool)) is False
        return
    if number == errno.ENOTDIR and call is CALLS["exists"]:
        assert await call(files(tool)) is False
        return
    with pytest.raises(error) as caught:
        await call(files(tool))
    assert type(caught.value) is error
    assert (caught.value.errno, caught.value.filename) == (number, "/work/x\udcff")
    assert tool.closed


async def test_an_error_without_a_path_is_about_the_call(call: Any) -> None:  # noqa: ANN401
    tool = Tool(failed(errno.EACCES))
    with pytest.raises(PermissionError) as caught:
        await call(files(tool))
    assert caught.value.filename == "/work/x"
    assert not tool.killed, "it ends by itself"


async def test_errors_of_our_own() -> None:
    with pytest.raises(FileTooLarge) as large:
        await files(Tool(failed(65_536, b"/work/x"))).read("x")
    assert (large.value.errno, large.value.filename, large.value.code) == (errno.EFBIG, "/work/x", "file_too_large")
    with pytest.raises(NotRegularFile) as other:
        await files(Tool(failed(65_537, b"/work/x"))).read("x")
    assert (other.value.filename, other.value.code) == ("/work/x", "not_regular_file")
    with pytest.raises(FileTooLarge):
        await files(Tool(failed(65_538))).list("x")
    with pytest.raises(FileTooLarge):
        await files(Tool(failed(65_539))).download("x", "/tmp/kavach-hostile-never")


async def test_a_box_that_is_gone(call: Any) -> None:  # noqa: ANN401
    tool = Tool(gone=True)
    with pytest.raises(SandboxGone):
        await call(files(tool))
    assert tool.closed


async def test_a_tool_that_cannot_be_started(call: Any) -> None:  # noqa: ANN401
    async def refuse(_: ExecRequest) -> Any:  # noqa: ANN401
        raise GuestStartError(StartFailure(stage="resources", errno=errno.EAGAIN))

    tool = Tool()
    tool.start = refuse  # type: ignore[method-assign]
    with pytest.raises(FileOperationFailed, match=r"Resource temporarily unavailable \(resources\)"):
        await call(files(tool))


async def test_silence_lasts_to_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    for pieces in ([], [entry()], [entry()[:20]]):
        tool = Tool(*pieces, ends=False, ended=None)
        with pytest.raises(FileTimeout) as caught:
            await files(tool).read("x", timeout=5)
        assert isinstance(caught.value, TimeoutError)
        assert tool.killed
        assert tool.closed


async def test_a_tool_that_does_not_end_after_its_last_word(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    tool = Tool(entry() + DONE, ended=None)
    assert (await files(tool).stat("x")).name == "x"
    assert tool.killed


async def test_more_than_was_asked_for_is_not_kept() -> None:
    endless = (data(bytes(10_000)) for _ in range(1000))
    with pytest.raises(FileOperationFailed, match="more than was asked for"):
        await files(Tool(entry(), *endless)).read("x", max_bytes=100_000)
    names = (entry(b"%d" % number) for number in range(1000))
    with pytest.raises(FileOperationFailed):
        await files(Tool(*names, DONE)).list("x", max_entries=10)


async def test_names_are_bounded_in_all() -> None:
    long = (entry(b"%d" % number, SYMLINK, bytes(4095).replace(b"\0", b"t")) for number in range(20_000))
    with pytest.raises(FileTooLarge):
        await files(Tool(*long, DONE)).list("x")


async def test_a_tool_that_is_done_before_it_has_all() -> None:
    tool = Tool(DONE, takes=100_000, breaks=True)
    with pytest.raises(FileOperationFailed, match="before it had all"):
        await files(tool).write("x", bytes(1_000_000))


async def test_a_failure_in_the_middle_of_a_write() -> None:
    tool = Tool(failed(errno.ENOSPC, b"/work/x"), takes=100_000, breaks=True)
    with pytest.raises(OSError, match="No space left") as caught:
        await files(tool).write("x", bytes(1_000_000))
    assert caught.value.errno == errno.ENOSPC


async def test_a_cancelled_write_is_never_finished(autojump_clock: trio.testing.MockClock) -> None:
    """Also where the cancellation does not leave the block: half a piece was sent, and no more may follow."""
    del autojump_clock
    tool = Tool(DONE, takes=300_000, ended=None)
    with pytest.raises(FileOperationFailed, match="not all of it was sent") as caught:
        async with files(tool).open_write("x") as stream:
            with trio.move_on_after(1):
                await stream.send_all(bytes(1_000_000))
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(bytes(100_000))
    assert tool.stdin is not None
    assert tool.stdin.closed
    assert not tool.stdin.heard.endswith(DONE)
    assert tool.killed
    assert tool.signals == [signal.SIGCONT]
    assert caught.value.sandbox_id == "00ff"


async def test_an_error_in_the_block_is_no_end_of_the_file() -> None:
    tool = Tool(ended=GuestExit(exit_code=3))
    with pytest.raises(ZeroDivisionError):
        async with files(tool).open_write("x") as stream:
            await stream.send_all(bytes(200_000))
            raise ZeroDivisionError
    assert tool.stdin is not None
    assert tool.stdin.closed
    assert DONE not in tool.stdin.heard[-8:]
    assert not tool.killed, "its input has ended, so it removes what it had begun"


# --- trees ------------------------------------------------------------------------------------------


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
