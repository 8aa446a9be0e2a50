"""What ``sandbox.files`` refuses: errors of the kernel, bad input, what the user may not do."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from boxes import MIB, box, names

import kavach_core as kavach_api
from kavach_core import ConfigError, NotRegularFile, SandboxGone

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
