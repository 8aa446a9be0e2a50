"""Hypothesis without its time limits (how fast a machine is says nothing about what is right), the faces, and sites."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kavach_core.portal import loop

sys.path.insert(0, str(Path(__file__).parent))  # for what several modules here use

from faces import FACES, Face
from sites import Site

settings.register_profile("kavach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kavach")


@pytest.fixture(params=FACES, ids=lambda face: face.name)
def face(request: pytest.FixtureRequest) -> Face:
    """Each of the two faces."""
    value: Face = request.param
    return value


@pytest.fixture
def no_loop_left() -> Iterator[None]:
    """After the test there are as many threads as before, and there is no loop."""
    before = threads()
    yield
    assert threads() == before
    assert loop._shared.portal is None


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A folder to install distributions in."""
    return Site(tmp_path)


def threads() -> list[str]:
    """Return the names of all threads but trio's own, which go by themselves when they are idle."""
    return sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread"))
