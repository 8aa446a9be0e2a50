"""Plain data to configuration: strict, and complete in what it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.config import NOBODY, SandboxConfig
from kavach_core.converter import parse_size, structure
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.policy import Limits, SandboxPolicy
from kavach_core.types import User

MIB = 1024**2


def problems_of(data: object, cls: type[Any] = SandboxConfig) -> dict[str, FieldProblem]:
    """Return what ``data`` is refused for, by path."""
    with pytest.raises(ConfigError) as caught:
        structure(data, cls)
    found = {problem.field: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems)
    return found


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("timout", "did you mean 'timeout'?"),
        ("Timeout", "did you mean 'timeout'?"),
        ("rootFs", "did you mean 'rootfs'?"),
        ("limit", "did you mean 'limits'?"),
        ("seccomp", None),
    ],
)
def test_an_unknown_key(key: str, hint: str | None) -> None:
    problem = problems_of({key: 1})[key]
    assert problem.reason == "unknown key"
    if hint is not None:
        assert problem.hint == hint
    else:
        known = ", ".join(sorted(field.name for field in attrs.fields(SandboxConfig)))
        assert problem.hint == f"known: {known}"


def test_an_unknown_key_further_down_is_told_with_its_path() -> None:
    found = problems_of({"limits": {"memroy": 1}, "policy": {"name": "x", "limits": {"cpu": 1}}, "user": {"ui": 1}})
    assert found["limits.memroy"].hint == "did you mean 'memory'?"
    assert found["policy.limits.cpu"].hint == "did you mean 'cpus'?"
    assert found["user.ui"].reason == "unknown key"
    assert found["user.uid"].reason == found["user.gid"].reason == "is missing"


def test_keys_that_are_no_strings() -> None:
    assert set(problems_of({1: 2, None: 3, ("a",): 4})) == {"1", "None", "('a',)"}


@pytest.mark.parametrize("data", [None, [], "backend", 7, [("backend", "runc")]])
def test_what_is_no_table(data: object) -> None:
    (problem,) = problems_of(data).values()
    assert "not a table of fields" in problem.reason


# --- values -----------------------------------------------------------------------------------------


def test_every_bad_field_is_told_at_once() -> None:
    data = {
        "backend": 7,
        "rootfs": "/nonexistent",
        "image": False,
        "policy": {"limits": {"pids": "8"}},
        "env": {"A": 1, "B=": "x"},
        "cwd": "work",
        "user": "alice",
        "network": "host",
        "limits": {"memory": "1K", "cpus": True, "pids": 1.0, "open_files": "8", "tmp": "many"},
        "timeout": "5",
        "labels": ["a"],
        "tiemout": 5,
    }
    assert set(problems_of(data)) == {
        "backend",
        "rootfs",
        "image",
        "policy.name",
        "policy.limits.pids",
        "env['A']",
        "env['B=']",
        "cwd",
        "user",
        "network",
        "limits.memory",
        "limits.cpus",
        "limits.pids",
        "limits.open_files",
        "limits.tmp",
        "timeout",
        "labels",
        "tiemout",
    }


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"timeout": True}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": 10**400}, "timeout"),
        ({"backend": True}, "backend"),
        ({"backend": 1}, "backend"),
        ({"backend": None}, "backend"),
        ({"limits": {"pids": True}}, "limits.pids"),
        ({"limits": {"pids": "64"}}, "limits.pids"),
        ({"limits": {"pids": 64.0}}, "limits.pids"),
        ({"limits": {"memory": True}}, "limits.memory"),
        ({"limits": {"memory": 1e9}}, "limits.memory"),
        ({"limits": {"cpus": False}}, "limits.cpus"),
        ({"limits": []}, "limits"),
        ({"limits": None}, "limits"),
        ({"env": [["A", "1"]]}, "env"),
        ({"env": {"A": True}}, "env['A']"),
        ({"user": True}, "user"),
        ({"user": 1.0}, "user"),
        ({"user": -1}, "user"),
        ({"user": 4294967295}, "user"),
        ({"user": "4294967295"}, "user"),
        ({"user": {"uid": "0", "gid": 0}}, "user.uid"),
        ({"user": {"uid": 0, "gid": True}}, "user.gid"),
        ({"user": {"uid": 0, "gid": 0, "groups": [True]}}, "user.groups"),
        ({"user": {"uid": 0, "gid": 0, "groups": ["5"]}}, "user.groups"),
        ({"user": {"uid": 0, "gid": 0, "groups": 5}}, "user.groups"),
        ({"user": {"uid": 0, "gid": 0, "groups": [70000]}}, "user"),
        ({"user": []}, "user"),
        ({"policy": 7}, "policy"),
        ({"policy": ["strict"]}, "policy"),
        ({"policy": {}}, "policy.name"),
        ({"policy": {"name": 7}}, "policy.name"),
        ({"rootfs": 7}, "rootfs"),
        ({"rootfs": False}, "rootfs"),
        ({"network": {"mode": "none"}}, "network"),
    ],
)
def test_values_of_another_type_are_not_coerced(data: dict[str, Any], path: str) -> None:
    assert set(problems_of(data)) == {path}


def test_a_sandbox_has_one_root() -> None:
    assert set(problems_of({"rootfs": "/usr", "image": "x"})) == {"image"}


def test_a_whole_number_is_a_number() -> None:
    assert structure({"timeout": 5}, SandboxConfig).timeout == 5.0


def test_instances_pass_through() -> None:
    config = SandboxConfig(timeout=1)
    assert structure(config, SandboxConfig) is config
    policy = SandboxPolicy(name="mine")
    data = {"policy": policy, "limits": Limits(pids=1), "user": NOBODY, "rootfs": Path("/usr")}
    built = structure(data, SandboxConfig)
    assert built.policy is policy
    assert (built.limits, built.user, built.rootfs) == (Limits(pids=1), NOBODY, Path("/usr"))


def test_the_input_is_not_kept() -> None:
    env = {"A": "1"}
    config = structure({"env": env}, SandboxConfig)
    env["A"] = "2"
    assert config.env == {"A": "1"}


def test_users_have_three_forms() -> None:
    wanted = User(uid=5, gid=6)
    for form in ("5:6", {"uid": 5, "gid": 6}, {"uid": 5, "gid": 6, "groups": []}, wanted):
        assert structure({"user": form}, SandboxConfig).user == wanted
    assert structure({"user": 5}, SandboxConfig).user == User(uid=5, gid=5)
    assert structure({"user": {"uid": 5, "gid": 6, "groups": [7]}}, SandboxConfig).user.groups == (7,)


# --- sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512K", 512 * 1024),
        ("512KiB", 512 * 1024),
        ("512KB", 512 * 1024),
        ("1M", MIB),
        ("2G", 2 * 1024**3),
        ("1T", 1024**4),
        ("10B", 10),
        ("007", 7),
        ("9" * 15 + "T", (10**15 - 1) * 1024**4),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "1.5G",
        "-1",
        "+1",
        "1 M",
        " 1M",
        "1M ",
        "1M\n",
        "1m",
        "1E",
        "1MM",
        "0x10",
        "1_000",
        "٣",
        "9" * 16,
        "1Bi",
    ],
)
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 10**12), st.sampled_from(["", "K", "M", "G", "T"]), st.sampled_from(["", "B", "iB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, suffix: str) -> None:
    assert parse_size(f"{number}{unit}{suffix}") == number * 1024 ** " KMGT".index(unit or " ")
