"""``kill -9`` of a process that has boxes, at random moments: nothing is left, whether its watchdog lives or not.

`KAVACH_SOAK=N` makes N rounds of each kind, 1 stands for 200; the figures are told at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, field
from soaking import Show

from kavach_core.oci.workspace import existing_bases
from kavach_core.reaper import ledger

pytestmark = pytest.mark.soak

ASKED = int(os.environ.get("KAVACH_SOAK", "8"))
ROUNDS = 200 if ASKED == 1 else ASKED
SEED = int(os.environ.get("KAVACH_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
PROMISED_SECONDS = 2.0
PATIENCE_SECONDS = 20.0
CGROUPS = Path("/sys/fs/cgroup")
PHASES = {"before": 0.01, "create": 0.5, "exec": 0.02, "close": 0.03}
"""How long after it has begun a phase is interrupted at most, in seconds; the others come sooner if it is over."""

# Forks owners, so that a round costs no imports. Each opens boxes one after the other and tells what it is about to do.
NURSERY = """
import os, signal, sys, trio
import kavach_core as kavach, kavach_oci, kavach_gvisor, kavach_guest.oci_boot
from kavach_core import sandbox

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def own(backend):
    while True:
        tell("create")
        async with kavach.open_sandbox(backend=backend) as box:
            tell("exec")
            for _ in range(5):
                await box.exec("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo")
            tell("close")

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        tell("before", os.getpid())
        trio.run(own, line.strip())
    os.waitpid(pid, 0)
    tell("ended")
"""


@define
class Figures:
    """What the rounds of one kind have shown.

    Attributes:
        rounds: how many there were.
        phases: how often the owner was killed in each phase.
        died: seconds until no process of a box was alive, for each round.
        clean: seconds until nothing at all was left, for each round.
        left: what was left, of all rounds.
    """

    rounds: int = 0
    phases: dict[str, int] = field(factory=dict)
    died: list[float] = field(factory=list)
    clean: list[float] = field(factory=list)
    left: list[str] = field(factory=list)

    def row(self, name: str) -> str:
        """Return them as a row of a table."""
        phases = " ".join(f"{phase} {count}" for phase, count in sorted(self.phases.items()))
        died, clean = (
            f"{1000 * sorted(times)[len(times) // 2]:5.0f} {1000 * max(times):6.0f}"
            for times in (self.died, self.clean)
        )
        late = sum(seconds > PROMISED_SECONDS for seconds in self.died)
        return f"{name:<26} {self.rounds:>5} {late:>10} {len(self.left):>5}   {died}   {clean}   {phases}"


HEAD = (
    f"{'kind':<26} {'kills':>5} {'alive 2 s':>10} {'left':>5}   {'dead: median, most':<14}ms {'clean: likewise'} ms"
    "  killed in"
)


class Owners:
    """Processes that have boxes, one at a time."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        assert words, "the owners' nursery has ended"
        return words

    def start(self) -> int:
        """Start an owner and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.backend}\n")
        return int(self.wait_for("before")[1])

    def wait_for(self, word: str) -> list[str]:
        """Wait until the owner says that it is about to do something, or has ended."""
        while (words := self._line())[0] != word:
            pass
        return words

    def close(self) -> None:
        """End the nursery."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def owners(backend: str) -> Iterator[Owners]:
    """Start the nursery of owners."""
    made = Owners(backend)
    yield made
    made.close()


def words_of(pid: int) -> set[str]:
    """Return the random words that name the instances of a process, whatever there is of them."""
    watched = {arguments[2].removeprefix("instance-") for _, arguments in watchdogs(pid)}
    for base in existing_bases():
        for path in base.glob("*instance-*"):
            word = path.name.partition("instance-")[2].partition("-")[0]
            if f"-{pid}-" in path.name or ledger.read(str(path))[0].get("pid") == pid:
                watched.add(word)
    return watched


