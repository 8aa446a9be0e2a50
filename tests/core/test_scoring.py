"""The declared score: bases, points, bands, and that nothing counts which is not enforced."""

from __future__ import annotations

import itertools

import pytest

from kavach_core import capabilities
from kavach_core.discovery import BACKENDS, load_plugin
from kavach_core.policy import PRESETS, ByteSize, Limits, SandboxPolicy
from kavach_core.scoring import Score, ScoreItem, declared_score

MIB = 1024 * 1024
BARE = SandboxPolicy(name="bare")
WITH_MEMORY = SandboxPolicy(name="memory", limits=Limits(memory=ByteSize(MIB)))
WITH_CPUS = SandboxPolicy(name="cpus", limits=Limits(cpus=1.0))
COUNTED = (capabilities.NET_NONE, capabilities.FS_READONLY_ROOT, capabilities.LIMITS_MEMORY, capabilities.LIMITS_CPU)


def score_of(points: int) -> Score:
    return Score(items=(ScoreItem(what="all", points=points),))


@pytest.mark.parametrize(("backend", "base"), [("gvisor", 70), ("runc", 55), ("crun", 55), ("oci", 55)])
def test_the_base_scores(backend: str, base: int) -> None:
    assert load_plugin(BACKENDS, backend).base_score == base


@pytest.mark.parametrize(
    ("points", "band"),
    [
        (0, "minimal"),
        (29, "minimal"),
        (30, "basic"),
        (49, "basic"),
        (50, "standard"),
        (69, "standard"),
        (70, "hardened"),
        (84, "hardened"),
        (85, "fortress"),
        (100, "fortress"),
    ],
)
def test_the_edges_of_the_bands(points: int, band: str) -> None:
    score = score_of(points)
    assert (score.total, int(score), score.band) == (points, points, band)
    assert str(score) == f"{points} ({band})"


@pytest.mark.parametrize(("points", "total"), [(-5, 0), (101, 100), (10_000, 100)])
def test_the_total_stays_between_0_and_100(points: int, total: int) -> None:
    assert score_of(points).total == total


@pytest.mark.parametrize(
    ("enforced", "points"),
    [
        ((), 0),
        ((capabilities.NET_NONE,), 5),
        ((capabilities.FS_READONLY_ROOT,), 3),
        ((capabilities.LIMITS_MEMORY,), 2),
        ((capabilities.LIMITS_CPU,), 0),  # the policy asks for no bound on CPU
        (COUNTED, 10),
    ],
)
def test_the_points(enforced: tuple[str, ...], points: int) -> None:
    assert declared_score(base=40, policy=WITH_MEMORY, enforced=frozenset(enforced)).total == 40 + points


def test_a_bound_counts_once_and_only_when_asked_for() -> None:
    both = SandboxPolicy(name="both", limits=Limits(memory=ByteSize(MIB), cpus=1.0))
    enforced = frozenset(COUNTED)
    assert declared_score(base=0, policy=both, enforced=enforced).total == 10
    assert declared_score(base=0, policy=WITH_CPUS, enforced=enforced).total == 10
    assert declared_score(base=0, policy=BARE, enforced=enforced).total == 8


def test_only_what_is_enforced_counts() -> None:
    """Every subset of the capabilities: taking one away never raises the score."""
    for policy in (BARE, WITH_MEMORY, WITH_CPUS, *PRESETS.values()):
        for size in range(len(COUNTED) + 1):
            for subset in itertools.combinations(COUNTED, size):
                whole = declared_score(base=50, policy=policy, enforced=frozenset(subset)).total
                for left_out in subset:
                    less = frozenset(subset) - {left_out}
                    assert declared_score(base=50, policy=policy, enforced=less).total <= whole


def test_the_items_add_up_and_say_what_they_are_for() -> None:
    score = declared_score(base=55, policy=PRESETS["basic"], enforced=capabilities.ALL)
    assert [(item.what, item.points) for item in score.items] == [
        ("boundary", 55),
        ("no network", 5),
        ("read-only root", 3),
        ("memory or CPU bound", 2),
    ]
    assert str(score) == "65 (standard)"
