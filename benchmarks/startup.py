"""How long boxes, commands, the command line and imports take beside the raw runtimes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Case, Measurements, interleave
from raw import RawBox

from kavach_core import Sandbox, open_sandbox

TRUE = "/bin/true"
PODMAN_IMAGE = "kavach-benchmark"
PODMAN_SETTINGS = """\
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
[engine]
cgroup_manager="cgroupfs"
events_logger="none"
"""


def spawn(*argv: str) -> None:
    """Run a program to its end with nothing connected: the floor of what starting a process costs from Python."""
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    pid = os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=null)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")


def spawning(*argv: str) -> Case:
    """Make a case of a program."""

    async def case() -> None:
        spawn(*argv)

    return case


def kavach_cold(backend: str) -> Case:
    """Open, run one command, close."""

    async def case() -> None:
        async with open_sandbox(backend=backend) as sandbox:
            await sandbox.exec(TRUE, check=True)

    return case


def kavach_warm(sandbox: Sandbox) -> Case:
    """Run one command in a live box."""

    async def case() -> None:
        await sandbox.exec(TRUE, check=True)

    return case


async def measure_cold(boxes: list[RawBox], into: Measurements, rounds: int) -> None:
    """Compare a fresh box with the runtime's own ``run`` of the same bundle."""
    cases: list[tuple[str, Case]] = []
    for box in boxes:
        cases.append((f"{box.backend}: raw run", spawning(*box.run(TRUE))))
        cases.append((f"{box.backend}: kavach cold", kavach_cold(box.backend)))
    await interleave(cases, rounds=rounds, into=into)


async def measure_warm(boxes: list[RawBox], into: Measurements, rounds: int) -> None:
    """Compare a command in a live box with a process of the host, box by box, so that no other box takes part."""
    for box in boxes:
        async with open_sandbox(backend=box.backend) as sandbox:
            cases = [
                (f"{box.backend}: fork+exec", spawning(TRUE)),
                (f"{box.backend}: kavach warm", kavach_warm(sandbox)),
            ]
            await interleave(cases, rounds=rounds * 5, into=into)


async def measure_exec(boxes: list[RawBox], into: Measurements, rounds: int) -> None:
    """Compare a command in a live box with the runtime's own ``exec``."""
    for box in boxes:
        async with open_sandbox(backend=box.backend) as sandbox:
            with box.running():
                cases = [
                    (f"{box.backend}: raw exec", spawning(*box.exec(TRUE))),
                    (f"{box.backend}: kavach exec", kavach_warm(sandbox)),
                ]
                await interleave(cases, rounds=rounds, into=into)


async def measure_command_line(boxes: list[RawBox], into: Measurements, rounds: int) -> None:
    """Compare ``kavach run`` with ``podman run --rm``."""
    kavach = str(Path(sys.executable).with_name("kavach"))
    cases = [(f"{box.backend}: kavach run", spawning(kavach, "run", "-b", box.backend, "--", TRUE)) for box in boxes]
    with podman() as run:
        if run is not None:
            cases += [(f"{name}: podman run", spawning(*run(name))) for name in ("runc", "crun")]
        await interleave(cases, rounds=rounds, into=into)


@contextmanager
def podman() -> Iterator[Any]:
    """Give the command of a podman container whose image holds a static ``true``, or None without podman."""
    program, busybox = shutil.which("podman"), shutil.which("busybox")
    if program is None or busybox is None:
        print("podman or busybox-static is not installed: left out", file=sys.stderr)
        yield None
        return
    work = Path("/tmp/kavach-benchmark")
    shutil.rmtree(work, ignore_errors=True)
    (work / "root/bin").mkdir(parents=True)
    shutil.copy(busybox, work / "root/bin/true")
    (work / "containers.conf").write_text(PODMAN_SETTINGS)
    os.environ["CONTAINERS_CONF"] = str(work / "containers.conf")
    archive = shutil.make_archive(str(work / "image"), "tar", work / "root")
    subprocess.run([program, "import", "--quiet", archive, PODMAN_IMAGE], check=True, stdout=subprocess.DEVNULL)

    def run(runtime: str) -> list[str]:
        return [program, "--runtime", runtime, "run", "--rm", "--network=none", PODMAN_IMAGE, TRUE]

    try:
        yield run
    finally:
        subprocess.run([program, "rmi", "--force", PODMAN_IMAGE], check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(work)


async def measure_imports(into: Measurements, rounds: int) -> None:
    """Compare starting kavach with starting what it is made of."""
    kavach = str(Path(sys.executable).with_name("kavach"))
    dependencies = "import attrs, cattrs, trio, opentelemetry.trace"
    everything = f"{dependencies}; from kavach_core import *"
    cases = [
        ("import dependencies", spawning(sys.executable, "-c", dependencies)),
        ("import kavach_core", spawning(sys.executable, "-c", "import kavach_core")),
        ("import every public name", spawning(sys.executable, "-c", everything)),
        ("kavach --help", spawning(kavach, "--help")),
        ("kavach --version", spawning(kavach, "--version")),
    ]
    await interleave(cases, rounds=rounds, into=into)
