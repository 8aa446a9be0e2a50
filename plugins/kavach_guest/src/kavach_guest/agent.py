"""Where the programs are that this distribution brings."""

from __future__ import annotations

from pathlib import Path

from kavach_core.errors import CreateError

_PROGRAMS = Path(__file__).parent / "_bin"


def agent_program() -> Path:
    """Return the path of the static program that is process 1 of a box.

    Raises:
        CreateError: when this installation was built without it.
    """
    return _program("kavach-agent")


def seal_program() -> Path:
    """Return the path of the program that starts a runtime where given paths of the host are read-only.

    Raises:
        CreateError: when this installation was built without it.
    """
    return _program("kavach-seal")


def watchdog_program() -> Path:
    """Return the path of the program that removes what a process that was killed has left.

    Raises:
        CreateError: when this installation was built without it.
    """
    return _program("kavach-watchdog")


def _program(name: str) -> Path:
    path = _PROGRAMS / name
    if not path.is_file():
        raise CreateError(f"{name} is not built", stage="agent", hint="reinstall kavach-guest")
    return path
