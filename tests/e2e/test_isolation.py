"""What a command finds in a box: nothing of the host, and nothing that lets it out. ``probe.py`` looks from inside."""

# ruff: noqa: ASYNC240 - a witness reads /proc, which does not block
from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kavach_core as kavach_api

if TYPE_CHECKING:
    from tests.conftest import Host, Runner

PROBE = (Path(__file__).parent / "probe.py").read_text()
CANARY = "KAVACH_TEST_CANARY"
NOBODY = 65534
MARKER_GROUPS = range(64512, 65534)


async def probe(backend: str, user: int = NOBODY) -> dict[str, Any]:
    """Run the probe in a box of its own."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("python3", "-", input=PROBE, timeout=30, user=user)
    assert result.ok, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


async def test_nobody(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CANARY, "seen")
    facts = await probe(backend)

    assert facts["environment"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/home",
        "LANG": "C.UTF-8",
    }
    assert facts["uids"] == [NOBODY] * 3
    assert facts["gids"] == [NOBODY] * 3
    check_unprivileged(facts)

    refused = facts["attempts"]
    assert refused.pop("reach a network") in {"ENETUNREACH", "EHOSTUNREACH"}
    assert refused.pop("read shadow") == "ENOENT"
    left = {name: outcome for name, outcome in refused.items() if outcome not in {"EPERM", "EACCES", "EROFS", "EINVAL"}}
    if backend == "gvisor":
        # The Sentry has no such file, and lets anyone make the node of a device that it does not have.
        assert left.pop("read kernel memory") == "ENOENT"
        assert left.pop("read a disk") in {"ENXIO", "ENODEV"}
    assert left.pop("read kernel memory", "ENOENT") == "ENOENT"
    assert left == {}


async def test_root_of_the_box_has_no_more_power(backend: str) -> None:
    """``--user 0`` is a user like any other: without a capability it owns some files, and nothing else."""
    facts = await probe(backend, user=0)
    assert facts["uids"] == [0] * 3
    check_unprivileged(facts)
    for name in ("attach to agent", "seize agent", "write agent's memory", "write agent's program", "mount"):
        assert facts["attempts"][name] != "done", name


async def test_agent_outlives_the_root_of_the_box(backend: str) -> None:
    script = "for signal in INT TERM STOP KILL; do kill -$signal 1 2>/dev/null; done; echo tried"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        assert (await sandbox.shell(script, user=0, timeout=10)).stdout == "tried\n"
        assert (await sandbox.exec("true", timeout=10)).ok


def check_unprivileged(facts: dict[str, Any]) -> None:
    """Check what holds for every user of a box."""
    assert set(facts["capabilities"].values()) == {0}
    assert {"CapInh", "CapPrm", "CapEff", "CapBnd"} <= facts["capabilities"].keys()
    assert facts["ambient"] == facts["bounding"] == []
    assert facts["no_new_privs"] == 1
    assert len(facts["groups"]) == 1
    assert facts["groups"][0] in MARKER_GROUPS
    assert facts["interfaces"] == ["lo"]
    assert facts["hostname"] == "kavach"
    assert facts["descriptors"].keys() == {"0", "1", "2"}
    assert facts["limits"]["RLIMIT_CORE"] == [0, 0]
    assert facts["limits"]["RLIMIT_NOFILE"][0] == 1024
    assert len(facts["processes"]) == 2, "the agent and the probe"

    listings = facts["listings"]
    assert set(listings["/"]) <= {
        *("bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "root"),
        *("run", "sbin", "sys", "tmp", "usr", "var", "work"),
    }
    assert set(listings["/etc"]) <= {
        *("alternatives", "group", "hosts", "ld.so.cache", "localtime"),
        *("nsswitch.conf", "passwd", "resolv.conf", "ssl"),
    }
    assert listings["/var"] == ["tmp"]
    assert all(not listings[directory] for directory in ("/home", "/root", "/run", "/tmp", "/work"))
    assert not {"kmsg", "mem", "fb0", "vda", "sda", "kvm"} & set(listings["/dev"])

    writes = facts["writes"]
    writable = {directory for directory, outcome in writes.items() if outcome == "done"}
    assert writable == {"/tmp", "/home", "/work", "/dev/shm"}


async def test_seen_from_the_host(backend: str, host: Host) -> None:
    """The host's ids of the box's processes are nobody else's, and their owner has no power on the host either."""
    marker = host.marker()
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        process = await sandbox.spawn("sh", "-c", "echo; sleep 1000; :", marker)
        assert await process.stdout.receive_some()
        processes = host.workload(marker) if backend != "gvisor" else host.members(sandbox.id)
        if backend == "gvisor":
            processes = {pid for pid in processes if b"runsc-sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()}
        assert processes
        for pid in processes:
            status = host.status(pid)
            uids = {int(word) for word in status["Uid"].split()}
            assert all(uid >= 0x4000_0000 for uid in uids), status["Uid"]
            assert Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
            assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
            assert status["NoNewPrivs"] == "1"
            if backend != "gvisor":
                assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        await process.kill()


async def test_two_boxes_do_not_share_ids(backend: str, host: Host) -> None:
    async with kavach_api.open_sandbox(backend=backend) as one, kavach_api.open_sandbox(backend=backend) as two:
        owners = [
            {
                word
                for pid in host.members(box.id)
                for word in host.status(pid)["Uid"].split()
                if int(word) >= 0x4000_0000
            }
            for box in (one, two)
        ]
    assert all(owners)
    assert not owners[0] & owners[1]


def test_descriptors_and_variables_of_the_caller_stay_out(run_kavach: Runner, backend: str, tmp_path: Path) -> None:
    """Also those that the caller's caller lets it inherit, and the variables that runtimes look at themselves."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    descriptor = os.open(secret, os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # noqa: FBT003 - that is its signature
    try:
        done = run_kavach(
            *("run", "-b", backend, "--", "sh", "-c", "ls /proc/self/fd; env"),
            env={CANARY: "seen", "LISTEN_FDS": "1", "LISTEN_PID": "1", "NOTIFY_SOCKET": "/run/x"},
            pass_fds=[descriptor],
        )
    finally:
        os.close(descriptor)
    assert done.returncode == 0, done.stderr
    words = done.stdout.decode().split()
    assert sorted(word for word in words if word.isdigit()) == ["0", "1", "2", "3"], "the last is that of ls itself"
    assert not {CANARY, "LISTEN_FDS", "NOTIFY_SOCKET"} & {word.partition("=")[0] for word in words}


REMOUNT = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x1002_0000)  # a user and a mount namespace of our own
for directory in (b"/", b"/open"):
    libc.mount(None, directory, None, 32, None)  # MS_REMOUNT without MS_RDONLY
    libc.mount(None, directory, None, 32 | 4096, None)  # likewise with MS_BIND
for path in ("/open/new", "/open/old"):
    try:
        open(path, "w").write("changed")
    except OSError as error:
        print(error.errno)
"""


async def test_a_namespace_of_its_own_does_not_make_the_root_writable(backend: str, open_path: Path) -> None:
    """A command may make itself a user namespace, in which it may mount. What is read-only stays so.

    Shown with a directory and a file that anybody may write to, so that only the mount stands before them.
    """
    for name in ("open", "usr", "proc", "dev", "tmp"):
        (open_path / name).mkdir()
    (open_path / "open").chmod(0o777)
    (open_path / "open" / "old").write_text("old")
    (open_path / "open" / "old").chmod(0o666)
    for link in ("bin", "lib", "lib64"):
        (open_path / link).symlink_to(f"usr/{link}")
    with bound("/usr", open_path / "usr"):
        async with kavach_api.open_sandbox(backend=backend, rootfs=open_path) as sandbox:
            result = await sandbox.exec("python3", "-", input=REMOUNT, timeout=30)
    assert not result.stderr
    assert (open_path / "open" / "old").read_text() == "old"
    assert not (open_path / "open" / "new").exists()
    assert result.stdout.split() == [str(errno.EROFS)] * 2


@contextmanager
def bound(source: str, target: Path) -> Iterator[None]:
    """Bind a directory of the host over another for a while."""
    subprocess.run(["mount", "--bind", source, str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_users_of_a_box_cannot_reach_each_others_output(backend: str, stream: str) -> None:
    """Neither read what another user's command writes, nor write in its name, by way of the agent's descriptors."""
    attack = """
import os, sys
for process in filter(str.isdigit, os.listdir("/proc")):
    if process == str(os.getpid()): continue
    try: names = os.listdir(f"/proc/{process}/fd")
    except OSError: continue
    for name in names:
        path = f"/proc/{process}/fd/{name}"
        try:
            if not os.readlink(path).startswith("pipe:"): continue
            own = {os.stat(f"/proc/self/fd/{n}").st_ino for n in (0, 1, 2)}
            handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            if os.fstat(handle).st_ino in own: continue
            os.write(handle, b"forged")
            print("forged", path)
        except OSError: continue
"""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        victim = await sandbox.spawn("sh", "-c", "exec sleep 1000", user=1000)
        result = await sandbox.exec("python3", "-", input=attack, user=1001, timeout=30)
        assert result.ok, result.stderr
        await victim.kill()
        assert await getattr(victim, stream).receive_some() == b""
    assert result.stdout == ""
