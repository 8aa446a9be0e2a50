"""Copies of the checkout for tests of the set-up scripts.

What would cost minutes or the network is left out: the copies' set-up makes a true virtual
environment, but instead of asking pip it notes that it would have.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ("runc", "crun", "runsc")
SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
NOBODY = 65534
NO_RUNTIMES = {"KAVACH_RUNTIME_PATH": "/nonexistent"}

# Sourced after lib.sh: no pip, no network; each installation leaves a line in installed.txt.
STAND_INS = r"""
is_root() { false; }
has_ensurepip() { false; }
find_installer() { :; }
install_part() {
    echo "$1" >>"$ROOT/installed.txt"
    sleep "${SLOW:-0}"
    printf '#!/bin/sh\n' >"$VENV/bin/kavach"
    chmod +x "$VENV/bin/kavach"
    mkdir -p "$ROOT/plugins/kavach_guest/src/kavach_guest/_bin"
    : >"$ROOT/plugins/kavach_guest/src/kavach_guest/_bin/agent"
}
"""


def run(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    as_nobody: bool = False,
) -> subprocess.CompletedProcess[str]:
    if as_nobody and os.getuid() == 0:
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        argv = ("setpriv", *ids, *argv)
    return subprocess.run(
        [str(part) for part in argv],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Checkout:
    """A copy of what the scripts read, in a folder that anybody may enter."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lib(self, code: str, *, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run shell code with lib.sh and the stand-ins sourced."""
        text = f'source "$1/scripts/lib.sh"\n{STAND_INS}\n{code}'
        return run("bash", "-euo", "pipefail", "-c", text, "bash", self.root, env=env)

    def ensure_ready(self, *groups: str) -> subprocess.CompletedProcess[str]:
        """Set up, as every script does first; it must succeed and keep off stdout."""
        result = self.lib(f"ensure_ready {' '.join(groups)}")
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        return result

    @property
    def installed(self) -> list[str]:
        """Every installation so far, in order."""
        note = self.root / "installed.txt"
        return note.read_text().split() if note.exists() else []

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file with its size and time, to compare before and after."""
        found = {}
        for path in self.root.rglob("*"):
            info = path.lstat()
            found[str(path)] = (info.st_size, info.st_mtime_ns)
        return found


def copy_checkout(to: Path) -> Checkout:
    shutil.copytree(ROOT / "scripts", to / "scripts")
    shutil.copy2(ROOT / "pyproject.toml", to)
    for project in (ROOT / "plugins").glob("*/pyproject.toml"):
        (to / "plugins" / project.parent.name).mkdir(parents=True)
        shutil.copy2(project, to / "plugins" / project.parent.name)
    (to / "plugins/kavach_guest/agent").mkdir()
    (to / "plugins/kavach_guest/agent/agent.c").write_text("int main(void) { return 0; }\n")
    return Checkout(to)
