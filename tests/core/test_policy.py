"""Limits and presets."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.errors import ConfigError
from kavach_core.policy import PRESETS, Limits, SandboxPolicy, resolve_policy

MIB = 1024**2
TIB = 1024**4

sizes = st.none() | st.integers(MIB, TIB)
counts = st.none() | st.integers(1, 1_000_000)
limits_strategy = st.builds(
    Limits, memory=sizes, tmp=sizes, pids=counts, open_files=counts, cpus=st.none() | st.floats(0.01, 4096)
)


def test_no_limit_is_set_by_default() -> None:
    assert set(attrs.asdict(Limits()).values()) == {None}


@pytest.mark.parametrize(
    ("field", "smallest", "largest"),
    [
        ("memory", MIB, TIB),
        ("tmp", MIB, TIB),
        ("pids", 1, 1_000_000),
        ("open_files", 1, 1_000_000),
        ("cpus", 0.01, 4096),
    ],
)
def test_the_range_of_each_limit(field: str, smallest: float, largest: float) -> None:
    for value in (smallest, largest):
        assert getattr(Limits(**{field: value}), field) == value
    for value in (smallest - 1, largest + 1, 0, -1):
        with pytest.raises(ConfigError) as caught:
            Limits(**{field: value})
        assert [problem.field for problem in caught.value.problems] == [field]


@pytest.mark.parametrize("field", ["memory", "tmp", "pids", "open_files", "cpus"])
@pytest.mark.parametrize("value", [True, False, "512M", math.nan, math.inf, -math.inf, [], b"1", object(), 1j])
def test_what_is_no_number_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError):
        Limits(**{field: value})


@pytest.mark.parametrize("field", ["memory", "tmp", "pids", "open_files"])
def test_a_fraction_is_no_count(field: str) -> None:
    with pytest.raises(ConfigError, match="is not a whole number"):
        Limits(**{field: float(MIB)})


def test_all_bad_limits_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(memory=1, cpus=0, pids=0, open_files=0, tmp=1)
    assert [problem.field for problem in caught.value.problems] == ["memory", "cpus", "pids", "open_files", "tmp"]


@given(limits_strategy, limits_strategy)
def test_over_takes_each_limit_from_the_first_that_has_it(own: Limits, defaults: Limits) -> None:
    merged = own.over(defaults)
    for name, value in attrs.asdict(merged).items():
        wanted = getattr(own, name)
        assert value == (wanted if wanted is not None else getattr(defaults, name))


@given(limits_strategy)
def test_over_has_a_neutral_element(limits: Limits) -> None:
    assert limits.over(Limits()) == limits == Limits().over(limits) == limits.over(limits)


def test_the_presets_are_as_documented() -> None:
    figures = {
        name: (policy.limits.memory, policy.limits.pids, policy.limits.tmp, policy.limits.cpus)
        for name, policy in PRESETS.items()
    }
    assert figures == {
        "minimal": (2048 * MIB, 512, 512 * MIB, None),
        "basic": (1024 * MIB, 256, 256 * MIB, None),
        "strict": (512 * MIB, 64, 64 * MIB, 1.0),
    }
    assert all(policy.limits.open_files == 1024 for policy in PRESETS.values())
    assert all(name == policy.name for name, policy in PRESETS.items())


def test_a_preset_is_found_by_name_and_a_policy_is_itself() -> None:
    own = SandboxPolicy(name="mine")
    assert resolve_policy(own) is own
    assert resolve_policy("strict") is PRESETS["strict"]


def test_an_unknown_preset_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_policy("stict")
    (problem,) = caught.value.problems
    assert problem.field == "policy"
    assert problem.hint == "one of minimal, basic, strict"


def test_policies_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PRESETS["strict"].limits.memory = None  # type: ignore[misc]
