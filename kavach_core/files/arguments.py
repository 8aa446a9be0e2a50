"""From what the caller writes to what a request holds; all problems at once, before anything is started."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import Any, Final, TypedDict

from kavach_core.config import check_user, to_user
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.types import User
from kavach_core.validation import check_text, number, optional, show

StrPath = str | os.PathLike[str]

DEFAULT_READ_BYTES: Final = 64 * 1024 * 1024
"""What ``read`` gives at most, unless told otherwise."""

DEFAULT_TREE_BYTES: Final = 1024 * 1024 * 1024
"""What ``download`` takes at most, unless told otherwise."""

DEFAULT_ENTRIES: Final = 100_000
"""How many names a directory that is listed, or a tree that is downloaded, may have, unless told otherwise."""

_CHECKS: Final = {
    "offset": number(minimum=0, maximum=2**63 - 1, unit="bytes", integer=True),
    "length": optional(number(minimum=0, maximum=2**63 - 1, unit="bytes", integer=True)),
    "max_bytes": number(minimum=0, maximum=2**63 - 1, unit="bytes", integer=True),
    "max_entries": number(minimum=1, maximum=10_000_000, unit="names", integer=True),
    "mode": optional(number(minimum=0, maximum=0o777, unit="(permission bits)", integer=True)),
    "timeout": optional(number(minimum=0.001, maximum=31_536_000, unit="seconds")),
}


class FileOptions(TypedDict, total=False):
    """What every call on files takes.

    Attributes:
        user: who does it in the box, as in ``exec``; None for the sandbox's.
        timeout: seconds of wall clock, or None for no deadline.
    """

    user: User | str | int | None
    timeout: float | None


class Arguments:
    """Checks the arguments of one call.

    Args:
        cwd: what relative paths of the box are relative to.
        user: who does it unless the call says otherwise.
        options: what the call says.
        numbers: further arguments, by the names that they have checks for.

    Attributes:
        user: who does it.
        timeout: seconds, or None.
    """

    def __init__(self, *, cwd: str, user: User, options: FileOptions, **numbers: object) -> None:
        self._cwd = cwd
        self._problems: list[FieldProblem] = []
        self.timeout = options.get("timeout")
        given = options.get("user")
        chosen: Any = user if given is None else to_user(given)
        self._problems += check_user("user", chosen)
        self.user: User = chosen
        for name, value in {"timeout": self.timeout, **numbers}.items():
            self._problems += _CHECKS[name](name, value)

    def path(self, name: str, value: object) -> bytes:
        """Return a path of the box as its kernel takes it: absolute, and otherwise as it was written."""
        text = self._text(name, value)
        return posixpath.join(self._cwd, text).encode(errors="surrogateescape")

    def local(self, name: str, value: object) -> str:
        """Return a path of the host."""
        return self._text(name, value)

    def _text(self, name: str, value: object) -> str:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        found = list(_check_path(name, text))
        self._problems += found
        return "" if found else str(text)

    def refuse(self, problem: FieldProblem) -> None:
        """Note a problem."""
        self._problems.append(problem)

    def check(self) -> None:
        """Go on only if nothing is wrong.

        Raises:
            ConfigError: with every problem.
        """
        if self._problems:
            raise ConfigError(self._problems)


def _check_path(name: str, value: object) -> Iterator[FieldProblem]:
    if not isinstance(value, str):
        yield FieldProblem(name, f"{show(value)} is not a path", "write a string or a pathlib path")
    elif not value:
        yield FieldProblem(name, "is empty")
    else:
        yield from check_text(name, value)
