"""Plain data to configuration: strict, complete in what it reports, and there and back unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.config import NOBODY, SandboxConfig
from kavach_core.converter import MAX_FILE_BYTES, load_config, parse_size, structure, unstructure
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.policy import PRESETS, ByteSize, Limits, SandboxPolicy
from kavach_core.types import ExecResult, Outcome, StartFailure, User

MIB = 1024**2


def problems_of(data: object, cls: type[Any] = SandboxConfig) -> dict[str, FieldProblem]:
    """Return what ``data`` is refused for, by path."""
    with pytest.raises(ConfigError) as caught:
        structure(data, cls)
    found = {problem.field: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems)
    return found


# --- keys --------------------------------------------------------------------------------------


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


# --- values ------------------------------------------------------------------------------------


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


# --- sizes -------------------------------------------------------------------------------------


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


# --- there and back ----------------------------------------------------------------------------

names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=8)
keys = st.text(st.characters(blacklist_characters="\0=", blacklist_categories=["Cs"]), min_size=1, max_size=8)
sizes = st.none() | st.integers(MIB, 1024**4).map(ByteSize)
counts = st.none() | st.integers(1, 1_000_000)
ids = st.integers(0, 64_511) | st.integers(65_521, 65_535)
limits = st.builds(
    Limits, memory=sizes, tmp=sizes, pids=counts, open_files=counts, cpus=st.none() | st.floats(0.01, 4096)
)
roots = st.sampled_from([{}, {"rootfs": Path("/usr")}, {"rootfs": Path("/tmp")}]) | st.fixed_dictionaries(
    {"image": names}
)
configs = st.builds(
    lambda root, **fields: SandboxConfig(**root, **fields),
    root=roots,
    backend=names,
    policy=st.sampled_from(list(PRESETS)) | st.builds(SandboxPolicy, name=names, limits=limits),
    env=st.dictionaries(keys, names),
    cwd=st.sampled_from([None, "/", "/work", "/a b"]),
    user=st.none() | st.builds(User, uid=ids, gid=ids, groups=st.lists(ids, max_size=3).map(tuple)),
    limits=limits,
    timeout=st.none() | st.floats(0.001, 31_536_000),
    labels=st.dictionaries(names, names),
)


@given(configs)
def test_a_configuration_goes_there_and_back(config: SandboxConfig) -> None:
    data = unstructure(config)
    assert structure(data, SandboxConfig) == config
    assert structure(json.loads(json.dumps(data)), SandboxConfig) == config


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
near_misses = st.dictionaries(
    st.sampled_from([field.name for field in attrs.fields(SandboxConfig)]) | st.text(max_size=6),
    plain | st.dictionaries(st.sampled_from(["uid", "gid", "groups", "memory", "pids", "name", "limits"]), plain),
    max_size=6,
)


@given(near_misses)
def test_any_plain_data_gives_a_configuration_or_a_config_error(data: dict[str, Any]) -> None:
    try:
        structure(data, SandboxConfig)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either end is right


def test_a_result_can_be_written_as_json() -> None:
    result = ExecResult(
        argv=("x",),
        outcome=Outcome.START_FAILED,
        exit_code=127,
        stdout_bytes=b"\xff",
        start_failure=StartFailure(stage="program", errno=2),
    )
    data = json.loads(json.dumps(unstructure(result)))
    assert data["outcome"] == "start_failed"
    assert data["stdout_bytes"] == "\ufffd"
    assert data["start_failure"] == {"stage": "program", "errno": 2}


# --- files -------------------------------------------------------------------------------------

TOML = """
backend = "runc"
policy = "strict"
timeout = 5
user = "1000:5"

[env]
A = "1"

[limits]
memory = "512M"
cpus = 1.5
"""
JSON = {
    "backend": "runc",
    "policy": "strict",
    "timeout": 5,
    "user": "1000:5",
    "env": {"A": "1"},
    "limits": {"memory": "512M", "cpus": 1.5},
}


def refused_file(path: Path) -> FieldProblem:
    """Return the one problem of a file that cannot be read as a configuration."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    return problem


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(TOML)
    (tmp_path / "c.json").write_text(json.dumps(JSON))
    config = load_config(tmp_path / "c.toml")
    assert config == load_config(tmp_path / "c.json")
    assert config == SandboxConfig(
        backend="runc",
        policy="strict",
        timeout=5.0,
        user=User(uid=1000, gid=5),
        env={"A": "1"},
        limits=Limits(memory=ByteSize(512 * MIB), cpus=1.5),
    )


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").touch()
    (tmp_path / "c.json").touch()
    assert load_config(tmp_path / "c.toml") == SandboxConfig()
    refused_file(tmp_path / "c.json")


def test_the_fields_of_a_file_are_checked(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('timout = 5\n[limits]\nmemory = "1K"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml")
    assert [problem.field for problem in caught.value.problems] == ["timout", "limits.memory"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.toml", b"backend = "),
        ("c.toml", b'backend = "a"\nbackend = "b"'),
        ("c.toml", b'\xff\xfe = "x"'),
        ("c.toml", b"\0"),
        ("c.json", b"{"),
        ("c.json", b"\xff"),
        ("c.json", b'{"backend": "runc"} x'),
        ("c.json", b"[]"),
        ("c.json", b"null"),
        ("c.json", b"[" * 100_000),
        ("c.json", b'{"a":' * 100_000),
        ("c.toml", b"a = " + b"[" * 100_000),
        ("c.toml", b"a = " + b"{a=" * 100_000),
        ("c.json", b'{"timeout": ' + b"9" * 10_000 + b"}"),
        ("c.toml", b"timeout = " + b"9" * 10_000),
    ],
)
def test_a_malformed_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused_file(tmp_path / name)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused_file(tmp_path / "missing.toml").reason
    assert "Is a directory" in refused_file(tmp_path).reason
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    assert "symbolic links" in refused_file(tmp_path / "loop.toml").reason
    assert refused_file(Path("a\0b.toml")).reason


def test_the_size_of_a_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"#" * MAX_FILE_BYTES)
    assert load_config(path) == SandboxConfig()
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert f"larger than {MAX_FILE_BYTES} bytes" in refused_file(path).reason
    assert "larger than" in refused_file(Path("/dev/zero")).reason


@pytest.mark.parametrize(
    "field",
    [
        "unknown",
        "backend",
        "user",
        "env",
        "labels",
        "policy",
        "limits",
        "timeout",
    ],
)
def test_json_nested_to_any_depth_is_refused(tmp_path: Path, field: str) -> None:
    """The parser gives up at some depth; just below it the rest has to cope."""
    path = tmp_path / "c.json"
    for depth in (50, 500, *range(800, 1000), 2000):
        path.write_text(f'{{"{field}": {"[" * depth}1{"]" * depth}}}')
        refused_file(path)


@pytest.mark.parametrize("field", ["env", "labels"])
def test_nested_values_of_a_table_are_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "c.json"
    for depth in (5, 500, *range(800, 1000)):
        path.write_text(f'{{"{field}": {{"a": {"[" * depth}1{"]" * depth}}}}}')
        refused_file(path)


def test_a_huge_number_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(f'{{"timeout": 1{"0" * 400}}}')
    refused_file(path)
