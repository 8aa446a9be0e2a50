"""A hostile file tool: whatever it says, kills of it, and silence. The host gives an error and never a wrong answer."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest
import trio
import trio.testing
from hostile_tool import CLOSE, DONE, SYMLINK, Tool, data, entry, failed, files, record

from kavach_core.abc import GuestStartError
from kavach_core.errors import FileOperationFailed, FileTimeout, FileTooLarge, NotRegularFile, SandboxGone
from kavach_core.types import ExecRequest, GuestExit, StartFailure

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
