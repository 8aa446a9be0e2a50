"""A runtime that fails, lies or hangs is an error of kavach's, bounded in time; it is never the command's result.

The programs here are not fakes of a runtime: they are what a broken one looks like.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import kavach_oci.backend
import pytest
import trio
from kavach_guest import oci_boot

import kavach_core as kavach_api
from kavach_core.abc import HostToolchain, SandboxSpec
from kavach_core.oci.runtime import OciRuntime
from kavach_core.oci.workspace import workspace
from kavach_core.policy import PRESETS

if TYPE_CHECKING:
    from tests.conftest import Host

pytestmark = pytest.mark.needs_runc  # so that the host is looked over for what is left, and root is there
BOX = "0123456789abcdef"
RUNC = shutil.which("runc", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin") or "/usr/sbin/runc"


def program(directory: Path, script: str) -> OciRuntime:
    """Return a runtime whose program is a shell script."""
    path = directory / "runtime"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return OciRuntime(name="runc", program=path)


async def boot(runtime: OciRuntime) -> None:
    """Boot a box and end it."""
    spec = SandboxSpec(sandbox_id=BOX, root=HostToolchain(), policy=PRESETS["basic"], cwd="/work")
    session = await oci_boot.boot(runtime, spec)
    await session.aclose()


# A frame of HELLO from version 7.0 of the protocol, as printf wants it.
OTHER_VERSION = "".join(f"\\{byte:03o}" for byte in b"\x08\0\0\0\x81\0\0\0\0\0\0\0KVCH\x07\0\0\0")

PROGRAMS = {
    "fails": "echo reason >&2; exit 1",
    "succeeds": "echo reason >&2; exit 0",
    "fails like a command": "echo reason >&2; exit 42",
    "is killed": "echo reason >&2; kill -9 $$",
    "prints junk": "echo reason >&2; echo junk; exec sleep 1000",
    "prints zeros": "echo reason >&2; head -c 100000 /dev/zero; exec sleep 1000",
    "prints much": "echo reason >&2; exec cat /dev/urandom",
    "prints another version": f"echo reason >&2; printf '{OTHER_VERSION}'; exec sleep 1000",
    "closes its streams": "echo reason >&2; exec >&- <&- sleep 1000",
}


@pytest.mark.parametrize("what", PROGRAMS)
async def test_broken_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str) -> None:
    monkeypatch.setattr(oci_boot, "BOOT_DEADLINE_SECONDS", 2.0)
    with trio.fail_after(20), pytest.raises(kavach_api.CreateError) as caught:
        await boot(program(tmp_path, PROGRAMS[what]))
    error = caught.value
    assert (error.stage, error.backend, error.sandbox_id) == ("boot", "runc", BOX)
    assert error.hint
    assert "reason" in str(error)


async def test_what_it_says_is_made_safe(tmp_path: Path) -> None:
    """It may quote what it was given, which must neither steer a terminal nor forge a line of a log."""
    script = "printf 'first\\n\\033[2J\\007\\rlast\\0words\\n\\377' >&2; exit 1"
    with pytest.raises(kavach_api.CreateError) as caught:
        await boot(program(tmp_path, script))
    text = str(caught.value)
    assert "last\ufffdwords" in text
    assert all(character.isprintable() or character == "\n" for character in text)


async def test_what_it_says_is_kept_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end of it, which has the reason; and a runtime that talks much comes to its end."""
    monkeypatch.setattr(oci_boot, "BOOT_DEADLINE_SECONDS", 2.0)
    script = "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo the reason >&2; exit 1"
    with pytest.raises(kavach_api.CreateError) as caught:
        await boot(program(tmp_path, script))
    assert "the reason" in str(caught.value)
    assert len(str(caught.value)) < 20_000


async def test_runtime_that_hangs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_boot, "BOOT_DEADLINE_SECONDS", 0.5)
    with trio.fail_after(20), pytest.raises(kavach_api.CreateError, match="no sign of life"):
        await boot(program(tmp_path, "trap '' TERM; exec sleep 1000"))


async def test_runtime_that_hangs_can_be_cancelled(tmp_path: Path) -> None:
    with trio.fail_after(20):
        with trio.move_on_after(0.3) as scope:
            await boot(program(tmp_path, "exec sleep 1000"))
        assert scope.cancelled_caught


