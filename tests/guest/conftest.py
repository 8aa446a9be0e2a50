"""What the tests of the host's end of the protocol share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast a machine is says nothing about what is right.
settings.register_profile("kavach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kavach")

sys.path.insert(0, str(Path(__file__).parent))  # for guest_frames, which several modules here use


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """A channel owns its two pipes and closes them."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
