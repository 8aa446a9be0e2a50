"""``upload`` and ``download`` with real boxes: what is copied, what a hostile box can do to the host, what is left."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import kavach_core as kavach_api
from kavach_core import FileTooLarge, NotRegularFile

MIB = 1024**2


@asynccontextmanager
async def box(backend: str, **fields: Any) -> AsyncIterator[kavach_api.Sandbox]:  # noqa: ANN401
    """Give a sandbox, and fail where something hangs."""
    with trio.fail_after(110):
        async with kavach_api.open_sandbox(backend=backend, **fields) as sandbox:
            yield sandbox


def make_tree(root: Path) -> None:
    """Make one of everything that is copied."""
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "file").write_bytes(secrets.token_bytes(3_000_000))
    (root / "d" / "zero").touch()
    (root / "run").write_text("#!/bin/sh\necho ran\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("d/file")
    (root / "d" / "back").symlink_to("../run")
    (root / "odd \udcff\n").write_text("x")
    (root / "d").chmod(0o750)


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Return names, modes and contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None  # noqa: PTH115
        mode = 0 if path.is_symlink() else path.stat().st_mode
        found[str(path.relative_to(root))] = (mode, what)
    return found


async def test_there_and_back_again(backend: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    async with box(backend) as sandbox:
        sent = await sandbox.files.upload(tmp_path / "from", "tree")
        assert (sent.files, sent.directories, sent.symlinks, sent.skipped) == (4, 3, 2, ())
        assert (await sandbox.shell("tree/run && tree/d/back && stat -c %u tree/run")).stdout == "ran\nran\n65534\n"
        got = await sandbox.files.download("tree", tmp_path / "to")
        assert got == sent
    assert snapshot(tmp_path / "to") == snapshot(tmp_path / "from")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["from", "to"]  # noqa: ASYNC240 - small, as in all here


async def test_a_single_file(backend: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"contents")
    source.chmod(0o4751)
    async with box(backend) as sandbox:
        await sandbox.files.upload(source, "deep/er/file", create_parents=True)
        assert (await sandbox.files.stat("deep/er/file")).mode == 0o751
        await sandbox.shell("chmod 6755 deep/er/file; ln -s deep/er/file link")
        for name in ("deep/er/file", "link"):
            await sandbox.files.download(name, target)
            assert (target.read_bytes(), target.stat().st_mode & 0o7777) == (b"contents", 0o755)
            assert not target.is_symlink()
        with pytest.raises(IsADirectoryError):
            await sandbox.files.upload(source, "/tmp")
        with pytest.raises(FileNotFoundError):
            await sandbox.files.upload(source, "no/file")


async def test_an_upload_is_merged_with_what_is_there(backend: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    async with box(backend) as sandbox:
        await sandbox.shell("mkdir d; echo old >run; echo kept >mine; ln -s /etc/passwd link; chmod 700 d")
        await sandbox.files.upload(tmp_path / "from", "/work")
        listing = {entry.name: entry for entry in await sandbox.files.list()}
        assert {"d", "run", "mine", "link"} <= set(listing)
        assert (listing["d"].mode, listing["link"].target) == (0o700, "d/file")
        assert await sandbox.files.read_text("mine") == "kept\n"
        assert (await sandbox.exec("./run")).stdout == "ran\n"
        await sandbox.shell("rm -r d && ln -s /tmp d")
        with pytest.raises(NotADirectoryError) as caught:
            await sandbox.files.upload(tmp_path / "from", "/work")
        assert caught.value.filename == "/work/d"
        assert await sandbox.files.list("/tmp") == ()


async def test_what_of_the_host_is_copied(backend: str, tmp_path: Path) -> None:
    """Links are told and not followed; devices, FIFOs and sockets are left out, and said so."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "shadow").symlink_to("/etc/shadow")
    os.mkfifo(tree / "d" / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
    async with box(backend) as sandbox:
        sent = await sandbox.files.upload(tree, "tree")
        assert (sent.skipped, sent.skipped_count) == (("d/fifo", "socket"), 2)
        assert (await sandbox.files.stat("tree/shadow", follow_symlinks=False)).target == "/etc/shadow"
        assert not await sandbox.files.exists("tree/shadow")
        with pytest.raises(OSError, match="symbolic"):
            await sandbox.files.upload(tree / "shadow", "x")
        with pytest.raises(NotRegularFile):
            await sandbox.files.upload(tree / "d" / "fifo", "x")
        with pytest.raises(FileNotFoundError) as caught:
            await sandbox.files.upload(tree / "missing", "x")
        assert caught.value.filename == str(tree / "missing")


async def test_where_a_download_may_go(backend: str, tmp_path: Path) -> None:
    """A file replaces a regular file, a directory an empty one. Nothing else is replaced, and no link followed."""
    secret = tmp_path / "secret"
    secret.write_text("unchanged")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    async with box(backend) as sandbox:
        files = sandbox.files
        await sandbox.shell("echo new >file; mkdir d; echo new >d/file")
        cases: list[tuple[str, str, type[OSError]]] = [
            ("file", "link", NotRegularFile),
            ("file", "fifo", NotRegularFile),
            ("file", "empty", IsADirectoryError),
            ("d", "link", FileExistsError),
            ("d", "secret", FileExistsError),
            ("d", "full", FileExistsError),
            ("d", ".", FileExistsError),
            ("d", "no/where", FileNotFoundError),
            ("missing", "fresh", FileNotFoundError),
        ]
        for remote, local, error in cases:
            with pytest.raises(error):
                await files.download(remote, f"{tmp_path}/{local}")
        await files.download("d", tmp_path / "empty")
        assert (tmp_path / "empty" / "file").read_text() == "new\n"
        assert secret.read_text() == "unchanged"
        await files.download("file", secret)
        assert secret.read_text() == "new\n"
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "link", "full", "empty", "fifo"}  # noqa: ASYNC240