async def test_program_that_cannot_be_started(tmp_path: Path) -> None:
    missing = OciRuntime(name="runc", program=tmp_path / "missing")
    with pytest.raises(kavach_api.CreateError) as caught:
        await boot(missing)
    assert "missing" in str(caught.value)
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(kavach_api.CreateError):
        await boot(OciRuntime(name="runc", program=tmp_path / "text"))


async def test_runtime_that_does_not_end_with_its_box(tmp_path: Path, host: Host) -> None:
    """Its box ends all the same, by what the kernel knows of it."""
    runtime = program(tmp_path, f'{RUNC} "$@"; exec sleep 1000')
    with trio.fail_after(30):
        await boot(runtime)
        assert await host.until_async(lambda: not host.cgroups(BOX))


async def test_runtime_that_leaves_its_client_stopped(tmp_path: Path, host: Host) -> None:
    """A pid file that names another process kills nobody; what is in the cgroup is killed."""
    bystander = await trio.lowlevel.open_process(["sleep", "1000"])
    script = f'echo {bystander.pid} >"$(echo "$@" | sed "s/.*--pid-file \\([^ ]*\\).*/\\1/")"; exec sleep 1000'
    try:
        with trio.move_on_after(0.5):
            await boot(program(tmp_path, script))
        assert bystander.returncode is None
        assert bystander.poll() is None
    finally:
        bystander.kill()
        await bystander.wait()
    assert not host.cgroups(BOX)


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize("part", ["mounts", "options", "args"])
async def test_spec_that_the_runtime_refuses(monkeypatch: pytest.MonkeyPatch, backend: str, part: str) -> None:
    """Neither the runtime's own status nor its words come out as a result."""
    build = oci_boot.build_spec

    def broken(*arguments: object) -> dict[str, object]:
        spec = json.loads(json.dumps(build(*arguments)))  # type: ignore[arg-type]
        if part == "mounts":
            spec["mounts"].append(
                {"destination": "/no/such", "source": "/no/such", "type": "bind", "options": ["bind"]}
            )
        elif part == "options":
            spec["root"]["path"] = "/no/such"
        else:
            spec["process"]["args"] = ["/no/such"]
        return dict(spec)

    monkeypatch.setattr(oci_boot, "build_spec", broken)
    with trio.fail_after(30), pytest.raises(kavach_api.CreateError) as caught:
        async with kavach_api.open_sandbox(backend=backend):
            pass
    assert caught.value.stage == "boot"


async def test_agent_that_ends_is_no_result(backend: str, host: Host) -> None:
    """The box dies under a command: the caller is told so, and gets no status."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        process = await sandbox.spawn("sleep", "1000")
        [first] = [pid for pid in host.members(sandbox.id) if is_first_process(pid)]
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(20):
            with pytest.raises(kavach_api.SandboxGone):
                await process.wait()
            with pytest.raises(kavach_api.SandboxGone):
                await sandbox.exec("true")


def is_first_process(pid: int) -> bool:
    """Say whether a process of the host is what a box stands or falls with: its agent, or its Sentry."""
    program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    return program.endswith((b".kavach-agent", b"runsc-sandbox"))


async def test_the_runtime_is_told_to_run_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: Host
) -> None:
    """What it leaves, however it ended, is removed without its help: its ``delete`` says it did, and leaves things."""
    log = tmp_path / "log"
    runtime = program(tmp_path, f'echo "$@" >>{log}; exec {RUNC} "$@"')
    monkeypatch.setattr(kavach_oci.backend, "_program", lambda _: runtime.program)

    async def use(*, seconds: float = 10, kill: bool = False) -> None:
        with trio.move_on_after(seconds):
            async with kavach_api.open_sandbox(backend="runc") as sandbox:
                await sandbox.exec("sh", "-c", "sleep 1000 & exit 3")
                await sandbox.exec("sleep", "1000", timeout=0.1)
                if kill:
                    await sandbox.exec("sleep", "1000")

    await use()
    await use(seconds=0.5, kill=True)
    for hundredths in range(1, 12, 2):
        await use(seconds=hundredths / 100)
    calls = log.read_text().splitlines()
    assert len(calls) >= 6
    assert all(" run --bundle " in call for call in calls)
    own = workspace()
    assert own is not None
    assert await host.until_async(lambda: not any((own.path / "state" / "runc").iterdir()))
