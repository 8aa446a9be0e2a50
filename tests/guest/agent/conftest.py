"""What the agent's tests start: agents, and programs for them to run.

The agent runs in three ways: as process 1 of a real user and pid namespace, as it ships and with the address and
undefined-behaviour sanitizers, and plain with those.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for agent_host, which the tests' types use as well

from agent_host import Agent, Fifo  # noqa: E402

PACKAGE = HERE.parents[2] / "plugins" / "kavach_guest"
SOURCES = PACKAGE / "agent"


@dataclass(frozen=True)
class Programs:
    """What is compiled once for all tests, in a folder that every user may read."""

    folder: Path
    guest: Path
    box: Path
    agents: dict[str, Path]


def _cc(*arguments: str) -> None:
    subprocess.run(["cc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *arguments], check=True)


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    folder = Path(tempfile.mkdtemp(prefix="kavach-agent-tests-"))
    folder.chmod(0o755)
    agents = {"release": folder / "agent", "sanitized": folder / "agent-sanitized"}
    result = Programs(folder, folder / "guest", folder / "box", agents)
    subprocess.run([sys.executable, str(PACKAGE / "hatch_build.py"), agents["release"]], check=True)
    units = sorted(str(path) for path in SOURCES.glob("*.c") if not path.name.startswith("fuzz_"))
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    _cc("-std=c11", "-Wconversion", *sanitize, *units, "-o", str(agents["sanitized"]))
    _cc("-O1", "-static", "-pthread", str(HERE / "guest.c"), "-o", str(result.guest))
    _cc("-O1", str(HERE / "box.c"), "-o", str(result.box))
    yield result
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def agent_sources() -> Path:
    """The folder of the agent's sources."""
    return SOURCES


@pytest.fixture(scope="session")
def build_script() -> Path:
    """The build hook, which is a command as well."""
    return PACKAGE / "hatch_build.py"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a user namespace of many ids needs root")
PLAIN = [pytest.param(("plain", "sanitized"), id="plain-sanitized")]
BOXED = [
    pytest.param(("boxed", build), id=f"boxed-{build}", marks=[pytest.mark.needs_root, needs_root])
    for build in ("release", "sanitized")
]
REAL = [
    pytest.param(("real", "runc"), id="runc", marks=pytest.mark.needs_runc),
    pytest.param(("real", "crun"), id="crun", marks=pytest.mark.needs_crun),
    pytest.param(("real", "gvisor"), id="gvisor", marks=pytest.mark.needs_runsc),
]

Launch = Callable[..., Agent]


def _launch(programs: Programs, way: tuple[str, str]) -> Iterator[Launch]:
    mode, build = way
    boxed = mode == "boxed"
    program = str(programs.agents[build])
    command = [str(programs.box), program] if boxed else [program, "--plain"]
    started: list[Agent] = []

    def launch(*arguments: str, nofile: str = "") -> Agent:
        agent = Agent(command + list(arguments), boxed=boxed, guest=programs.guest, nofile=nofile)
        started.append(agent)
        return agent

    yield launch
    for agent in started:
        agent.dispose()


@pytest.fixture(params=PLAIN + BOXED)
def launch(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Launch]:
    """Start agents that have not been greeted yet."""
    yield from _launch(programs, request.param)


@pytest.fixture
def agent(launch: Launch) -> Agent:
    """One agent after the exchange of HELLO, in each of the three ways."""
    return launch().greet()


@pytest.fixture(params=BOXED)
def launch_box(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Launch]:
    yield from _launch(programs, request.param)


@pytest.fixture
def box(launch_box: Launch) -> Agent:
    """One agent as process 1 of a real box."""
    return launch_box().greet()


@pytest.fixture
def real_boxes(programs: Programs) -> Iterator[Callable[[str], Agent]]:
    """Boot boxes of a backend, by its name."""
    from real_boxes import real_box  # noqa: PLC0415 - the other tests need no backend

    with contextlib.ExitStack() as boxes:

        def boot(backend: str, pids: int = 512) -> Agent:
            return boxes.enter_context(real_box(backend, programs.guest, pids=pids))

        yield boot


def _one(request: pytest.FixtureRequest, programs: Programs, real_boxes: Callable[[str], Agent]) -> Iterator[Agent]:
    mode, backend = request.param
    if mode == "real":
        yield real_boxes(backend)
        return
    for launched in _launch(programs, request.param):
        yield launched().greet()


@pytest.fixture(params=PLAIN + BOXED + REAL)
def anywhere(request: pytest.FixtureRequest, programs: Programs, real_boxes: Callable[[str], Agent]) -> Iterator[Agent]:
    """One agent, in each of the three ways and in a box of each real runtime."""
    yield from _one(request, programs, real_boxes)


@pytest.fixture(params=BOXED + REAL)
def marked(request: pytest.FixtureRequest, programs: Programs, real_boxes: Callable[[str], Agent]) -> Iterator[Agent]:
    """One agent, wherever commands carry a marker."""
    yield from _one(request, programs, real_boxes)


@pytest.fixture(params=REAL)
def each_runtime(request: pytest.FixtureRequest, real_boxes: Callable[[str], Agent]) -> Agent:
    """One agent in a box of each real runtime."""
    return real_boxes(request.param[1])


@pytest.fixture
def shared(programs: Programs) -> Iterator[Path]:
    """A folder that commands of any user may write to."""
    folder = Path(tempfile.mkdtemp(dir=programs.folder))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def fifos(shared: Path) -> Iterator[Callable[[], Fifo]]:
    """Make FIFOs that commands of any user may open."""
    made: list[Fifo] = []

    def make() -> Fifo:
        made.append(Fifo(shared / f"fifo{len(made)}"))
        return made[-1]

    yield make
    for fifo in made:
        fifo.close()


@pytest.fixture
def fifo(fifos: Callable[[], Fifo]) -> Fifo:
    return fifos()