HOSTILE = """
import os, socket
os.mkdir("t")
os.chdir("t")
os.symlink("/etc/passwd", "absolute")
os.symlink("../../../../etc/passwd", "up")
os.symlink(".", "here")
os.symlink("here/../../outside", "chained")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
with open("suid", "w") as f:
    f.write("#!/bin/sh\\n")
os.chmod("suid", 0o6755)
os.mkdir("sticky")
os.chmod("sticky", 0o3777)
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed", 0o555)
"""


async def test_a_hostile_tree_does_nothing_to_the_host(backend: str, tmp_path: Path) -> None:
    async with box(backend) as sandbox:
        await sandbox.exec("python3", "-c", HOSTILE, check=True)
        got = await sandbox.files.download("t", tmp_path / "t")
    assert set(got.skipped) == {"absolute", "up", "chained", "fifo", "socket"}
    modes = {str(p.relative_to(tmp_path)): p.lstat().st_mode & 0o7777 for p in tmp_path.rglob("*")}  # noqa: ASYNC240
    assert modes == {
        "t": 0o755,
        "t/here": 0o777,
        "t/suid": 0o755,
        "t/sticky": 0o777,
        "t/closed": 0o755,
        "t/closed/file": 0o644,
    }
    assert all(path.lstat().st_uid == os.getuid() for path in tmp_path.rglob("*"))  # noqa: ASYNC240


