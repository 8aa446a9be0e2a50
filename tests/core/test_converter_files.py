"""Files to configuration: TOML and JSON, malformed, large, nested to any depth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kavach_core.config import SandboxConfig
from kavach_core.converter import MAX_FILE_BYTES, load_config
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.policy import ByteSize, Limits
from kavach_core.types import User

MIB = 1024**2

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
