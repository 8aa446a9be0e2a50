# ruff: noqa: INP001 - a command for those who work on the project, part of no package
"""Fill in the parts of the documentation that the code knows better: tables between two comments in a page.

    python docs/generate.py

A page asks for a table with ``<!-- generated: NAME -->``, and the table ends at ``<!-- /generated -->``. What stands
between is replaced; all else in a page is written by hand. A test fails while a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from kavach_core import capabilities, errors
from kavach_core.cli import arguments
from kavach_core.commands import BASE_ENVIRONMENT, CommandOptions, ExecOptions
from kavach_core.config import SandboxConfig
from kavach_core.files import FileOptions, Transferred
from kavach_core.guest_files import FileStat
from kavach_core.policy import PRESETS, Limits, SandboxPolicy
from kavach_core.types import ExecResult, Usage, User
from kavach_core.validation import problems_of

DOCS: Final = Path(__file__).resolve().parent
_MARKED: Final = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_ENTRY: Final = re.compile(r"(\w+): (.*)")
_LARGE: Final = re.compile(r"\d{7,}(?=.* bytes)")
_UNITS: Final = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2))


def fill(text: str) -> str:
    """Return a page with every generated part made anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{_PARTS[found['name']]()}\n{found[3]}", text)


def main() -> None:
    """Rewrite the pages that are out of date."""
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text()
        after = fill(before)
        if after != before:
            page.write_text(after)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _code(text: object) -> str:
    return f"`{text}`"


def _sentences(documented: object) -> str:
    """Return what a docstring says before its first section, as one line."""
    head = re.split(r"\n\n\w+:\n", inspect.getdoc(documented) or "")[0]
    return " ".join(head.split()).replace("``", "`")


def _described(documented: object) -> dict[str, str]:
    """Return what the section ``Attributes`` of a docstring says of each name."""
    _, _, section = (inspect.getdoc(documented) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        entry = _ENTRY.fullmatch(line.strip())
        if entry is not None and not line.startswith("     "):
            name, found[entry[1]] = entry[1], entry[2]
        else:
            found[name] += f" {line.strip()}"
    return {key: _capitalised(text.replace("``", "`")) for key, text in found.items()}


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _errors() -> str:
    def rows(cls: type[errors.KavachError], depth: int) -> Iterator[Sequence[str]]:
        fields = ", ".join(_code(name) for name in _described(cls))
        yield "&nbsp;" * 4 * depth + _code(cls.__name__), _code(cls.code), _sentences(cls), fields
        for child in cls.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from rows(child, depth + 1)

    return _table(("class", "code", "when", "its own fields"), rows(errors.KavachError, 0))


def _capabilities() -> str:
    return _table(
        ("capability", "a backend that has it can"),
        ([_code(name), sentence] for name, sentence in capabilities.DESCRIPTIONS.items()),
    )


def _fields(cls: type[Any]) -> str:
    said = _described(cls)

    def row(attribute: attrs.Attribute[Any]) -> Sequence[str]:
        return (
            _code(attribute.name),
            _code(cls.__annotations__[attribute.name]),
            _default(attribute),
            said[attribute.name],
            _range(attribute),
        )

    rows = [row(attribute) for attribute in attrs.fields(cls)]
    head = ("field", "type", "default", "meaning", "range")
    if not any(cells[-1] for cells in rows):
        return _table(head[:-1], (cells[:-1] for cells in rows))
    return _table(head, iter(rows))


def _default(attribute: attrs.Attribute[Any]) -> str:
    default = attribute.default
    if default is attrs.NOTHING:
        return "required"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs types Factory as a function
        return "empty"
    if isinstance(default, User):
        return _code(f"{default.uid}:{default.gid}")
    return _code(default)


def _range(attribute: attrs.Attribute[Any]) -> str:
    """Return the range of a number, as the field's own check says it when it refuses one."""
    hints = (problem.hint or "" for problem in problems_of(attribute, -1) if "range" in problem.reason)
    return _LARGE.sub(lambda number: _amount(int(number[0])), next(hints, "").strip()).removesuffix(" bytes")


def _results(cls: type[Any]) -> str:
    said = _described(cls)
    own = ((_code(a.name), _code(cls.__annotations__[a.name]), said[a.name]) for a in attrs.fields(cls))
    properties = inspect.getmembers(cls, lambda member: isinstance(member, property))
    seen = ((_code(name), _code(p.fget.__annotations__["return"]), _sentences(p)) for name, p in properties)
    return _table(("name", "type", "meaning"), iter([*own, *seen]))


def _options(*classes: type[Any]) -> str:
    rows = ((_code(name), text) for cls in classes for name, text in _described(cls).items())
    return _table(("argument", "meaning"), rows)


def _presets() -> str:
    names = [attribute.name for attribute in attrs.fields(Limits)]

    def row(policy: SandboxPolicy) -> Sequence[str]:
        return _code(policy.name), *(_amount(getattr(policy.limits, name)) for name in names)

    return _table(("preset", *names), (row(policy) for policy in PRESETS.values()))


def _amount(value: float | None) -> str:
    if value is None:
        return "no bound"
    unit, size = next(((unit, size) for unit, size in _UNITS if value >= size and value % size == 0), ("", 1))
    return f"{value / size:g} {unit}".rstrip()


def _environment() -> str:
    return _table(("variable", "value"), ([_code(name), _code(value)] for name, value in BASE_ENVIRONMENT.items()))


def _command_line() -> str:
    parser = arguments._build()  # noqa: SLF001 - the grammar itself; formatted help differs between versions of Python
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001 - no public way
    return "\n".join(_command(name, command) for name, command in commands.choices.items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    actions = parser._actions  # noqa: SLF001 - as above
    table = _table(("option", "meaning"), ((_spelling(action), action.help or "") for action in actions))
    parts = [f"## kavach {name}", _capitalised(f"{(parser.description or '').rstrip('.')}."), table.rstrip()]
    if parser.epilog:
        parts.append(_capitalised(" ".join(parser.epilog.split())))
    return "\n\n".join(parts) + "\n"


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return _code(f"{action.metavar} ...")
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return _code(f"{', '.join(action.option_strings)}{value}")


_PARTS: Final[dict[str, Callable[[], str]]] = {
    "errors": _errors,
    "capabilities": _capabilities,
    "sandbox-config": lambda: _fields(SandboxConfig),
    "limits": lambda: _fields(Limits),
    "sandbox-policy": lambda: _fields(SandboxPolicy),
    "user": lambda: _fields(User),
    "presets": _presets,
    "environment": _environment,
    "exec-options": lambda: _options(ExecOptions, CommandOptions),
    "exec-result": lambda: _results(ExecResult),
    "usage": lambda: _results(Usage),
    "file-options": lambda: _options(FileOptions),
    "file-stat": lambda: _results(FileStat),
    "transferred": lambda: _results(Transferred),
    "command-line": _command_line,
}


if __name__ == "__main__":
    main()
