"""Every limit is met at its bound, by a command that does its best to get more, and the box goes on afterwards."""

from __future__ import annotations

import errno
import json
import resource
from typing import TYPE_CHECKING

import trio

import kavach_core as kavach_api
from kavach_core.policy import ByteSize

if TYPE_CHECKING:
    from tests.conftest import Host, Runner

MIB = 1024**2

MOST = {"runc": {20}, "crun": {20}, "gvisor": {20, 21}}
"""How many processes a bound of 20 allows; the Sentry compares before it counts the new one."""

FILL = """
import json, os
met = {}
for directory in ("/tmp", "/home", "/work", "/dev/shm"):
    written = 0
    with open(directory + "/file", "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(bytes(65536))
        except OSError as error:
            met[directory] = [written, error.errno]
    os.unlink(directory + "/file")
print(json.dumps(met))
"""

OPEN = """
import os
opened = []
try:
    while True:
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(len(opened) + 4, error.errno)  # with stdin, stdout, stderr and the one that python has its script by
"""

SPAWN = """
import os, signal
children = []
try:
    while len(children) < 200:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError as error:
    print(len(children) + 1, error.errno)  # with this one
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""

# Never ends by itself: each process makes others as long as it can, and goes on trying when it cannot.
BOMB = """
import os
print("up", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

# Touches every page: memory that is only asked for is not had.
ALLOCATE = """
import sys
kept = []
for _ in range(int(sys.argv[1])):
    kept.append(bytearray(b"x") * (1 << 20))
print("all of it")
"""


async def test_writable_directories_are_bounded(backend: str) -> None:
    limits = kavach_api.Limits(tmp=ByteSize(2 * MIB))
    async with kavach_api.open_sandbox(backend=backend, limits=limits) as sandbox:
        result = await sandbox.exec("python3", "-c", FILL, timeout=30, check=True)
    full = [2 * MIB, errno.ENOSPC]
    assert json.loads(result.stdout) == {"/tmp": full, "/home": full, "/work": full, "/dev/shm": full}


async def test_open_files_are_bounded(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=kavach_api.Limits(open_files=64)) as sandbox:
        result = await sandbox.exec("python3", "-", input=OPEN, timeout=30, check=True)
        shown, number = map(int, result.stdout.split())
        assert 62 <= shown <= 65
        assert number == errno.EMFILE
        raised = await sandbox.shell("ulimit -n 1000000 2>&1 || echo refused", timeout=30)
        assert "refused" in raised.stdout


async def test_processes_are_bounded(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, limits=kavach_api.Limits(pids=20)) as sandbox:
        result = await sandbox.exec("python3", "-c", SPAWN, timeout=30, check=True)
        made, number = map(int, result.stdout.split())
        assert made in MOST[backend]
        assert number == errno.EAGAIN


async def test_fork_bomb_is_contained(backend: str, host: Host) -> None:
    """While it goes off the host has a bounded number of its processes; after it the box is as good as before."""
    async with kavach_api.open_sandbox(backend=backend, limits=kavach_api.Limits(pids=20)) as sandbox:
        most = 0

        async def count(_: bytes) -> None:
            nonlocal most
            await trio.lowlevel.checkpoint()
            most = max(most, len(host.members(sandbox.id)))

        result = await sandbox.exec("python3", "-c", BOMB, timeout=1.0, on_stdout=count)
        assert result.timed_out
        assert 0 < most < 300
        again = await sandbox.exec("sh", "-c", "/bin/echo one; /bin/echo two", timeout=20)
        assert (again.ok, again.stdout) == (True, "one\ntwo\n")


async def test_memory_is_bounded_swap_included(backend: str) -> None:
    """The command that wants more than there is does not get it, and is killed; on gVisor perhaps the box with it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with kavach_api.open_sandbox(
        backend=backend, limits=kavach_api.Limits(memory=ByteSize(128 * MIB))
    ) as sandbox:
        fits = await sandbox.exec("python3", "-c", ALLOCATE, "16", timeout=30)
        assert (fits.ok, fits.stdout) == (True, "all of it\n")
        result = await sandbox.exec("python3", "-c", ALLOCATE, "512", timeout=60)
        assert result.outcome is kavach_api.Outcome.OOM_KILLED
        assert result.stdout == ""
        if backend != "gvisor":
            assert (await sandbox.exec("echo", "on", timeout=20)).stdout == "on\n"
        usage = await sandbox.usage()
    assert usage.memory_peak_bytes is not None
    assert usage.memory_peak_bytes <= 128 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


async def test_limits_are_set_where_the_kernel_looks(backend: str, host: Host) -> None:
    limits = kavach_api.Limits(cpus=0.5, memory=ByteSize(200 * MIB), pids=30)
    async with kavach_api.open_sandbox(backend=backend, limits=limits) as sandbox:
        groups = host.cgroups(sandbox.id)

        def value(name: str) -> str:
            [found] = {(group / name).read_text().strip() for group in groups if (group / name).exists()}
            return found

        if any((group / "memory.max").exists() for group in groups):
            assert value("cpu.max") == "50000 100000"
            assert value("memory.max") == str(200 * MIB)
        else:
            assert (value("cpu.cfs_quota_us"), value("cpu.cfs_period_us")) == ("50000", "100000")
            assert value("memory.limit_in_bytes") == str(200 * MIB)
            swaps = {group / "memory.memsw.limit_in_bytes" for group in groups}
            assert {path.read_text().strip() for path in swaps if path.exists()} <= {str(200 * MIB)}
        assert 30 <= int(value("pids.max")) <= 500
        assert host.members(sandbox.id)


async def test_cpu_time_is_bounded(backend: str) -> None:
    """As a ratio: a tenth of a CPU is what a loop gets, however long it runs."""
    script = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    async with kavach_api.open_sandbox(backend=backend, limits=kavach_api.Limits(cpus=0.1)) as sandbox:
        result = await sandbox.exec("python3", "-c", script, timeout=60, check=True)
        usage = await sandbox.usage()
    assert usage.cpu_seconds is not None
    assert result.cpu_seconds / result.duration_seconds < 0.5


def test_limits_of_the_command_line(run_kavach: Runner, backend: str) -> None:
    done = run_kavach("run", "-b", backend, "--pids", "20", "--memory", "256M", "--", "python3", "-c", SPAWN)
    made, number = map(int, done.stdout.split())
    assert made in MOST[backend]
    assert number == errno.EAGAIN
    done = run_kavach("run", "-b", backend, "--memory", "128M", "--", "python3", "-c", ALLOCATE, "512")
    assert done.returncode in ({137} if backend != "gvisor" else {125, 137})
    assert b"all of it" not in done.stdout


def test_presets_bound_what_they_say(run_kavach: Runner, backend: str) -> None:
    script = "df -k /tmp | tail -1 | awk '{print $2}'; ulimit -n; ulimit -u"
    done = run_kavach("run", "-b", backend, "--policy", "strict", "--", "bash", "-c", script)
    size, files, processes = done.stdout.split()
    assert (size, files) == (b"65536", b"1024")
    assert backend != "gvisor" or processes == b"64", "elsewhere the cgroup has the bound"
