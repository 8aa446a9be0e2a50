"""Results: what they say about themselves."""

from __future__ import annotations

import attrs
import pytest

from kavach_core import types
from kavach_core.types import ExecResult, Outcome, Output, ProbeReport


def result(**fields: object) -> ExecResult:
    return ExecResult(**{"argv": ("x",), "outcome": Outcome.OK, "exit_code": 0, **fields})  # type: ignore[arg-type]


def test_the_outcomes() -> None:
    assert [outcome.value for outcome in Outcome] == [
        "ok",
        "nonzero_exit",
        "signal",
        "timeout",
        "cancelled",
        "oom_killed",
        "pids_limit",
        "output_limit",
        "start_failed",
        "backend_error",
    ]


@pytest.mark.parametrize("outcome", Outcome)
def test_exactly_what_happened_is_true(outcome: Outcome) -> None:
    told = result(outcome=outcome)
    assert told.ok is (outcome is Outcome.OK)
    assert told.timed_out is (outcome is Outcome.TIMEOUT)
    assert told.oom_killed is (outcome is Outcome.OOM_KILLED)


def test_text_is_a_view_that_shows_what_is_no_text() -> None:
    told = result(stdout_bytes=b"a\xff\xc3\xbc\n", stderr_bytes=b"\x80")
    assert told.stdout == "a\ufffdü\n"
    assert told.stderr == "\ufffd"
    assert told.stdout_bytes == b"a\xff\xc3\xbc\n"


@pytest.mark.parametrize(
    ("totals", "truncated"), [((2, 0), (False, False)), ((3, 0), (True, False)), ((2, 1), (False, True))]
)
def test_truncation_is_told_per_stream(totals: tuple[int, int], truncated: tuple[bool, bool]) -> None:
    told = result(stdout_bytes=b"ab", stdout_total_bytes=totals[0], stderr_total_bytes=totals[1])
    assert (told.stdout_truncated, told.stderr_truncated) == truncated
    assert told.truncated is any(truncated)


def test_cpu_time_is_a_sum() -> None:
    assert result(cpu_user_seconds=0.5, cpu_system_seconds=0.25).cpu_seconds == 0.75


def test_output_is_not_in_the_representation() -> None:
    """Results end up in logs; output may be large and secret."""
    assert "hush" not in repr(result(stdout_bytes=b"hush", stderr_bytes=b"hush"))


def test_requests_and_results_are_frozen_with_keywords_only() -> None:
    """So that a later version can add a field anywhere. A piece of output is made too often for keywords."""
    classes = {cls for cls in vars(types).values() if isinstance(cls, type) and attrs.has(cls)}
    assert len(classes) >= 8
    for cls in classes:
        assert cls.__setattr__ is not object.__setattr__
    for cls in classes - {Output}:
        assert all(field.kw_only for field in attrs.fields(cls))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        result().exit_code = 1  # type: ignore[misc]


def test_reports_share_no_details() -> None:
    assert ProbeReport(usable=True).details is not ProbeReport(usable=True).details
