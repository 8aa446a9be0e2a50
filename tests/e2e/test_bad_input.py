"""Bad input is refused before anything is started: status 125, the field by name, and what to write instead.

That nothing was started is seen in that it is refused also when the box could not be: most of these name a runtime
that is not needed, and none leaves a trace for the fixture that looks for traces.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

import kavach_core as kavach_api
from kavach_core.oci import runtime

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Runner

COMMAND_LINES = [
    (["--cwd", "work"], ["cwd", "absolute"]),
    (["--cwd", "/proc/self/fd/7"], ["cwd", "/proc"]),
    (["--cwd", "/tmp/../etc"], ["cwd", "normal form"]),
    (["--cwd", "/no/such"], ["cwd", "/no/such"]),
    (["--env", "NAME"], ["env", "NAME=VALUE"]),
    (["--env", "=x"], ["env", "empty"]),
    (["--user", "4294967295"], ["user", "65535"]),
    (["--user", "-1"], ["user"]),
    (["--user", "someone"], ["user", "UID"]),
    (["--user", "1:4294967295"], ["user"]),
    (["--timeout", "0"], ["timeout", "0.001"]),
    (["--timeout", "-1"], ["timeout"]),
    (["--timeout", "nan"], ["timeout"]),
    (["--timeout", "inf"], ["timeout"]),
    (["--timeout", "soon"], ["timeout", "number"]),
    (["--memory", "lots"], ["memory", "512M"]),
    (["--memory", "1"], ["limits.memory"]),
    (["--cpus", "0"], ["limits.cpus"]),
    (["--pids", "0"], ["limits.pids"]),
    (["--pids", "1.5"], ["pids", "whole"]),
    (["--network", "host"], ["network", "none"]),
    (["--policy", "lax"], ["policy", "strict"]),
    (["--backend", "docker"], ["docker", "installed"]),
    (["--backend", "process"], ["process", "kavach-process"]),
    (["--image", "debian"], ["images", "kavach-images"]),
]


@pytest.mark.parametrize(("options", "words"), COMMAND_LINES, ids=[" ".join(case[0]) for case in COMMAND_LINES])
def test_command_line(run_kavach: Runner, options: list[str], words: list[str]) -> None:
    done = run_kavach("run", *(["-b", "runc"] if "--backend" not in options else []), *options, "--", "echo", "started")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"kavach: ") or b"\nkavach: " in done.stderr
    for word in words:
        assert word in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_unknown_option(run_kavach: Runner) -> None:
    done = run_kavach("run", "--no-such-option", "--", "echo", "started")
    assert done.returncode == 125
    assert b"no-such-option" in done.stderr
    assert done.stdout == b""


def test_no_command(run_kavach: Runner) -> None:
    done = run_kavach("run")
    assert done.returncode == 125
    assert b"command: is missing" in done.stderr


def test_all_that_is_wrong_is_said_at_once(run_kavach: Runner) -> None:
    done = run_kavach(
        "run", "--timeout", "soon", "--cwd", "x", "--user", "me", "--env", "A", "--pids", "0", "--", "true"
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert {line.split()[1].rstrip(":") for line in lines} == {"timeout", "cwd", "user", "env['A']", "limits.pids"}


FILES = {
    "box.toml": """
backnd = "runc"
cwd = "x"
timeout = "1"
limits = { memory = "x", swap = 1 }
env = { "A=B" = "1", C = 2 }
""",
    "box.json": json.dumps(
        {
            "backnd": "runc",
            "cwd": "x",
            "timeout": "1",
            "limits": {"memory": "x", "swap": 1},
            "env": {"A=B": "1", "C": 2},
        }
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_configuration_file(run_kavach: Runner, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    done = run_kavach("run", "--config", tmp_path / name, "--", "true")
    assert done.returncode == 125
    text = done.stderr.decode()
    for field in ("backnd", "cwd", "timeout", "limits.memory", "limits.swap", "env['A=B']", "env['C']"):
        assert f"kavach: {field}: " in text
    assert "did you mean 'backend'?" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", "= ="), ("a.json", "{"), ("a.json", "[" * 100_000), ("a.json", "[]"), ("a.toml", "\0"), ("none", None)],
)
def test_configuration_file_that_is_none(run_kavach: Runner, tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    done = run_kavach("run", "--config", tmp_path / name, "--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"Traceback" not in done.stderr


class StartedError(AssertionError):
    """Something of a box was made."""


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"env": {"A=B": "1"}}, "env['A=B']"),
    ({"env": {"A": "x\0y"}}, "env['A']"),
    ({"env": {"": "x"}}, "env['']"),
    ({"env": {"A": 1}}, "env['A']"),
    ({"cwd": "a"}, "cwd"),
    ({"cwd": "/a\0b"}, "cwd"),
    ({"cwd": "/proc"}, "cwd"),
    ({"user": 4294967295}, "user"),
    ({"user": -1}, "user"),
    ({"user": True}, "user"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": math.nan}, "timeout"),
    ({"timeout": math.inf}, "timeout"),
    ({"timeout": "1"}, "timeout"),
    ({"policy": "lax"}, "policy"),
    ({"network": "host"}, "network"),
    ({"rootfs": "relative"}, "rootfs"),
]


@pytest.mark.parametrize(("fields", "name"), FIELDS, ids=[str(case[0]) for case in FIELDS])
async def test_fields_of_a_sandbox(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], name: str) -> None:
    def start(*_: object, **__: object) -> None:
        raise StartedError

    monkeypatch.setattr(runtime.OciBox, "__init__", start)
    with pytest.raises(kavach_api.ConfigError) as caught:
        async with kavach_api.open_sandbox(backend="runc", **fields):
            pass
    assert [problem.field for problem in caught.value.problems] == [name]


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "argv"),
    (("",), {}, "argv"),
    (("true", "a\0b"), {}, "argv[1]"),
    (("true", b"bytes"), {}, "argv[1]"),
    (("true", "x" * 200_000), {}, "argv[1]"),
    (("true", *["x" * 100_000] * 11), {}, "argv"),
    (("true",), {"env": {"A=B": "1"}}, "env['A=B']"),
    (("true",), {"env": {"A": "\0"}}, "env['A']"),
    (("true",), {"cwd": "relative"}, "cwd"),
    (("true",), {"cwd": "/proc/self"}, "cwd"),
    (("true",), {"cwd": "/no/such"}, "cwd"),
    (("true",), {"user": 4294967295}, "user"),
    (("true",), {"user": kavach_api.User(uid=1, gid=1, groups=(70_000,))}, "user"),
    (("true",), {"timeout": math.nan}, "timeout"),
    (("true",), {"timeout": 0}, "timeout"),
    (("true",), {"max_output": -1}, "max_output"),
    (("true",), {"input": 5}, "input"),
]


async def test_arguments_of_a_call(backend: str) -> None:
    """The sandbox is as good after each of them as before."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        for argv, options, name in ARGUMENTS:
            with pytest.raises(kavach_api.ConfigError) as caught:
                await sandbox.exec(*argv, **options)
            assert [problem.field for problem in caught.value.problems] == [name], (argv[:2], options)
        assert (await sandbox.exec("echo", "still")).stdout == "still\n"
        with pytest.raises(kavach_api.ConfigError):
            await sandbox.spawn("true", cwd="/no/such")
        with pytest.raises(kavach_api.StartFailed):
            await sandbox.spawn("/no/such")
