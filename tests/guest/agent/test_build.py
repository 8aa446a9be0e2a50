"""The build of the agent: static, current, quick when nothing has changed, and strict."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.agent.conftest import Programs


def build(script: Path, output: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), str(output)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_binary_is_static_and_small(programs: Programs) -> None:
    binary = programs.agents["release"]
    assert b"INTERP" not in subprocess.run(["readelf", "-lW", binary], capture_output=True, check=True).stdout
    assert binary.stat().st_size < 1_000_000


def test_a_current_binary_is_left_alone(programs: Programs, build_script: Path) -> None:
    binary = programs.agents["release"]
    before = binary.stat()
    assert build(build_script, binary).returncode == 0
    assert binary.stat().st_ino == before.st_ino


def test_a_named_compiler_is_used_and_its_failure_is_told(tmp_path: Path, build_script: Path) -> None:
    done = build(build_script, tmp_path / "agent", KAVACH_AGENT_CC="false")
    assert done.returncode != 0
    assert "'false'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_all_warnings_are_errors(agent_sources: Path, tmp_path: Path) -> None:
    units = [path for path in agent_sources.glob("*.c") if not path.name.startswith("fuzz_")]
    flags = "-std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -Wconversion -Wshadow -Wpedantic"
    subprocess.run(["cc", *flags.split(), *units, "-o", str(tmp_path / "agent")], check=True)
