"""What is particular to gVisor: another kernel answers, and what stands for it on the host has no power there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import kavach_gvisor.backend
import pytest

import kavach_core as kavach_api
from kavach_core.oci.workspace import workspace

if TYPE_CHECKING:
    from tests.conftest import Host

pytestmark = pytest.mark.needs_runsc


async def test_the_kernel_is_not_the_hosts() -> None:
    async with kavach_api.open_sandbox(backend="gvisor") as sandbox:
        release = (await sandbox.exec("uname", "-r", check=True)).stdout.strip()
        messages = (await sandbox.shell("dmesg 2>/dev/null || cat /proc/kmsg 2>/dev/null; true")).stdout
        commands = (await sandbox.exec("cat", "/proc/cmdline")).stdout
    assert release != os.uname().release
    assert "gVisor" in messages or not messages
    assert commands != Path("/proc/cmdline").read_text()  # noqa: ASYNC240 - does not block


async def test_sentry_and_gofer_are_nobody_on_the_host(host: Host) -> None:
    """Neither is root, neither can gain anything, and both are in the box's cgroup, so they are counted and killed."""
    async with kavach_api.open_sandbox(backend="gvisor") as sandbox:
        names = {}
        for pid in host.members(sandbox.id):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()  # noqa: ASYNC240 - does not block
            names[pid] = command.partition(b"\0")[0].rpartition(b"/")[2].decode()
        helpers = {pid: name for pid, name in names.items() if name in {"runsc-sandbox", "runsc-gofer"}}
        assert set(helpers.values()) == {"runsc-sandbox", "runsc-gofer"}
        for pid, name in helpers.items():
            status = host.status(pid)
            assert all(int(uid) >= 0x4000_0000 for uid in status["Uid"].split()), name
            assert all(int(gid) >= 0x4000_0000 for gid in status["Gid"].split()), name
            assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink(), name  # noqa: ASYNC240
            assert status["Seccomp"] == "2", name


async def test_platform_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first box finds the one that works; the next does not try others."""
    monkeypatch.setattr(kavach_gvisor.backend, "_chosen", [])
    report = await kavach_gvisor.backend.GvisorBackend().probe()
    assert report.usable
    assert kavach_gvisor.backend._chosen == [report.details["platform"]]


async def test_platform_that_does_not_exist_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kavach_gvisor.backend, "_chosen", [])
    monkeypatch.setattr(kavach_gvisor.backend, "_platforms", lambda: ["no-such-platform", "systrap", "ptrace"])
    report = await kavach_gvisor.backend.GvisorBackend().probe()
    assert report.usable
    assert report.details["platform"] in {"systrap", "ptrace"}
    assert any("no-such-platform" in reason.text for reason in report.reasons)


async def test_no_platform_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kavach_gvisor.backend, "_chosen", [])
    monkeypatch.setattr(kavach_gvisor.backend, "_platforms", lambda: ["no-such-platform"])
    with pytest.raises(kavach_api.CreateError):
        async with kavach_api.open_sandbox(backend="gvisor"):
            pass
    assert not (await kavach_gvisor.backend.GvisorBackend().probe()).usable


async def test_nothing_of_a_box_stays_in_the_state_root(host: Host) -> None:
    async with kavach_api.open_sandbox(backend="gvisor") as sandbox:
        assert (await sandbox.exec("true")).ok
    own = workspace()
    assert own is not None
    state = own.path / "state" / "runsc"
    assert await host.until_async(lambda: not [entry for entry in state.iterdir() if sandbox.id in entry.name])
