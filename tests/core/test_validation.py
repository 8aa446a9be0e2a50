"""The checks that configuration and commands share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.validation import (
    MAX_ARGUMENT_BYTES,
    check_absolute_path,
    check_all,
    check_argv,
    check_environment,
    check_text,
    checked,
    number,
    optional,
    problems_of,
)

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.integers()),
)


def fields(problems: object) -> list[str]:
    assert not isinstance(problems, str)
    return [problem.field for problem in problems]  # type: ignore[attr-defined]


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 5, 10, 1.0, 9.5])
def test_a_number_in_range(value: float) -> None:
    assert not list(number(minimum=1, maximum=10, unit="seconds")("t", value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.999, 10.001, -1, 10**400])
def test_a_number_out_of_range(value: float) -> None:
    (problem,) = number(minimum=1, maximum=10, unit="seconds")("t", value)
    assert problem.field == "t"
    assert "out of range" in problem.reason
    assert problem.hint == "1 to 10 seconds"


@pytest.mark.parametrize("value", [True, False, "5", None, [5], 5j])
def test_what_is_no_number(value: object) -> None:
    (problem,) = number(minimum=1, maximum=10, unit="")("t", value)
    assert problem.reason == f"{value!r} is not a number"


def test_a_whole_number_is_an_int() -> None:
    check = number(minimum=1, maximum=10, unit="", integer=True)
    assert not list(check("n", 5))
    assert fields(check("n", 5.0)) == ["n"]


@given(anything)
def test_a_number_check_never_fails_otherwise(value: object) -> None:
    for problem in number(minimum=1, maximum=10, unit="")("t", value):
        assert isinstance(problem, FieldProblem)


def test_optional_accepts_none_and_nothing_else() -> None:
    check = optional(number(minimum=1, maximum=10, unit=""))
    assert not list(check("t", None))
    assert fields(check("t", "x")) == ["t"]


# --- text and paths ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "x", "ü", "a b", "\n", "\udcff"])
def test_text(value: str) -> None:
    assert not list(check_text("t", value))


@pytest.mark.parametrize("value", ["\0", "a\0b", b"x", 1, None])
def test_no_text(value: object) -> None:
    assert fields(check_text("t", value)) == ["t"]


@pytest.mark.parametrize("value", ["/", "/a", "/a/b", "/a b", "/.a", "/a..", "/process", "/procx"])
def test_an_absolute_path(value: str) -> None:
    assert not list(check_absolute_path("p", value))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a",
        "./a",
        "~",
        "/a/",
        "//",
        "//a",
        "/a//b",
        "/a/./b",
        "/a/../b",
        "/..",
        "/.",
        "/proc",
        "/proc/self/fd/7",
        "/proc/..",
        "/a\0",
        b"/a",
        7,
        None,
    ],
)
def test_no_absolute_path(value: object) -> None:
    assert fields(check_absolute_path("p", value)) == ["p"]


def test_a_path_out_of_normal_form_is_answered_with_the_right_one() -> None:
    (problem,) = check_absolute_path("p", "/a/../b//c/")
    assert problem.hint == "write '/b/c'"


@given(st.text(alphabet="/.ap\0roc", max_size=12))
def test_an_accepted_path_stays_what_it_is(value: str) -> None:
    """No accepted path has a component that a kernel would read otherwise."""
    if list(check_absolute_path("p", value)):
        return
    assert value.startswith("/")
    assert value == "/" or not {"", ".", ".."} & set(value[1:].split("/"))
    assert value.split("/")[1] != "proc"


# --- environment -------------------------------------------------------------------------------


def test_a_good_environment() -> None:
    assert not list(check_environment("env", {"A": "1", "EMPTY": "", "odd name": "x=y\n", "ü": "ü"}))


@pytest.mark.parametrize(
    ("env", "where"),
    [
        ({"": "x"}, "env['']"),
        ({"A=B": "x"}, "env['A=B']"),
        ({"A\0": "x"}, "env['A\\x00']"),
        ({"A": "x\0"}, "env['A']"),
        ({"A": 1}, "env['A']"),
        ({"A": None}, "env['A']"),
        ({1: "x"}, "env[1]"),
    ],
)
def test_a_bad_variable(env: Mapping[object, object], where: str) -> None:
    assert fields(check_environment("env", {"GOOD": "x", **env})) == [where]


@pytest.mark.parametrize("value", [["A=1"], "A=1", 7, None])
def test_an_environment_is_a_mapping(value: object) -> None:
    assert fields(check_environment("env", value)) == ["env"]


def test_every_bad_variable_is_told() -> None:
    assert len(list(check_environment("env", {"": "x", "A=": "x", "B": "\0", "C": 1}))) == 4


# --- argv --------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("true",), ("sh", "-c", "a | b"), ("x", ""), ["a", "b"], ("x", "\udcff")])
def test_a_good_command(argv: object) -> None:
    assert not list(check_argv("argv", argv))


@pytest.mark.parametrize("argv", ["rm -rf /", b"x", 7, None, {"x"}, iter(["x"])])
def test_a_command_line_is_no_command(argv: object) -> None:
    (problem,) = check_argv("argv", argv)
    assert problem.field == "argv"
    assert "shell(...)" in (problem.hint or "")


@pytest.mark.parametrize("argv", [(), [], ("",), ("", "x")])
def test_a_command_has_a_program(argv: object) -> None:
    (problem,) = check_argv("argv", argv)
    assert problem.reason == "names no program"


def test_every_bad_argument_is_told_with_its_position() -> None:
    assert fields(check_argv("argv", ("x", 1, "y", "\0", b"z"))) == ["argv[1]", "argv[3]", "argv[4]"]


@pytest.mark.parametrize(("letter", "size"), [("x", 1), ("ü", 2), ("€", 3), ("𝄞", 4), ("\udc80", 1)])
def test_the_size_of_an_argument_counts_in_bytes(letter: str, size: int) -> None:
    """The kernel's bound is 131,071 bytes and a NUL."""
    most = MAX_ARGUMENT_BYTES // size
    assert not list(check_argv("argv", ("x", letter * most)))
    (problem,) = check_argv("argv", ("x", letter * (most + 1)))
    assert problem.field == "argv[1]"
    assert str((most + 1) * size) in problem.reason


# --- the machinery -----------------------------------------------------------------------------


def test_checks_run_for_every_field() -> None:
    @attrs.frozen(kw_only=True)
    class Thing:
        a: str = checked(check_text)
        b: str = checked(check_text, default="x")
        c: object = None

    thing = Thing(a="\0", b=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        check_all(thing)
    assert fields(caught.value.problems) == ["a", "b"]
    check_all(Thing(a="x"))
    assert problems_of(attrs.fields(Thing).c, object()) == []


@pytest.mark.parametrize("value", ["\ud800", "a\udfff"])
def test_text_that_no_kernel_takes(value: str) -> None:
    assert fields(check_text("t", value)) == ["t"]
