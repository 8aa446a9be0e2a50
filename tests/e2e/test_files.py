"""``sandbox.files`` in real boxes: exact contents, errors of the kernel, the user's permissions, links that stay in."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import trio

import kavach_core as kavach_api
from kavach_core import ConfigError, FileKind, FileOperationFailed, FileTooLarge, NotRegularFile, SandboxGone

MIB = 1024**2


@asynccontextmanager
async def box(backend: str, **fields: Any) -> AsyncIterator[kavach_api.Sandbox]:  # noqa: ANN401
    """Give a sandbox, and fail where something hangs."""
    with trio.fail_after(90):
        async with kavach_api.open_sandbox(backend=backend, **fields) as sandbox:
            yield sandbox


async def names(sandbox: kavach_api.Sandbox, path: str = "/work") -> list[str]:
    """Ask a command of the box what is in a directory."""
    return (await sandbox.exec("ls", "-A", path, check=True)).stdout.split()


# --- contents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 262_144, 262_145, 5_000_000])
async def test_what_is_written_is_what_is_read(backend: str, size: int) -> None:
    blob = secrets.token_bytes(size)
    async with box(backend) as sandbox:
        await sandbox.files.write("blob", blob)
        seen = await sandbox.exec("sha256sum", "/work/blob", check=True)
        assert seen.stdout.split()[0] == hashlib.sha256(blob).hexdigest()
        assert await sandbox.files.read("/work/blob") == blob
        assert await names(sandbox) == ["blob"]
        about = await sandbox.files.stat("blob")
        assert (about.name, about.size, about.mode, about.uid, about.kind) == (
            "blob",
            size,
            0o644,
            65534,
            FileKind.FILE,
        )


async def test_forms_of_data(backend: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            yield b"%d\n" % number

    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("text", "ü\n")
        assert await files.read("text") == b"\xc3\xbc\n"
        assert await files.read_text("text") == "ü\n"
        await files.write("text", b"\xfc", append=True)
        with pytest.raises(UnicodeDecodeError):
            await files.read_text("text")
        assert (await files.read_text("text", errors="replace"))[-1] == "\N{REPLACEMENT CHARACTER}"
        assert await files.read_text("text", encoding="latin-1") == "Ã¼\nü"
        await files.write("pieces", pieces())
        assert await files.read("pieces") == b"0\n1\n2\n3\n4\n"
        await files.write(PurePosixPath("view"), memoryview(b"abc")[1:])
        assert await files.read("view") == b"bc"
        await files.write("array", bytearray(b"xyz"), mode=0o600)
        assert (await files.stat("array")).mode == 0o600


async def test_parts_and_bounds(backend: str) -> None:
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("file", bytes(range(256)))
        assert await files.read("file", offset=250) == bytes(range(250, 256))
        assert await files.read("file", offset=10, length=5) == bytes(range(10, 15))
        assert await files.read("file", offset=300) == b""
        assert await files.read("file", max_bytes=256) == bytes(range(256))
        with pytest.raises(FileTooLarge) as caught:
            await files.read("file", max_bytes=255)
        assert caught.value.filename == "/work/file"
        with pytest.raises(FileTooLarge):
            await files.read("file", length=256, max_bytes=255)
        with pytest.raises(FileTooLarge):
            await files.read("/proc/cpuinfo", max_bytes=10)


async def test_a_stream_of_any_length_is_read_and_written_piece_by_piece(backend: str) -> None:
    count = 20 if backend == "gvisor" else 200
    piece = secrets.token_bytes(MIB)
    async with box(backend, limits=kavach_api.Limits(tmp=512 * MIB)) as sandbox:
        async with sandbox.files.open_write("/tmp/big") as stream:
            for _ in range(count):
                await stream.send_all(piece)
        digest, size = hashlib.sha256(), 0
        async with sandbox.files.open_read("/tmp/big") as source:
            async for part in source:
                digest.update(part)
                size += len(part)
        assert size == count * MIB
        assert digest.hexdigest() == hashlib.sha256(piece * count).hexdigest()
        async with sandbox.files.open_read("/tmp/big", offset=size - 3) as source:
            assert await source.receive_some(2) == piece[-3:-1]
            assert await source.receive_some() == piece[-1:]
            assert await source.receive_some() == b""


async def test_a_command_sees_the_old_file_or_the_new_one(backend: str) -> None:
    async with box(backend) as sandbox:
        await sandbox.files.write("file", "old")
        async with sandbox.files.open_write("file") as stream:
            await stream.send_all(bytes(200_000))
            assert await sandbox.files.read("file") == b"old"
            assert (await sandbox.exec("cat", "file")).stdout == "old"
        assert await sandbox.files.read("file") == bytes(200_000)
        with pytest.raises(ZeroDivisionError):
            async with sandbox.files.open_write("file") as stream:
                await stream.send_all(bytes(300_000))
                raise ZeroDivisionError
        assert await sandbox.files.read("file") == bytes(200_000)
        assert await names(sandbox) == ["file"]


# --- names ------------------------------------------------------------------------------------------


async def test_names_and_what_they_stand_for(backend: str) -> None:
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.mkdir("a/b", parents=True)
        await files.mkdir("a/b", exist_ok=True)
        await files.write("a/new/file", "x", create_parents=True)
        await sandbox.shell("ln -s file a/new/link; ln -s /no/where a/loose; mkfifo a/fifo; chmod 4711 a/new/file")
        listing = await files.list("a")
        assert [entry.name for entry in listing] == ["b", "fifo", "loose", "new"]
        assert [entry.kind.value for entry in listing] == ["directory", "fifo", "symlink", "directory"]
        assert listing[2].target == "/no/where"
        assert listing[0].is_dir
        link = await files.stat("a/new/link", follow_symlinks=False)
        assert (link.is_symlink, link.target) == (True, "file")
        assert (await files.stat("a/new/link")).mode == 0o4711
        assert await files.exists("a/new/link")
        assert not await files.exists("a/loose")
        assert await files.exists("a/loose", follow_symlinks=False)
        assert not await files.exists("a/new/file/below")
        await files.rename("a/new", "moved")
        assert await files.read_text("moved/file") == "x"
        await files.remove("moved/link")
        with pytest.raises(OSError, match="not empty") as caught:
            await files.remove("moved")
        assert caught.value.errno == errno.ENOTEMPTY
        await files.remove("moved", recursive=True)
        await files.remove("moved", missing_ok=True)
        await files.remove("a", recursive=True)
        assert await files.list() == ()


ODD = ["a b", "new\nline", "\\", "'\"$`", "-rf", "*", "ü", "\udcff\udc80", "x" * 255, ".hidden"]


async def test_odd_names(backend: str) -> None:
    async with box(backend) as sandbox:
        for name in ODD:
            await sandbox.files.write(name, name.encode(errors="surrogateescape"))
        assert {entry.name for entry in await sandbox.files.list()} == set(ODD)
        for name in ODD:
            assert await sandbox.files.read(name) == name.encode(errors="surrogateescape")


async def test_a_large_directory(backend: str) -> None:
    count = 1000 if backend == "gvisor" else 5000
    async with box(backend) as sandbox:
        script = f"import os\nfor n in range({count}): os.mknod('%05d' % n)"
        await sandbox.exec("python3", "-c", script, check=True)
        listing = await sandbox.files.list()
        assert [entry.name for entry in listing] == [f"{number:05}" for number in range(count)]
        with pytest.raises(FileTooLarge):
            await sandbox.files.list(max_entries=count - 1)


# --- errors -----------------------------------------------------------------------------------------


async def test_errors_are_the_built_in_ones_with_the_path_in_the_box(backend: str) -> None:
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("file", "x")
        await sandbox.shell("mkfifo fifo; ln -s loop loop")
        cases: list[tuple[Any, type[OSError], str]] = [
            (files.read("missing"), FileNotFoundError, "/work/missing"),
            (files.read("."), IsADirectoryError, "/work/."),
            (files.read("file/x"), NotADirectoryError, "/work/file/x"),
            (files.read("fifo"), NotRegularFile, "/work/fifo"),
            (files.read("/dev/zero"), NotRegularFile, "/dev/zero"),
            (files.read("loop"), OSError, "/work/loop"),
            (files.write("no/file", b""), FileNotFoundError, "/work/no/file"),
            (files.write("/tmp", b""), IsADirectoryError, "/tmp"),
            (files.write("fifo", b""), NotRegularFile, "/work/fifo"),
            (files.write("/usr/new", b""), OSError, "/usr/new"),
            (files.mkdir("file"), FileExistsError, "/work/file"),
            (files.mkdir("a/b"), FileNotFoundError, "/work/a/b"),
            (files.remove("missing"), FileNotFoundError, "/work/missing"),
            (files.rename("missing", "x"), FileNotFoundError, "/work/missing"),
            (files.list("file"), NotADirectoryError, "/work/file"),
            (files.stat("x" * 300), OSError, "/work/" + "x" * 300),
            (files.stat("x/" * 3000), OSError, "/work/" + "x/" * 3000),
        ]
        for call, error, path in cases:
            with pytest.raises(error) as caught:
                await call
            assert caught.value.filename == path[:4095]


async def test_bad_input_is_refused_before_anything_is_started(backend: str) -> None:
    async with box(backend) as sandbox:
        files: Any = sandbox.files
        calls = [
            lambda: files.read(""),
            lambda: files.read("a\0b"),
            lambda: files.read(b"bytes"),
            lambda: files.read("\ud800"),
            lambda: files.read(None),
            lambda: files.read("x", offset=-1),
            lambda: files.read("x", max_bytes=1.5),
            lambda: files.read("x", length=True),
            lambda: files.write("x", 5),
            lambda: files.write("x", None),
            lambda: files.write("x", "\ud800"),
            lambda: files.write("x", b"", mode=0o4755),
            lambda: files.mkdir("x", mode=-1),
            lambda: files.list(max_entries=0),
            lambda: files.stat("x", user="somebody"),
            lambda: files.stat("x", user=65520),
            lambda: files.stat("x", timeout=0),
            lambda: files.rename("x", ""),
            lambda: files.upload("", "x"),
            lambda: files.download("x", "a\0"),
        ]
        for call in calls:
            with pytest.raises(ConfigError):
                await call()
        with pytest.raises(ConfigError) as caught:
            await files.write("", 5, mode=9999)
        assert {problem.field for problem in caught.value.problems} == {"path", "data", "mode"}
        assert await names(sandbox) == []


async def test_a_full_file_system(backend: str) -> None:
    async with box(backend, limits=kavach_api.Limits(tmp=4 * MIB)) as sandbox:
        await sandbox.files.write("/tmp/file", "old")
        with pytest.raises(OSError, match="No space left") as caught:
            await sandbox.files.write("/tmp/file", bytes(8 * MIB))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/tmp/file")
        assert await sandbox.files.read("/tmp/file") == b"old"
        assert await names(sandbox, "/tmp") == ["file"]


async def test_after_the_end(backend: str) -> None:
    async with box(backend) as sandbox:
        files = sandbox.files
        reading = files.open_read("/proc/version")
        sandbox._session._channel.close()  # type: ignore[attr-defined]
        with pytest.raises(SandboxGone):
            await files.read("/proc/version")
        with pytest.raises(SandboxGone):
            async with reading:
                pass
    with pytest.raises(kavach_api.KavachError, match="not running"):
        await files.read("x")


# --- whose permissions ------------------------------------------------------------------------------


async def test_the_user_s_permissions_hold(backend: str) -> None:
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("/tmp/root", "secret", user="root", mode=0o600)
        for call in (files.read("/tmp/root"), files.write("/tmp/root", b"x"), files.rename("/tmp/root", "/tmp/other")):
            with pytest.raises(PermissionError):
                await call
        with pytest.raises(PermissionError):
            await files.remove("/tmp/root")
        assert await files.read("/tmp/root", user="root") == b"secret"
        await files.write("mine", "x", mode=0o600)
        with pytest.raises(PermissionError):
            await files.read("mine", user=1000)
        assert (await files.stat("/tmp/root")).uid == 0
        group = kavach_api.User(uid=1000, gid=1000, groups=(4242,))
        await files.mkdir("/tmp/shared", user=kavach_api.User(uid=0, gid=4242), mode=0o770)
        await files.write("/tmp/shared/x", "x", user=group)
        with pytest.raises(PermissionError):
            await files.read("/tmp/shared/x", user=1000)


async def test_the_sandbox_s_user_is_the_default(backend: str) -> None:
    async with box(backend, user="1234:77", cwd="/tmp") as sandbox:
        await sandbox.files.write("x", "")
        about = await sandbox.files.stat("/tmp/x")
        assert (about.uid, about.gid) == (1234, 77)


# --- links and hostile guests -----------------------------------------------------------------------


async def test_links_lead_nowhere_but_into_the_box(backend: str, tmp_path: Path) -> None:
    """What the guest plants is resolved in the box: the host's file of that name is reached by no call."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    async with box(backend) as sandbox:
        files = sandbox.files
        up = "../" * 20 + str(secret)[1:]
        links = {"passwd": "/etc/passwd", "host": str(secret), "up": up, "dir": str(tmp_path)}
        for name, target in links.items():
            await sandbox.exec("ln", "-s", target, name, check=True)
        assert await files.read("passwd") == (await sandbox.exec("cat", "/etc/passwd")).stdout_bytes
        assert await files.read("passwd") != Path("/etc/passwd").read_bytes()  # noqa: ASYNC240 - small
        for name in ("host", "up", "dir/secret"):
            with pytest.raises(FileNotFoundError):
                await files.read(name)
            with pytest.raises(OSError, match=r"No such file|Read-only|Permission"):
                await files.write(name, "changed")
            assert not await files.exists(name)
        for path in ("/proc/1/root/etc/shadow", "/proc/self/root/etc/shadow", "/proc/1/exe", "/proc/1/environ"):
            by_command = await sandbox.exec("cat", path)
            try:
                by_tool = await files.read(path)
            except OSError:
                assert not by_command.ok
            else:
                assert (by_command.ok, by_command.stdout_bytes) == (True, by_tool)
                assert "shadow" not in path
    assert secret.read_text() == "of the host"


