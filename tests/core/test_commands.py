"""From a call's arguments to a request: defaults, precedence, every bad argument at once."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.commands import BASE_ENVIRONMENT, ExecOptions, build_command, encode
from kavach_core.config import NOBODY, SandboxConfig
from kavach_core.errors import ConfigError
from kavach_core.runs import Command
from kavach_core.types import DEFAULT_MAX_OUTPUT_BYTES, User
from kavach_core.validation import MAX_COMMAND_BYTES

CONFIG = SandboxConfig()


def build(*argv: str, config: SandboxConfig = CONFIG, **options: Any) -> Command:  # noqa: ANN401 - any option
    return build_command(argv, ExecOptions(**options), config=config, cwd="/work")  # type: ignore[typeddict-item]


def refused(*argv: Any, **options: Any) -> list[str]:  # noqa: ANN401 - as wrong as can be
    with pytest.raises(ConfigError) as caught:
        build(*argv, **options)
    return [problem.field for problem in caught.value.problems]


def environment(command: Command) -> dict[bytes, bytes]:
    return dict(variable.split(b"=", 1) for variable in command.request.env)


def test_the_defaults() -> None:
    command = build("true")
    assert command.argv == ("true",)
    assert command.request.argv == (b"true",)
    assert environment(command) == {name.encode(): value.encode() for name, value in BASE_ENVIRONMENT.items()}
    assert (command.request.cwd, command.request.user, command.request.stdin) == (b"/work", NOBODY, False)
    assert (command.input, command.timeout, command.max_output) == (None, None, DEFAULT_MAX_OUTPUT_BYTES)
    assert (command.on_stdout, command.on_stderr) == (None, None)


def test_nothing_comes_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "hush")
    assert set(environment(build("true"))) == {b"PATH", b"HOME", b"LANG"}


def test_the_call_goes_over_the_configuration_goes_over_the_base() -> None:
    config = SandboxConfig(env={"HOME": "/c", "A": "c", "B": "c"}, user=User(uid=1, gid=1), timeout=9)
    own = build("x", config=config, env={"A": "call"}, user="5:6", timeout=1, cwd="/tmp")
    assert environment(own) == {
        b"PATH": BASE_ENVIRONMENT["PATH"].encode(),
        b"LANG": b"C.UTF-8",
        b"HOME": b"/c",
        b"A": b"call",
        b"B": b"c",
    }
    assert own.request.user == User(uid=5, gid=6)
    assert (own.timeout, own.request.cwd) == (1, b"/tmp")
    configured = build("x", config=config)
    assert configured.request.user == User(uid=1, gid=1)
    assert configured.timeout == 9


def test_none_means_as_configured() -> None:
    config = SandboxConfig(timeout=9)
    command = build("x", config=config, env=None, user=None, timeout=None, cwd=None, input=None)
    assert command == build("x", config=config)


def test_user_0_is_not_taken_for_none() -> None:
    assert build("x", user=0).request.user == User(uid=0, gid=0)


@pytest.mark.parametrize(("given_input", "taken"), [(b"", b""), ("", b""), (b"\xff", b"\xff"), ("ü", b"\xc3\xbc")])
def test_input_asks_for_a_pipe_even_when_empty(given_input: bytes | str, taken: bytes) -> None:
    command = build("cat", input=given_input)
    assert command.request.stdin
    assert command.input == taken


def test_input_as_it_comes() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    source = pieces()
    assert build("cat", input=source).input is source


def test_every_bad_argument_is_told_at_once() -> None:
    wrong = refused(
        "x",
        "\0",
        7,
        env={"A=": "x", "B": 7},
        cwd="work",
        user="alice",
        timeout=math.nan,
        max_output=-1,
        input=7,
    )
    assert wrong == ["argv[1]", "argv[2]", "env['A=']", "env['B']", "cwd", "user", "timeout", "max_output", "input"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("timeout", value) for value in (0, -1, math.inf, True, "5")),
        *(("max_output", value) for value in (-1, 1.0, True, None, "8M", 1024**3 + 1)),
        *(("input", value) for value in (7, ["x"], [b"x"], bytearray(b"x"), iter([b"x"]))),
        *(("env", value) for value in (["A=1"], "A=1", 7)),
        *(("cwd", value) for value in ("work", "/a/..", "/proc/self", 7)),
        *(("user", value) for value in ("alice", -1, 4294967295, True, 1.5)),
    ],
)
def test_one_bad_argument(option: str, value: object) -> None:
    assert refused("x", **{option: value}) == [option]


def test_no_command() -> None:
    assert refused() == ["argv"]
    assert refused("") == ["argv"]


@pytest.mark.parametrize("text", ["", "x", "ü", "\udcff\udc80"])
def test_names_that_are_no_text_go_through_unchanged(text: str) -> None:
    assert encode(text).decode(errors="surrogateescape") == text


@given(st.binary())
def test_any_bytes_can_be_written_as_text(data: bytes) -> None:
    assert encode(data.decode(errors="surrogateescape")) == data


@pytest.mark.parametrize("where", ["argv", "env", "cwd", "input"])
def test_text_that_cannot_be_encoded(where: str) -> None:
    options = {"argv": {}, "env": {"env": {"A": "\ud800"}}, "cwd": {"cwd": "/\ud800"}, "input": {"input": "\ud800"}}
    assert refused(*(["\ud800"] if where == "argv" else ["x"]), **options[where])


def test_a_command_is_bounded_as_a_whole() -> None:
    """Beyond it, the request would not fit one frame and the kernel would refuse it."""
    piece = "x" * 100_000
    assert build("x", *[piece] * 9)
    assert refused("x", *[piece] * 10) == ["argv"]
    assert refused("x", env={f"V{number}": piece for number in range(10)}) == ["argv"]


def test_a_large_environment_counts_name_and_value() -> None:
    many = {f"V{number:06}": "x" * 87 for number in range(MAX_COMMAND_BYTES // 100)}
    assert refused("x", env=many) == ["argv"]


@pytest.mark.parametrize("name", ["tineout", "Timeout", "check", "memory"])
def test_an_option_that_there_is_not_is_refused(name: str) -> None:
    """Left out in silence, it might have been a limit."""
    with pytest.raises(ConfigError) as caught:
        build_command(("x",), {name: 1}, config=SandboxConfig(), cwd="/")  # type: ignore[arg-type,misc]  # what is tested
    (problem,) = caught.value.problems
    assert (problem.field, problem.reason) == (name, "no such option")
    assert "timeout" in (problem.hint or "")
