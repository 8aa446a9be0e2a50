"""Distributions for tests of discovery: folders with the metadata that pip would write.

Each test looks at them from a program of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROUP = "kavach_core.backends"
GOOD = """
from kavach_core.types import ProbeReport

class Good:
    name = "good"
    api_version = (1, 0)
    capabilities = frozenset()
    base_score = 1

    async def probe(self):
        return ProbeReport(usable=False)

    async def open(self, spec):
        raise NotImplementedError
"""


def variant(line: str, replacement: str) -> str:
    """Return the good backend with one line changed."""
    assert line in GOOD
    return GOOD.replace(line, replacement)


class Site:
    """A folder with distributions in it, as ``pip install --target`` makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        distribution: str,
        source: str | bytes,
        names: tuple[str, ...] = ("good",),
        target: str = "Good",
        group: str = GROUP,
    ) -> Site:
        """Add a distribution with one module; importing that leaves a trace."""
        module = distribution.replace("-", "_")
        if isinstance(source, str):
            source = f"open({str(self._trace(module))!r}, 'w').close()\n{source}".encode()
        (self.path / f"{module}.py").write_bytes(source)
        self.add_metadata(distribution, dict.fromkeys(names, f"{module}:{target}"), group)
        return self

    def add_metadata(self, distribution: str, entry_points: Mapping[str, str], group: str = GROUP) -> Path:
        """Add a distribution without a module."""
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        return info

    def imported(self) -> set[str]:
        """Return the modules that anybody has imported."""
        return {path.stem for path in self.path.glob("*.imported")}

    def _trace(self, module: str) -> Path:
        return self.path / f"{module}.imported"

    def run(self, code: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program that sees these distributions beside the installed ones."""
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1", **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def ask(self, expression: str, **env: str) -> Any:  # noqa: ANN401 - plain data
        """Return the value of an expression that may use ``kavach_core.discovery``."""
        done = self.run(
            f"""
import json
from kavach_core.errors import DiscoveryError
from kavach_core.discovery import *
def failure(name):
    try:
        load_plugin(BACKENDS, name)
    except DiscoveryError as error:
        return [type(error).__name__, str(error), error.name, error.hint]
def rows():
    return {{s.plugin.name: s.cls.__name__ if s.cls else str(s.error) for s in load_all(BACKENDS)}}
print(json.dumps({expression}))
""",
            **env,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