async def test_a_link_is_no_way_out_of_what_is_removed(backend: str) -> None:
    """Root may not remove the link from the guest's directory, and must not remove what it leads to instead."""
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("/tmp/precious/file", "x", user="root", create_parents=True)
        await sandbox.shell("mkdir /tmp/bait; ln -s /tmp/precious /tmp/bait/link")
        with pytest.raises(PermissionError) as caught:
            await files.remove("/tmp/bait", recursive=True, user="root")
        assert caught.value.filename == "/tmp/bait/link"
        assert await files.exists("/tmp/precious/file")
        await files.remove("/tmp/bait", recursive=True)
        assert await files.exists("/tmp/precious/file")


async def test_descriptors_of_the_tool_are_no_way_in(backend: str) -> None:
    async with box(backend) as sandbox:
        for name in ("0", "1", "2"):
            await sandbox.exec("ln", "-s", f"/proc/self/fd/{name}", name, check=True)
            for call in (sandbox.files.read(name), sandbox.files.write(name, b"x" * 100, append=True)):
                with pytest.raises(OSError, match=r"neither|Permission|No such"):
                    await call
        assert (await sandbox.exec("true")).ok


async def test_a_fifo_does_not_hold_anybody_up(backend: str) -> None:
    async with box(backend) as sandbox:
        await sandbox.shell("mkfifo fifo; ln -s fifo link")
        with trio.fail_after(20):
            for path in ("fifo", "link"):
                for call in (
                    sandbox.files.read(path),
                    sandbox.files.write(path, b"x"),
                    sandbox.files.download(path, "/tmp/x"),
                ):
                    with pytest.raises(NotRegularFile):
                        await call


