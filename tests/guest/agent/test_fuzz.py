"""A short, deterministic fuzz of all code that reads the host's bytes, under the sanitizers."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.agent.conftest import Programs

UNITS = ("fuzz_frames", "frame", "request", "channel", "input", "stream", "out", "kills", "cpu", "listing", "terminal")
LIVES = 300  # of 50 inputs each


@pytest.fixture(scope="module")
def fuzzer(programs: Programs, agent_sources: Path) -> Path:
    target = programs.folder / "fuzz"
    units = [str(agent_sources / f"{unit}.c") for unit in UNITS]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", *flags, *sanitize, *units, "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_input_is_undefined(fuzzer: Path, seed: int) -> None:
    done = subprocess.run(
        [fuzzer, str(LIVES), str(seed)],
        env={"ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""
    assert done.returncode == 0
