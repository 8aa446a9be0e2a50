"""What kavach costs beside the raw runtimes: cold boxes, warm commands, the command line, and imports.

    .venv/bin/python benchmarks/exec.py [--rounds N] [--json FILE] [--only warm,exec,cold,cli,import]

Needs root and the runtimes; one that is missing is left out and said so. Compare the ratios: the milliseconds
are this machine's, now.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import frozen
from measure import Case, Measurements, interleave
from raw import RawBox, raw_boxes

from kavach_core import Sandbox, open_sandbox

BACKENDS = ("runc", "crun", "gvisor")
TRUE = "/bin/true"
PODMAN_IMAGE = "kavach-benchmark"
PODMAN_SETTINGS = """\
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
[engine]
cgroup_manager="cgroupfs"
events_logger="none"
"""


@frozen
class Bar:
    """A ratio that has to hold."""

    what: str
    case: str
    over: str
    limit: float


BARS = (
    *(
        Bar(f"warm exec, {name}, over fork+exec", f"{name}: kavach warm", f"{name}: fork+exec", 1.6)
        for name in ("runc", "crun")
    ),
    Bar("warm exec over runc exec", "runc: kavach exec", "runc: raw exec", 0.1),
    Bar("warm exec over crun exec", "crun: kavach exec", "crun: raw exec", 0.25),
    Bar("warm exec over runsc exec", "gvisor: kavach exec", "gvisor: raw exec", 0.65),
    *(Bar(f"cold box, {name}, over its own run", f"{name}: kavach cold", f"{name}: raw run", 1.2) for name in BACKENDS),
    *(
        Bar(f"kavach run over podman run, {name}", f"{name}: kavach run", f"{name}: podman run", 0.5)
        for name in ("runc", "crun")
    ),
    Bar("import kavach_core, all of it, over its dependencies", "import kavach_core", "import dependencies", 1.15),
    Bar("kavach --help over the dependencies", "kavach --help", "import dependencies", 0.5),
    Bar("kavach --version over the dependencies", "kavach --version", "import dependencies", 0.5),
)


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


def print_table(into: Measurements) -> None:
    """Print all medians, and every ratio beside its bar."""
    print(f"\n{'case':<34} {'median ms':>10} {'p90 ms':>10}")
    for name in into.samples:
        row = into.row(name)
        print(f"{name:<34} {row['median_ms']:>10.2f} {row['p90_ms']:>10.2f}")
    print(f"\n{'ratio':<54} {'is':>6} {'bar':>6}")
    for row in ratios(into):
        print(f"{row['what']:<54} {row['ratio']:>6.2f} {row['bar']:>6.2f} {'' if row['holds'] else '  <-- missed'}")


def ratios(into: Measurements) -> list[dict[str, Any]]:
    """Return every ratio that could be measured."""
    rows = []
    for bar in BARS:
        if into.has(bar.case, bar.over):
            ratio = into.median(bar.case) / into.median(bar.over)
            rows.append({"what": bar.what, "ratio": round(ratio, 3), "bar": bar.limit, "holds": ratio <= bar.limit})
    return rows


async def main(options: argparse.Namespace) -> None:
    """Measure what was asked for."""
    into = Measurements()
    started = time.time()
    parts = options.only.split(",")
    with raw_boxes(BACKENDS) as boxes:
        steps = {
            "warm": functools.partial(measure_warm, boxes),
            "exec": functools.partial(measure_exec, boxes),
            "cold": functools.partial(measure_cold, boxes),
            "cli": functools.partial(measure_command_line, boxes),
            "import": measure_imports,
        }
        for name, step in steps.items():
            if name in parts:
                await step(into, options.rounds)
    print_table(into)
    if options.json:
        result = {"started": started, "cases": [into.row(name) for name in into.samples], "ratios": ratios(into)}
        await trio.Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", default="warm,exec,cold,cli,import")
    trio.run(main, parser.parse_args())
