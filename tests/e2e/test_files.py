"""``sandbox.files`` in real boxes: exact contents, names of all kinds, boxes with nothing in them."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import pytest
import trio
from boxes import MIB, box, names

import kavach_core as kavach_api
from kavach_core import FileKind, FileTooLarge

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