KILLER = """
import os, signal
me = os.getpid()
print("ready", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, me):
            try:
                os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
"""


async def test_a_guest_that_kills_the_tool(backend: str) -> None:
    """Its own user can do that. Each call is a clear error or did what it says; none hangs, none lies."""
    blob = secrets.token_bytes(3_000_000)
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("/tmp/blob", blob, user="root")
        killer = await sandbox.spawn("python3", "-c", KILLER)
        assert await killer.stdout.receive_some() == b"ready\n"
        failures = 0
        for _ in range(20):
            with trio.fail_after(20):
                try:
                    assert await files.read("/tmp/blob") == blob
                except FileOperationFailed:
                    failures += 1
        for number in range(10):
            with trio.fail_after(20):
                try:
                    await files.write(f"{number}", blob)
                except FileOperationFailed:
                    failures += 1
                else:
                    assert await files.read(f"{number}", user="root") == blob
        assert await files.read("/tmp/blob", user="root") == blob, "another user's it cannot kill"
        await killer.kill()
        assert failures
        assert await files.read("/tmp/blob") == blob


async def test_cancellation_leaves_nothing(backend: str) -> None:
    async with box(backend) as sandbox:
        files = sandbox.files
        await files.write("old", "old")

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(100_000)
                await trio.lowlevel.checkpoint()

        for seconds in (0, 0.001, 0.01, 0.05, 0.1):
            with trio.move_on_after(seconds):
                await files.write("old", endless())
            with trio.move_on_after(seconds):
                await files.write("new", endless())
            with trio.move_on_after(seconds):
                async with files.open_read("old") as stream:
                    await stream.receive_some()
                    await trio.sleep_forever()
        with pytest.raises(kavach_api.FileTimeout):
            await files.write("new", endless(), timeout=0.05)
        assert await names(sandbox) == ["old"]
        assert await files.read("old") == b"old"
        running = [process.name for process in await sandbox.processes()]
        assert not [name for name in running if "kavach" in name]


