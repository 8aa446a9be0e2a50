"""Hypothesis without its time limits: how fast a machine is says nothing about what is right."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("kavach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kavach")
