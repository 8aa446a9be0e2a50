"""What the tests of the host's end of the protocol and of the file tool share."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for what several modules here use

import file_tool

# How fast a machine is says nothing about what is right.
settings.register_profile("kavach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kavach")


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """A channel owns its two pipes and closes them."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.fixture(scope="session")
def builds() -> Iterator[dict[str, Path]]:
    """The file tool as it is installed, and built so that it dies of a mistake; where every user reaches them."""
    folder = Path(tempfile.mkdtemp(prefix="kavach-file-tool-"))
    folder.chmod(0o755)
    yield file_tool.build(folder)
    shutil.rmtree(folder)


@pytest.fixture(params=["release", "sanitized"])
def tool(request: pytest.FixtureRequest, builds: dict[str, Path]) -> file_tool.Run:
    """Run the file tool to its end."""
    return functools.partial(file_tool.run, builds[request.param])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A directory that user 65534 reaches and owns."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(0o711)
    path = tmp_path / "mine"
    path.mkdir()
    os.chown(path, 65534, 65534)
    return path
