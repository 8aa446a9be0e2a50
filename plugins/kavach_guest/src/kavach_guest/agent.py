"""Where the agent's program is."""

from __future__ import annotations

from pathlib import Path

from kavach_core.errors import CreateError

_PROGRAM = Path(__file__).parent / "_bin" / "kavach-agent"


def agent_program() -> Path:
    """Return the path of the static program that is process 1 of a box.

    Raises:
        CreateError: when this installation was built without it.
    """
    if not _PROGRAM.is_file():
        raise CreateError("the guest agent is not built", stage="agent", hint="reinstall kavach-guest")
    return _PROGRAM