async def test_a_download_is_bounded(backend: str, tmp_path: Path) -> None:
    """A sparse file of 1 TiB takes no room in the box, and would on the host."""
    async with box(backend) as sandbox:
        await sandbox.shell(
            "mkdir big many; truncate -s 1T big/file; cd many; i=0; while [ $i -lt 50 ]; do : >$i; i=$((i+1)); done"
        )
        with pytest.raises(FileTooLarge):
            await sandbox.files.download("big", tmp_path / "big", max_bytes=20 * MIB)
        with pytest.raises(FileTooLarge):
            await sandbox.files.download("many", tmp_path / "many", max_entries=50)
        assert (await sandbox.files.download("many", tmp_path / "many", max_entries=51)).files == 50
        deep = "import os\nfor _ in range(300):\n os.mkdir('d')\n os.chdir('d')"
        await sandbox.exec("python3", "-c", deep, check=True)
        with pytest.raises(FileTooLarge):
            await sandbox.files.download("d", tmp_path / "deep")
        with pytest.raises(FileTooLarge):
            await sandbox.files.read("big/file")
        await sandbox.files.remove("d", recursive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["many"]  # noqa: ASYNC240


async def test_a_file_that_may_not_be_read_fails_the_whole(backend: str, tmp_path: Path) -> None:
    async with box(backend) as sandbox:
        await sandbox.files.mkdir("t", mode=0o777)
        await sandbox.files.write("t/a", "x")
        await sandbox.files.write("t/secret", "x", user="root", mode=0o600)
        with pytest.raises(PermissionError) as caught:
            await sandbox.files.download("t", tmp_path / "t")
        assert caught.value.filename == "/work/t/secret"
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240


async def test_ten_thousand_small_files(backend: str, tmp_path: Path) -> None:
    count = 1000 if backend == "gvisor" else 10_000
    for number in range(count):
        folder = tmp_path / "from" / f"{number % 100}"
        if number < 100:
            folder.mkdir(parents=True)
        (folder / f"{number}").write_text(f"{number}")
    async with box(backend, limits=kavach_api.Limits(tmp=256 * MIB)) as sandbox:
        began = time.perf_counter()
        sent = await sandbox.files.upload(tmp_path / "from", "/tmp/t")
        middle = time.perf_counter()
        assert await sandbox.files.download("/tmp/t", tmp_path / "to") == sent
        ended = time.perf_counter()
        sys.stdout.write(f"{backend}: {count} files up in {middle - began:.2f} s, down in {ended - middle:.2f} s\n")
    assert (sent.files, sent.directories) == (count, 101)
    assert snapshot(tmp_path / "to") == snapshot(tmp_path / "from")


async def test_cancelled_transfers_leave_nothing(backend: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    for number in range(300):
        (tmp_path / "from" / "d" / f"{number}").write_bytes(bytes(10_000))
    async with box(backend) as sandbox:
        await sandbox.files.upload(tmp_path / "from", "tree")
        for seconds in (0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.03, 0.05):
            with trio.move_on_after(seconds) as up:
                await sandbox.files.upload(tmp_path / "from", "other")
            left = [entry.name for entry in await sandbox.files.list()]
            assert left == (["tree"] if up.cancelled_caught else ["other", "tree"])
            if not up.cancelled_caught:
                await sandbox.files.remove("other", recursive=True)
            with trio.move_on_after(seconds) as down:
                await sandbox.files.download("tree", tmp_path / "to")
            found = {path.name for path in tmp_path.iterdir()}  # noqa: ASYNC240
            assert found == ({"from"} if down.cancelled_caught else {"from", "to"})
            if not down.cancelled_caught:
                subprocess.run(["rm", "-r", tmp_path / "to"], check=True)  # noqa: ASYNC221 - does not wait
        running = [process.name for process in await sandbox.processes()]
        assert not [name for name in running if "kavach" in name]


async def test_a_full_box_leaves_nothing_of_an_upload(backend: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    closed = tmp_path / "from" / "closed"
    closed.mkdir()
    (closed / "file").touch()
    closed.chmod(0)
    async with box(backend, limits=kavach_api.Limits(tmp=2 * MIB)) as sandbox:
        with pytest.raises(OSError, match="No space left") as caught:
            await sandbox.files.upload(tmp_path / "from", "/tmp/tree")
        assert caught.value.filename == "/tmp/tree/d/file"
        assert await sandbox.files.list("/tmp") == ()


# Runs in a process of its own: peak memory is never given back, so ours would tell nothing.
STREAMS = """
import resource, sys
import trio
import kavach_core

MIB = 1024 ** 2

async def main():
    size, local = int(sys.argv[2]), sys.argv[3]
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = kavach_core.Limits(tmp=2 * size, memory=4 * size)

    async def pieces():
        for _ in range(size // MIB):
            yield bytes(MIB)

    async with kavach_core.open_sandbox(backend=sys.argv[1], limits=limits) as sandbox:
        await sandbox.files.write("/tmp/file", b"x")
        await sandbox.files.download("/tmp/file", local)
        await sandbox.files.upload(local, "/tmp/file")
        before = peak()
        await sandbox.files.write("/tmp/file", pieces())
        await sandbox.files.download("/tmp/file", local, max_bytes=size)
        sent = await sandbox.files.upload(local, "/tmp/file")
        async with sandbox.files.open_read("/tmp/file") as stream:
            total = 0
            async for piece in stream:
                total += len(piece)
        print(peak() - before, total, sent.size)

trio.run(main)
"""
STREAM_BYTES = {"runc": 300 * MIB, "crun": 200 * MIB, "gvisor": 100 * MIB}


def test_large_files_do_not_grow_the_host(backend: str, tmp_path: Path) -> None:
    size = STREAM_BYTES[backend]
    done = subprocess.run(
        [sys.executable, "-P", "-c", STREAMS, backend, str(size), tmp_path / "file"],
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown_kib, total, sent = map(int, done.stdout.split())
    assert (total, sent) == (size, size)
    assert grown_kib < 32 * 1024


def contents(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.iterdir()]


@pytest.mark.needs_crun
async def test_copies_for_more_callers_than_the_loop_has_threads(tmp_path: Path) -> None:
    """Plain code in worker threads holds all that trio has by itself, and waits for the copies."""
    callers = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 5
    async with box("crun") as sandbox:
        await sandbox.files.write("/tmp/file", b"contents")

        def copy(number: int) -> None:
            here = str(tmp_path / str(number))
            trio.from_thread.run(sandbox.files.download, "/tmp/file", here)
            trio.from_thread.run(sandbox.files.upload, here, f"/tmp/{number}")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(callers):
                    nursery.start_soon(trio.to_thread.run_sync, copy, number)
    assert contents(tmp_path) == [b"contents"] * callers
