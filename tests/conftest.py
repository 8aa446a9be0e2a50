"""What all tests share: real runtimes or a loud skip, the real command, and a check that nothing is left behind.

Runtimes are never faked. A test that needs one says so with a marker (``needs_runc`` and so on; the fixture ``backend``
brings it along). Where it is missing the test is skipped and the end of the run says so in a line of its own;
with ``KAVACH_REQUIRE_RUNTIMES=1``, as in CI, it fails instead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import trio

from kavach_core.cli import kept_plans
from kavach_core.oci import workspace

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIME_MARKERS = {"needs_runc": "runc", "needs_crun": "crun", "needs_runsc": "runsc", "needs_busybox": "busybox"}
REQUIRED = "KAVACH_REQUIRE_RUNTIMES"

BASES = tuple(Path(parent) / "kavach" for parent in ("/run", "/dev/shm", "/var/lib"))
CGROUPS = Path("/sys/fs/cgroup")
LEAK_SECONDS = 5.0
POLL_SECONDS = 0.01

WANTED = "kavach: wanted"
FIGURES = "kavach: figures"


# --- runtimes ---------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = list(_missing(item))
    if not missing:
        return
    text = f"for want of {', '.join(missing)}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{text}, and {REQUIRED}=1 demands it", pytrace=False)
    item.user_properties.append((WANTED, ", ".join(missing)))
    pytest.skip(text)


def _missing(item: pytest.Item) -> Iterator[str]:
    needed = [name for marker, name in RUNTIME_MARKERS.items() if item.get_closest_marker(marker)]
    yield from (name for name in needed if shutil.which(name, path=SYSTEM_PATH) is None)
    if (needed or item.get_closest_marker("needs_root")) and os.geteuid() != 0:
        yield "root"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what was measured and what was left out, whichever process has run it."""
    for line in _told(terminalreporter, FIGURES):
        terminalreporter.write_line(line)
    wanted = list(_told(terminalreporter, WANTED))
    if wanted:
        names = ", ".join(sorted({name for line in wanted for name in line.split(", ")}))
        line = f"kavach: {len(wanted)} tests skipped for want of: {names}"
        terminalreporter.write_line(line, red=True, bold=True)


