"""``sandbox.files`` in hostile boxes: links, kills, stops, cancellation. Nothing leaves the box, nothing hangs."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from boxes import box, names

import kavach_core as kavach_api
from kavach_core import FileOperationFailed, NotRegularFile


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
