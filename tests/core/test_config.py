"""The configuration as the caller writes it in Python: each field's bad values, and all of them at once."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.config import SandboxConfig, parse_user, to_user
from kavach_core.errors import ConfigError
from kavach_core.policy import Limits, SandboxPolicy
from kavach_core.types import User


def refused(**fields: object) -> list[str]:
    """Return the paths of the fields that a configuration of ``fields`` is refused for."""
    with pytest.raises(ConfigError) as caught:
        SandboxConfig(**fields)  # type: ignore[arg-type]
    assert all(problem.reason for problem in caught.value.problems)
    return [problem.field for problem in caught.value.problems]


def test_the_defaults() -> None:
    config = SandboxConfig()
    assert attrs.asdict(config, recurse=False) == {
        "backend": "auto",
        "rootfs": None,
        "image": None,
        "policy": "basic",
        "env": {},
        "cwd": None,
        "user": None,
        "network": "none",
        "limits": Limits(),
        "timeout": None,
        "labels": {},
    }


def test_fields_are_keywords_and_frozen() -> None:
    with pytest.raises(TypeError):
        SandboxConfig("runc")  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SandboxConfig().backend = "runc"  # type: ignore[misc]


def test_two_configurations_share_no_environment() -> None:
    assert SandboxConfig().env is not SandboxConfig().env


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("backend", value) for value in (None, 7, b"runc", "a\0", ["runc"])),
        *(("image", value) for value in (7, b"x", "a\0")),
        *(("policy", value) for value in ("", "stict", "STRICT", None, 7, True)),
        *(("cwd", value) for value in ("", "work", "/a/..", "/a/", "/proc/self", "/a\0", 7, Path("/work"))),
        *(("network", value) for value in ("", "host", "NONE", None, True, 0)),
        *(("timeout", value) for value in (0, -1, 0.0001, 1e9, math.nan, math.inf, -math.inf, True, False, "5")),
        *(("env", value) for value in (None, "A=1", ["A=1"], 7)),
        *(("labels", value) for value in (None, "a", ["a"], 7)),
        *(("user", value) for value in ("", "-1", "1:", ":1", "1:2:3", "alice", "0x0", " 1", "1 ", "٣", True)),
        *(("user", value) for value in (-1, 65536, 4294967295, "4294967295", "0:65536", "9" * 5000, b"0", 0.0)),
        *(("rootfs", value) for value in (7, b"/", "", "relative", "/nonexistent/x", "/proc/self/root", "/a\0")),
    ],
)
def test_one_bad_value(field: str, value: object) -> None:
    assert refused(**{field: value}) == [field]


@pytest.mark.parametrize(
    "user",
    [
        User(uid=-1, gid=0),
        User(uid=65536, gid=0),
        User(uid=0, gid=4294967295),
        User(uid=0, gid=0, groups=(70_000,)),
        User(uid=True, gid=5),
        User(uid=5, gid=5.5),  # type: ignore[arg-type]
        User(uid="0", gid=0),  # type: ignore[arg-type]
        User(uid=None, gid=0),  # type: ignore[arg-type]
    ],
)
def test_a_bad_user_object(user: User) -> None:
    assert refused(user=user) == ["user"]


@pytest.mark.parametrize("user", [User(uid=1, gid=True), User(uid=0, gid=0.0)])  # type: ignore[arg-type]
def test_a_bad_id_beside_an_equal_good_one(user: User) -> None:
    assert refused(user=user) == ["user"]


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("policy", ["strict"], "policy"),
        ("policy", {"name": "x"}, "policy"),
        ("user", User(uid=0, gid=0, groups=5), "user.groups"),  # type: ignore[arg-type]
        ("user", User(uid=[], gid=0), "user"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_cannot_be_compared(field: str, value: object, path: str) -> None:
    assert refused(**{field: value}) == [path]


@pytest.mark.parametrize("limits", [None, {"memory": 1}, "512M"])
def test_limits_are_limits(limits: object) -> None:
    assert refused(limits=limits) == ["limits"]


@pytest.mark.parametrize("fields", [{"name": 7}, {"name": "x", "limits": None}])
def test_a_policy_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SandboxPolicy(**fields)


@pytest.mark.parametrize("field", ["env", "labels"])
def test_bad_entries_are_told_by_key(field: str) -> None:
    assert refused(**{field: {"good": "x", "a": "\0", "b": 7}}) == [f"{field}['a']", f"{field}['b']"]


def test_every_bad_field_is_told_at_once(tmp_path: Path) -> None:
    """The point of it: a caller mends a configuration in one go."""
    wrong = {
        "backend": 7,
        "rootfs": tmp_path / "missing",
        "image": 7,
        "policy": "stict",
        "env": {"A=B": "x"},
        "cwd": "work",
        "user": "alice",
        "network": "host",
        "timeout": math.nan,
        "labels": {"a": 7},
    }
    assert refused(**wrong) == [*list(wrong)[:4], "env['A=B']", *list(wrong)[5:9], "labels['a']"]


@pytest.mark.parametrize("timeout", [0.001, 1, 0.5, 31_536_000])
def test_a_good_timeout(timeout: float) -> None:
    assert SandboxConfig(timeout=timeout).timeout == timeout


# --- rootfs ------------------------------------------------------------------------------------


def test_rootfs_is_a_directory(tmp_path: Path) -> None:
    assert SandboxConfig(rootfs=tmp_path).rootfs == tmp_path
    assert SandboxConfig(rootfs=str(tmp_path)).rootfs == tmp_path  # type: ignore[arg-type]  # a converter takes it


def test_rootfs_is_no_link(tmp_path: Path) -> None:
    """What a link points to can be changed between the check and the boot."""
    target = tmp_path / "target"
    target.mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(ConfigError) as caught:
        SandboxConfig(rootfs=link)
    (problem,) = caught.value.problems
    assert problem.field == "rootfs"
    assert problem.hint == f"write {str(target)!r}"


def test_rootfs_is_no_dangling_link_no_file_no_fifo(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("dangling", "file", "fifo"):
        assert refused(rootfs=tmp_path / name) == ["rootfs"]


def test_a_missing_rootfs_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        SandboxConfig(rootfs=tmp_path / "missing")


@pytest.mark.parametrize("path", ["/", "/proc/1/root"])
def test_rootfs_is_not_the_host_s_own_root(path: str) -> None:
    assert refused(rootfs=path) == ["rootfs"]


# --- users -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("root", (0, 0)),
        ("nobody", (65534, 65534)),
        ("0", (0, 0)),
        ("1000", (1000, 1000)),
        ("1000:5", (1000, 5)),
        ("65535:0", (65535, 0)),
        ("007", (7, 7)),
    ],
)
def test_a_user_as_text(text: str, user: tuple[int, int]) -> None:
    uid, gid = user
    assert parse_user(text) == SandboxConfig(user=text).user == User(uid=uid, gid=gid)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [64_512, 65_000, 65_520])
def test_the_agent_s_own_ids_are_no_user_s(number: int) -> None:
    """By these groups it knows whose process is whose; a command that had one could hide in another."""
    for user in (User(uid=number, gid=0), User(uid=0, gid=number), User(uid=0, gid=0, groups=(number,))):
        assert refused(user=user) == ["user"]


@pytest.mark.parametrize("number", [64_511, 65_521, 65_534, 65_535])
def test_the_ids_beside_the_agent_s(number: int) -> None:
    assert SandboxConfig(user=User(uid=number, gid=number, groups=(number,))).user is not None


def test_a_user_as_a_number_and_as_a_user() -> None:
    assert SandboxConfig(user=5).user == User(uid=5, gid=5)  # type: ignore[arg-type]
    own = User(uid=5, gid=6, groups=(7, 8))
    assert SandboxConfig(user=own).user is own


@pytest.mark.parametrize("text", ["", "alice", "1.5", "-0", "+1", "1:b", "65536", "1:65536"])
def test_what_is_no_user_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a user or group number|not an id of the box"):
        parse_user(text)


@given(st.text(max_size=8))
def test_any_text_is_a_user_or_left_alone(text: str) -> None:
    user = to_user(text)
    assert user == text or (isinstance(user, User) and 0 <= user.uid <= 65535 and 0 <= user.gid <= 65535)


# --- any values at all -------------------------------------------------------------------------

junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.tuples()
)


@given(st.dictionaries(st.sampled_from([f.name for f in attrs.fields(SandboxConfig) if f.name != "limits"]), junk))
def test_junk_gives_a_configuration_or_a_config_error(fields: dict[str, Any]) -> None:
    try:
        SandboxConfig(**fields)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either end is right


def test_more_groups_than_the_agent_takes() -> None:
    SandboxConfig(user=User(uid=1, gid=1, groups=tuple(range(64))))
    with pytest.raises(ConfigError, match="65 groups"):
        SandboxConfig(user=User(uid=1, gid=1, groups=tuple(range(65))))