def _told(reporter: pytest.TerminalReporter, kind: str) -> Iterator[str]:
    reports = [report for found in reporter.stats.values() for report in found if hasattr(report, "user_properties")]
    of_kind = {
        (report.nodeid, text): None for report in reports for name, text in report.user_properties if name == kind
    }
    yield from (text for _, text in of_kind)


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Tell lines of figures at the end of the run, whatever is captured: they are the point."""

    def tell(*lines: str) -> None:
        record_property(FIGURES, "\n".join(lines))

    return tell


@pytest.fixture(
    params=[
        pytest.param("runc", marks=pytest.mark.needs_runc),
        pytest.param("crun", marks=pytest.mark.needs_crun),
        pytest.param("gvisor", marks=pytest.mark.needs_runsc),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    name: str = request.param
    return name


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kavach() -> Path:
    """The command ``kavach`` of the environment that runs the tests."""
    path = Path(sysconfig.get_path("scripts")) / "kavach"
    assert path.is_file(), f"{path} is not installed"
    return path


Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run_kavach(kavach: Path) -> Runner:
    """Run ``kavach`` with arguments to its end and return what it did; a hang fails."""

    def run(
        *arguments: str | bytes | Path,
        stdin: bytes | int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 60,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
        return subprocess.run(
            [kavach, *arguments],
            check=False,
            capture_output=True,
            env=None if env is None else {**os.environ, **env},
            timeout=seconds,
            pass_fds=pass_fds,
            **given,
        )

    return run


@pytest.fixture(params=["long way", "kept plan"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, run_kavach: Runner, backend: str) -> str:
    """Each of the two ways of ``kavach run -b BACKEND``: working it all out, and doing as an earlier run did."""
    chosen: str = request.param
    if chosen == "long way":
        monkeypatch.setenv(kept_plans.SWITCH, "0")
    else:
        assert run_kavach("run", "-b", backend, "--", "true").returncode == 0
    return chosen


class Running:
    """A ``kavach`` under way; killed at the end of the test whatever happens."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdout is not None
        self.stdout = process.stdout

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def wait_for_line(self) -> bytes:
        """Wait for a line of the command: from then on it is known to run."""
        line = self.stdout.readline()
        assert line, f"ended with {self.process.wait()} before it said anything"
        return line

    def end(self, number: int) -> tuple[int, bytes]:
        """Send a signal, wait for the end, return status and the rest of the output."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=20)
        return self.process.returncode, rest


@pytest.fixture
def start_kavach(kavach: Path) -> Iterator[Callable[..., Running]]:
    """Start ``kavach`` and return while it runs."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, stdin: int = subprocess.DEVNULL) -> Running:
        process = subprocess.Popen([kavach, *arguments], stdin=stdin, stdout=subprocess.PIPE)
        started.append(process)
        return Running(process)

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """An empty directory that everybody can reach, which ``tmp_path`` is not."""
    path = Path(tempfile.mkdtemp(prefix="box-root-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def deep_path() -> Iterator[Path]:
    """An empty directory for trees that are deeper than pytest's own clean-up, which recurses, can bear."""
    path = Path(tempfile.mkdtemp(prefix="deep-"))
    yield path
    subprocess.run(["rm", "-rf", "--", path], check=True)


# --- the host, as a witness -------------------------------------------------------------------------


class Host:
    """What the host sees of boxes, without asking kavach."""

    def marker(self) -> str:
        """Return a word that no other process has in its arguments."""
        return f"mark-{secrets.token_hex(8)}"

    def workload(self, marker: str) -> set[int]:
        """Return the processes of boxes that have ``marker`` in their arguments.

        Empty for gVisor, whose processes are not the host's; there ask the box, or look at ``members``.
        """
        return {pid for pid in _all_pids() if marker.encode() in _cmdline(pid) and "kavach-" in _cgroup_of(pid)}

    def boxes_of(self, pid: int) -> list[str]:
        """Return the ids of the boxes that the kavach process ``pid`` has."""
        commands = [_cmdline(child).split(b"\0")[:-1] for child in _children().get(pid, ())]
        return [command[-1].decode() for command in commands if b"--bundle" in command and b"run" in command]

    def members(self, box_id: str) -> set[int]:
        """Return the host's processes in the box's cgroups that are alive."""
        groups = [group for found in self.cgroups(box_id) for group in (found, found / "box") if group.is_dir()]
        return {pid for group in groups for pid in _members(group) if _state(pid) not in "ZX"}

    def cgroups(self, box_id: str) -> list[Path]:
        """Return the box's own cgroup in each hierarchy."""
        name = f"kavach-*/{box_id}"
        return [path for path in (*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}")) if path.is_dir()]

    def status(self, pid: int) -> dict[str, str]:
        """Return ``/proc/PID/status``."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def until(self, condition: Callable[[], object], *, seconds: float = 10) -> bool:
        """Poll until ``condition()``; say whether it came within the bound."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    async def until_async(self, condition: Callable[[], object], *, seconds: float = 10) -> bool:
        """Do the same in trio."""
        with trio.move_on_after(seconds):
            while not condition():  # noqa: ASYNC110 - what the host does sets no trio.Event
                await trio.sleep(POLL_SECONDS)
            return True
        return False


@pytest.fixture(scope="session")
def host() -> Host:
    """A witness on the host."""
    return Host()


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _cmdline(pid: int) -> bytes:
    return _read(f"/proc/{pid}/cmdline")


def _cgroup_of(pid: int) -> str:
    return _read(f"/proc/{pid}/cgroup").decode()


def _stat(pid: int) -> list[str]:
    """Return the fields after the name: state, parent, ..."""
    return _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()


def _state(pid: int) -> str:
    return (_stat(pid) or ["X"])[0]


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for pid in _all_pids():
        found.setdefault(_parent(pid), []).append(pid)
    return found


def _members(group: Path) -> list[int]:
    return [int(word) for word in _read(str(group / "cgroup.procs")).split()]


# --- nothing left -----------------------------------------------------------------------------------


Trace = tuple[str, str]
"""What kavach may leave on a host: its kind and its name."""


class Processes:
    """All processes of the host at one moment, and whose they are."""

    def __init__(self) -> None:
        pids = _all_pids()
        self.command = {pid: _cmdline(pid) for pid in pids}
        self._parent = {pid: _parent(pid) for pid in pids}
        self._state = {pid: _state(pid) for pid in pids}
        self._of_box = {pid for pid in pids if self._is_of_box(pid)}
        self._ours = {os.getpid(), *self._ancestors(os.getpid())}
        self.other_users = {pid for pid in pids if self._is_other_user(pid)}

    def of_boxes(self) -> Iterator[int]:
        """Return our descendants, and the processes of boxes and of runtimes, whoever has them."""
        yield from (pid for pid in self.command if pid in self._of_box or os.getpid() in self._ancestors(pid))

    def describe(self, pid: int) -> str:
        """Say what a process is."""
        text = self.command[pid].replace(b"\0", b" ").decode(errors="replace")
        return f"{self._state[pid]} {text[:200]}"

    def is_foreign(self, pid: int) -> bool:
        """Say whether some other user of kavach started ``pid``; an orphan is nobody's, so it may be ours."""
        if os.getpid() in self._ancestors(pid):
            return False
        return any(self._state[a] not in "ZX" and a not in self._of_box for a in self._ancestors(pid) - self._ours)

    def holders(self, box_id: str) -> list[int]:
        """Return the processes that have a box's id in their arguments."""
        return [pid for pid, command in self.command.items() if box_id.encode() in command]

    def _ancestors(self, pid: int) -> set[int]:
        found: set[int] = set()
        while (pid := self._parent.get(pid, 0)) > 1 and pid in self._parent and pid not in found:
            found.add(pid)
        return found

    def _is_of_box(self, pid: int) -> bool:
        command = self.command[pid]
        named = any(bytes(base / "instance-") in command for base in BASES) or b"kavach-watchdog" in command
        return named or "/kavach-" in _cgroup_of(pid)

    def _is_other_user(self, pid: int) -> bool:
        """Say whether a process may have boxes of its own: a second test run on the same host, for example."""
        program, _, rest = self.command[pid].partition(b"\0")
        named = b"kavach" in rest or b"pytest" in rest or program.startswith(sys.prefix.encode())
        related = pid in self._ours or os.getpid() in self._ancestors(pid) or pid in self._of_box
        return b"python" in program.rpartition(b"/")[2] and named and not related


def traces(*, others: bool) -> dict[Trace, str]:
    """Look around; with each trace comes what a report should say of it.

    Args:
        others: take those too that are, as far as can be told, another user's.
    """
    processes = Processes()
    found: dict[Trace, str] = {}
    own = workspace.workspace()
    for pid in processes.of_boxes():
        # The watchdog stays, as our instance does, to the end of the process.
        if (others or not processes.is_foreign(pid)) and (own is None or pid != own.instance.watchdog_pid):
            found["process", str(pid)] = processes.describe(pid)
    for path in _paths():
        if others or not _is_others(path, processes):
            found["path", str(path)] = ""
    for line in _read("/proc/self/mountinfo").decode().splitlines():
        if "kavach" in line and (others or not processes.other_users):
            found["mount", line] = ""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that listed them is closed by now
            if own is None or int(entry.name) not in own.instance.descriptors:
                found["descriptor", f"{entry.name} {entry.readlink()}"] = ""
    return found


def _paths() -> Iterator[Path]:
    own = _own_instance()
    for group in (*CGROUPS.glob("kavach-*"), *CGROUPS.glob("*/kavach-*")):
        if own is None or group.name != own.name.replace("instance-", "kavach-"):
            yield group
        with contextlib.suppress(FileNotFoundError):  # it has just gone
            yield from [path for path in group.iterdir() if path.is_dir()]
    for base in BASES:
        for instance in base.glob("instance-*"):
            if instance != own:
                yield instance
            yield from instance.glob("bundles/*")
            yield from instance.glob("state/*/*")


def _own_instance() -> Path | None:
    own = workspace.workspace()
    return None if own is None else own.path


def _is_others(path: Path, processes: Processes) -> bool:
    """Say whether a path is another user's, as far as can be told: its processes are, or nothing of it is alive."""
    own = _own_instance()
    if own is not None and path.is_relative_to(own):
        return False
    holders = processes.holders(path.name.removeprefix("kavach-"))
    if holders:
        return all(map(processes.is_foreign, holders))
    return bool(processes.other_users)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, host: Host) -> Iterator[None]:
    """After a test that starts boxes, the host is as it was before."""
    if not any(request.node.get_closest_marker(marker) for marker in RUNTIME_MARKERS):
        yield
        return
    before = traces(others=True)
    yield
    left = traces(others=False).keys() - before.keys()

    def clean() -> bool:
        left.intersection_update(traces(others=False))
        return not left

    if left and not host.until(clean, seconds=LEAK_SECONDS):
        now = traces(others=True)
        lines = [f"{kind} {name} {now.get((kind, name), '')}" for kind, name in sorted(left)]
        pytest.fail("left behind:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def sweep(host: Host) -> Iterator[set[str]]:
    """For tests that kill a kavach: what it leaves goes without anybody's help, and in a moment.

    The test puts the ids of its boxes into the set, by which they are told from another user's.
    """
    ids: set[str] = set()
    yield ids
    assert host.until(lambda: not any(path.name in ids for path in _paths())), "the watchdog has left a box"
