"""The declared strength score: what the policy asks of the backend, in points.

A base for the boundary, points for what is enforced on top, and a band with a name. The bases, points and
bands are those of the project's ancestor, so that figures stay comparable; only what is really enforced
counts here.
"""

from __future__ import annotations

from attrs import frozen

from kavach_core import capabilities
from kavach_core.policy import SandboxPolicy

_BANDS = ((85, "fortress"), (70, "hardened"), (50, "standard"), (30, "basic"), (0, "minimal"))


@frozen(kw_only=True)
class ScoreItem:
    """One line of a score: what it is for, and the points."""

    what: str
    points: int


@frozen(kw_only=True)
class Score:
    """A declared score, 0 to 100, with the items that make it up."""

    items: tuple[ScoreItem, ...]

    @property
    def total(self) -> int:
        """The score itself."""
        return max(0, min(100, sum(item.points for item in self.items)))

    @property
    def band(self) -> str:
        """Its name: minimal, basic, standard, hardened or fortress."""
        return next(name for floor, name in _BANDS if self.total >= floor)

    def __int__(self) -> int:
        return self.total

    def __str__(self) -> str:
        return f"{self.total} ({self.band})"


def declared_score(*, base: int, policy: SandboxPolicy, enforced: frozenset[str]) -> Score:
    """Score what ``policy`` asks for, counting only what ``enforced`` says is enforced."""
    limits = policy.limits
    bounded = (limits.memory is not None and capabilities.LIMITS_MEMORY in enforced) or (
        limits.cpus is not None and capabilities.LIMITS_CPU in enforced
    )
    candidates = (
        (True, ScoreItem(what="boundary", points=base)),
        (capabilities.NET_NONE in enforced, ScoreItem(what="no network", points=5)),
        (capabilities.FS_READONLY_ROOT in enforced, ScoreItem(what="read-only root", points=3)),
        (bounded, ScoreItem(what="memory or CPU bound", points=2)),
    )
    return Score(items=tuple(item for holds, item in candidates if holds))