def watchdogs(owner: int) -> list[tuple[int, list[str]]]:
    """Return the watchdogs of a process, and their arguments."""
    found = []
    for pid in processes():
        arguments = read(f"/proc/{pid}/cmdline").decode().split("\0")
        if arguments[0].endswith("/kavach-watchdog") and arguments[5] == str(owner):
            found.append((pid, arguments))
    return found


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def alive(words: set[str]) -> list[str]:
    """Return the processes of boxes and runtimes of these instances, as text."""
    found = []
    for pid in processes():
        command = read(f"/proc/{pid}/cmdline")
        if b"kavach-watchdog" in command or read(f"/proc/{pid}/stat").rpartition(b")")[2][1:2] in (b"Z", b"X", b""):
            continue
        about = command + read(f"/proc/{pid}/cgroup")
        if any(f"instance-{word}/".encode() in about or f"/kavach-{word}/".encode() in about for word in words):
            found.append(f"process {pid} {command!r}")
    return found


def left(words: set[str]) -> list[str]:
    """Return everything there is of these instances, as text."""
    found = alive(words)
    for word in words:
        found += [f"cgroup {path}" for path in (*CGROUPS.glob(f"kavach-{word}"), *CGROUPS.glob(f"*/kavach-{word}"))]
        found += [f"file {path}" for base in existing_bases() for path in base.glob(f"*{word}*")]
        found += [f"file {path}" for path in Path("/tmp").glob(f"*{word}*")]
        found += [f"mount {line}" for line in read("/proc/self/mountinfo").decode().splitlines() if word in line]
    return found


def seconds_until(nothing: Callable[[], object]) -> float:
    """Return how long it takes until there is nothing, at most ``PATIENCE_SECONDS``."""
    started = time.monotonic()
    while nothing() and time.monotonic() - started < PATIENCE_SECONDS:
        time.sleep(0.002)
    return time.monotonic() - started


def kill_one(owners: Owners, chance: random.Random, figures: Figures, *, watchdog_too: bool) -> tuple[set[str], float]:
    """Kill an owner somewhere in its life. Return the words of its instances, and when that was."""
    pid = owners.start()
    phase = list(PHASES)[figures.rounds % len(PHASES)]
    for _ in range(0 if phase == "before" else chance.choice((1, 1, 2))):
        owners.wait_for(phase)
    time.sleep(chance.random() ** 2 * PHASES[phase])  # sooner rather than later
    words = words_of(pid)
    for watchdog, _ in watchdogs(pid) if watchdog_too else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(watchdog, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    owners.wait_for("ended")
    figures.phases[phase] = figures.phases.get(phase, 0) + 1
    figures.rounds += 1
    return words | words_of(pid), killed


def end_round(words: set[str], killed: float, figures: Figures) -> None:
    """Wait until the boxes are dead, and note how long that took."""
    seconds_until(lambda: alive(words))
    figures.died.append(time.monotonic() - killed)
    figures.left += alive(words)


def test_with_its_watchdog(owners: Owners, backend: str, show: Show) -> None:
    """The watchdog removes everything, and ends."""
    chance, figures = random.Random(f"{SEED} {backend}"), Figures()
    for _ in range(ROUNDS):
        words, killed = kill_one(owners, chance, figures, watchdog_too=False)
        end_round(words, killed, figures)
        seconds_until(lambda words=words: left(words))  # type: ignore[misc]  # mypy does not know the default
        figures.clean.append(time.monotonic() - killed)
        figures.left += left(words)
    report(show, f"{backend}, watchdog", figures)


def test_without_it(owners: Owners, backend: str, kavach: Path, show: Show) -> None:
    """Killed in the same instant: the boxes end by themselves, and ``kavach gc`` removes what there is of them."""
    chance, figures, seen = random.Random(f"{SEED} {backend}"), Figures(), 0
    for _ in range(ROUNDS):
        words, killed = kill_one(owners, chance, figures, watchdog_too=True)
        end_round(words, killed, figures)
        seen += bool(left(words))
        done = subprocess.run([kavach, "gc", "--json"], capture_output=True, check=False, timeout=60)
        figures.clean.append(time.monotonic() - killed)
        figures.left += left(words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert isinstance(json.loads(done.stdout)["findings"], list)
    report(show, f"{backend}, watchdog killed too", figures)
    assert seen, "nothing was ever left, so this has shown nothing"


def report(show: Show, name: str, figures: Figures) -> None:
    show(HEAD, f"{figures.row(name)}   seed {SEED}")
    assert figures.left == []
    if ROUNDS >= 100:  # the machine is its own then
        assert all(seconds < PROMISED_SECONDS for seconds in figures.died)
