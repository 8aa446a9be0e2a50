"""A trio loop in a thread of its own, for callers that have none: what the faces ``blocking`` and ``aio`` stand on."""

from __future__ import annotations

from kavach_core.portal.keeper import Keeper
from kavach_core.portal.loop import Job, Lease, Portal
from kavach_core.portal.mirror import Leftover, Mirror, PoolView, SandboxView, glance

__all__ = ["Job", "Keeper", "Lease", "Leftover", "Mirror", "PoolView", "Portal", "SandboxView", "glance"]
