# ruff: noqa: INP001 - a build script, part of no package
"""Compile the agent into the package: a hatchling build hook, and a small command of its own.

`python hatch_build.py [OUTPUT]` builds without hatchling, for those who only want the binary.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # as a command, without hatchling
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
BINARIES = ROOT / "src" / "kavach_guest" / "_bin"
PROGRAMS = {"kavach-agent": ROOT / "agent", "kavach-seal": ROOT / "launcher", "kavach-watchdog": ROOT / "watchdog"}
BINARY = BINARIES / "kavach-agent"
OVERRIDE = "KAVACH_AGENT_CC"
ZIG_REQUIREMENT = "ziglang>=0.13,<0.16"
ZIG_TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl"}
FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-Os",
    "-fstack-protector-strong",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wall",
    "-Wextra",
    "-static",
    "-s",
    "-Wl,--gc-sections",
)
ELF_MAGIC = b"\x7fELF"
ELF_MACHINE_AT = 18
ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}


def sources(name: str) -> list[Path]:
    """List a program's translation units; the fuzz target stands apart."""
    return sorted(path for path in PROGRAMS[name].glob("*.c") if not path.name.startswith("fuzz_"))


def machine_of(binary: Path) -> str | None:
    """Read from a Linux program which machine it is for; None for one without wheel tags."""
    header = binary.read_bytes()[: ELF_MACHINE_AT + 2]
    if not header.startswith(ELF_MAGIC):
        raise RuntimeError(f"{binary} is not a Linux program")
    return ELF_MACHINES.get(int.from_bytes(header[ELF_MACHINE_AT:], "little"))


def is_current(name: str, binary: Path) -> bool:
    """Tell whether the binary is for this machine and newer than everything it is made from."""
    made_from = [*PROGRAMS[name].glob("*.[ch]"), Path(__file__)]
    try:
        built = binary.stat().st_mtime_ns
        if machine_of(binary) not in (None, platform.machine()):
            return False
    except (FileNotFoundError, RuntimeError):
        return False
    return all(path.stat().st_mtime_ns < built for path in made_from)


def links_statically(compiler: Sequence[str]) -> bool:
    """Try a static program for real: a compiler without a static libc is common."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        program = Path(folder, "probe")
        source.write_text("#include <unistd.h>\nint main(void) { return getpid() < 1; }\n")
        command = [*compiler, "-static", str(source), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            subprocess.run([str(program)], check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return False
    return True


def system_compiler() -> list[str] | None:
    """Find a C compiler that makes static programs: the one named, or the machine's."""
    override = os.environ.get(OVERRIDE)
    if override:
        return shlex.split(override)
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path and links_statically([path]):
            return [path]
    return None


def zig_compiler() -> list[str]:
    """Use the compiler from the ziglang distribution, which brings its own libc."""
    target = ZIG_TARGETS.get(platform.machine())
    if target is None or importlib.util.find_spec("ziglang") is None:
        raise RuntimeError(
            "no C compiler here makes static programs: install gcc and the static libc, "
            f"or {ZIG_REQUIREMENT}, or name a compiler in {OVERRIDE}"
        )
    return [sys.executable, "-m", "ziglang", "cc", "-target", target]


def compile_program(name: str, binary: Path) -> None:
    """Compile a program, replacing the binary in one step."""
    compiler = system_compiler() or zig_compiler()
    binary.parent.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_name(f".{binary.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, *map(str, sources(name)), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True)
        fresh.replace(binary)
    finally:
        fresh.unlink(missing_ok=True)


def ensure(name: str, binary: Path) -> None:
    """Compile unless the binary is current; a named compiler always compiles."""
    if os.environ.get(OVERRIDE) or not is_current(name, binary):
        compile_program(name, binary)


def ensure_all() -> None:
    """Compile what is not current."""
    for name in PROGRAMS:
        ensure(name, BINARIES / name)


def all_current() -> bool:
    """Tell whether nothing has to be compiled."""
    return all(is_current(name, BINARIES / name) for name in PROGRAMS)


def wheel_tag(binary: Path) -> str:
    """Tag the wheel for the machine the binary is for. A static binary runs with any libc."""
    machine = machine_of(binary)
    if machine is None:
        return f"py3-none-linux_{platform.machine()}"
    return f"py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"


class AgentBuildHook(BuildHookInterface):  # type: ignore[misc,valid-type]
    """Puts the compiled programs into wheels, also editable ones; an sdist carries the source."""

    def dependencies(self) -> list[str]:
        """Ask for the zig compiler only where nothing else can build."""
        if self.target_name != "wheel" or all_current() or system_compiler():
            return []
        return [ZIG_REQUIREMENT]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell hatchling about the file and the platform."""
        del version  # the same for standard and editable
        if self.target_name != "wheel":
            return
        ensure_all()
        build_data["pure_python"] = False
        build_data["tag"] = wheel_tag(BINARY)
        build_data["artifacts"] += [f"src/kavach_guest/_bin/{name}" for name in PROGRAMS]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ensure("kavach-agent", Path(sys.argv[1]))
    else:
        ensure_all()
