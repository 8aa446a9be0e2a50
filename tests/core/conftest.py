"""Hypothesis without its time limits: how fast a machine is says nothing about what is right."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for scripted, which several modules here use

settings.register_profile("kavach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kavach")