FULL = """
import os, signal
while True:
    try:
        if os.fork() == 0:
            signal.pause()
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize(
    "backend",
    [pytest.param("runc", marks=pytest.mark.needs_runc), pytest.param("crun", marks=pytest.mark.needs_crun)],
)
async def test_a_box_that_is_full_of_processes(backend: str) -> None:
    """Not on gVisor, which counts what a user starts, and it is the agent that starts the tool."""
    async with box(backend, limits=kavach_api.Limits(pids=8)) as sandbox:
        bomb = await sandbox.spawn("python3", "-c", FULL)
        failures = []
        with trio.fail_after(30):
            while not failures:
                try:
                    await sandbox.files.write("x", b"x")
                except FileOperationFailed as error:
                    failures.append(error)
        assert "cannot start the file tool" in str(failures[0])
        assert failures[0].sandbox_id == sandbox.id
        await bomb.kill()
        await sandbox.files.write("x", b"x")


# Only what is the tool already: what is stopped on the way to it stops the agent, and costs the box.
STOPPER = """
import os, signal
print("ready", flush=True)
while True:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as words:
                if b"--files" in words.read().split(b"\\0"):
                    os.kill(int(name), signal.SIGSTOP)
        except OSError:
            pass
"""


async def test_a_tool_that_is_stopped_waits_for_the_deadline(backend: str) -> None:
    async with box(backend) as sandbox:
        process = await sandbox.spawn("python3", "-c", STOPPER)
        assert await process.stdout.receive_some() == b"ready\n"
        with trio.fail_after(60):
            for _ in range(50):
                try:
                    await sandbox.files.write("x", bytes(2_000_000), timeout=0.5)
                except kavach_api.FileTimeout:
                    break
            else:
                pytest.fail("never stopped")
        await process.kill()
        await sandbox.files.write("x", b"done")
        assert await sandbox.files.read("x") == b"done"


# --- where there is nothing -------------------------------------------------------------------------


async def test_a_root_without_any_program(backend: str, open_path: Path, tmp_path: Path) -> None:
    upload = tmp_path / "up"
    upload.mkdir()
    (upload / "file").write_text("up and down")
    async with box(backend, rootfs=open_path) as sandbox:
        files = sandbox.files
        await files.write("/tmp/x", "in an empty image")
        assert await files.read_text("/tmp/x") == "in an empty image"
        await files.mkdir("/tmp/d")
        assert [entry.name for entry in await files.list("/tmp")] == ["d", "x"]
        await files.upload(upload, "/tmp/tree")
        await files.download("/tmp/tree", tmp_path / "down")
        assert (tmp_path / "down" / "file").read_text() == "up and down"
        await files.remove("/tmp/tree", recursive=True)
        with pytest.raises(OSError, match="Read-only"):
            await files.write("/x", "")
    assert not list(open_path.iterdir())  # noqa: ASYNC240 - as above


async def test_many_calls_at_once(backend: str) -> None:
    count = 20 if backend == "gvisor" else 60
    async with box(backend) as sandbox:

        async def one(number: int) -> None:
            blob = bytes([number]) * (number * 5000)
            await sandbox.files.write(f"{number}", blob)
            assert await sandbox.files.read(f"{number}") == blob

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)
        assert len(await sandbox.files.list()) == count


def test_a_backend_that_cannot_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        """One without files."""

    sandbox = object.__new__(kavach_api.Sandbox)
    for name, value in {"backend": "poor", "_session": Session(), "id": "00ff"}.items():
        monkeypatch.setattr(sandbox, name, value, raising=False)
    for declared, words in ((set(), "read and write files"), ({"files"}, "does not have it")):
        backend = type("Backend", (), {"capabilities": frozenset(declared)})()
        monkeypatch.setattr(sandbox, "_backend", backend, raising=False)
        monkeypatch.setattr(sandbox, "config", kavach_api.SandboxConfig(), raising=False)
        with pytest.raises(kavach_api.UnsupportedPolicy, match=words) as caught:
            _ = sandbox.files
        assert caught.value.problems[0].field == "files"
