"""Checks on the fields of the configuration classes, and the rules that they share.

A check is a function from a value to the problems it has. It is attached to a field with ``checked`` and
runs on construction (``check_all`` in ``__attrs_post_init__``) and, field by field, in the converter, so that
every bad field of an input is reported at once.
"""

from __future__ import annotations

import posixpath
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.types import TerminalSize

Check = Callable[[str, Any], Iterable[FieldProblem]]

MAX_ID = 65_535
MAX_SIGNAL = 64
MAX_ARGUMENT_BYTES = 131_071  # the kernel's MAX_ARG_STRLEN (32 pages), less the NUL
MAX_COMMAND_BYTES = 1_000_000  # argv and env together; fits one START frame of the guest protocol

_KEY = "kavach.check"


def checked(check: Check, /, **kwargs: Any) -> Any:  # noqa: ANN401 - attrs.field itself is typed so
    """Declare an attrs field whose value must pass ``check``; further arguments go to ``attrs.field``."""
    return attrs.field(metadata={_KEY: check}, **kwargs)


def problems_of(attribute: attrs.Attribute[Any], value: object) -> list[FieldProblem]:
    """Return what the check of ``attribute`` has against ``value``."""
    check: Check | None = attribute.metadata.get(_KEY)
    return list(check(attribute.name, value)) if check else []


def check_all(instance: attrs.AttrsInstance, *more: FieldProblem) -> None:
    """Run the checks of all fields of ``instance``.

    Args:
        instance: what was made.
        more: problems that no field has by itself.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [
        problem
        for attribute in attrs.fields(type(instance))
        for problem in problems_of(attribute, getattr(instance, attribute.name))
    ]
    problems += more
    if problems:
        raise ConfigError(problems)


def optional(check: Check) -> Check:
    """Make ``check`` accept None."""

    def check_optional(name: str, value: object) -> Iterable[FieldProblem]:
        return () if value is None else check(name, value)

    return check_optional


def number(*, minimum: float, maximum: float, unit: str, integer: bool = False) -> Check:
    """Check that a value is a finite number from ``minimum`` to ``maximum``."""
    kind = "a whole number" if integer else "a number"

    def check_number(name: str, value: object) -> Iterator[FieldProblem]:
        wanted = int if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            yield FieldProblem(name, f"{show(value)} is not {kind}")
        elif not minimum <= value <= maximum:  # also false for NaN
            yield FieldProblem(name, f"{show(value)} is out of range", f"{minimum} to {maximum} {unit}")

    return check_number


def check_text(name: str, value: object) -> Iterator[FieldProblem]:
    """Check that a value is text that can be handed to the kernel: a string without NUL."""
    if not isinstance(value, str):
        yield FieldProblem(name, f"{type(value).__name__} is not a string")
    elif "\0" in value:
        yield FieldProblem(name, "contains a NUL byte", "the kernel would cut it there")
    elif not is_encodable(value):
        yield FieldProblem(
            name, "contains what is no character", "bytes that are no UTF-8 are written as os.fsdecode does"
        )


def is_encodable(text: str) -> bool:
    """Say whether text can be turned into bytes as the file system does it."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 200


def show(value: object) -> str:
    """Return a value as an error message shows it: bounded in length and depth, for it may be an attack."""
    return _shortener.repr(value)


def check_absolute_path(name: str, value: object) -> Iterator[FieldProblem]:
    """Check that a value is an absolute path in normal form, and not one into ``/proc``."""
    found = list(check_text(name, value))
    if found or not isinstance(value, str):
        yield from found
    elif not value.startswith("/"):
        yield FieldProblem(name, f"{show(value)} is not absolute", "start it with /")
    elif posixpath.normpath(value) != value or value.startswith("//"):
        yield FieldProblem(name, f"{show(value)} is not in normal form", f"write {show(posixpath.normpath(value))}")
    elif value == "/proc" or value.startswith("/proc/"):
        # A descriptor link below /proc is how CVE-2024-21626 left its container.
        yield FieldProblem(name, f"{show(value)} is inside /proc", "choose a directory of the file system")


def check_environment(name: str, value: object) -> Iterator[FieldProblem]:
    """Check a mapping of environment variables: names without ``=``, nothing with NUL."""
    if not isinstance(value, Mapping):
        yield FieldProblem(name, f"{type(value).__name__} is not a mapping", "NAME to value")
        return
    for key, text in value.items():
        yield from _check_variable(f"{name}[{show(key)}]", key, text)


def _check_variable(where: str, key: object, value: object) -> Iterator[FieldProblem]:
    found = [*check_text(where, key), *check_text(where, value)]
    if not found and not key:
        yield FieldProblem(where, "the name is empty")
    elif not found and "=" in str(key):
        yield FieldProblem(where, "the name contains '='", "write the value as the value")
    yield from found


_check_characters = number(minimum=1, maximum=65_535, unit="characters", integer=True)


def check_terminal_size(size: TerminalSize) -> Iterator[FieldProblem]:
    """Check that a terminal can have a size."""
    yield from _check_characters("tty.rows", size.rows)
    yield from _check_characters("tty.columns", size.columns)


def check_signal(name: str, value: object) -> Iterator[FieldProblem]:
    """Check that something is a signal that can be sent."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIGNAL:
        yield FieldProblem(name, f"{show(value)} is no signal", f"1 to {MAX_SIGNAL}; poll() says whether it still runs")


def check_argv(name: str, value: object) -> Iterator[FieldProblem]:
    """Check a command: at least a program, every part text without NUL and within the kernel's bound."""
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
        yield FieldProblem(name, "is not a list of arguments", "for a shell command line use shell(...)")
        return
    if not value or value[0] == "":
        yield FieldProblem(name, "names no program")
    for position, argument in enumerate(value):
        where = f"{name}[{position}]"
        yield from check_text(where, argument)
        if isinstance(argument, str) and len(argument) * 4 > MAX_ARGUMENT_BYTES:
            yield from _check_argument_size(where, argument)


def _check_argument_size(where: str, argument: str) -> Iterator[FieldProblem]:
    size = len(argument.encode(errors="surrogateescape"))
    if size > MAX_ARGUMENT_BYTES:
        hint = "pass it on standard input or in a file"
        yield FieldProblem(where, f"is {size} bytes long, the kernel takes {MAX_ARGUMENT_BYTES}", hint)
