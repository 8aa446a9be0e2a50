"""Our terminal, lent to a command: raw while it runs, and as it was on every way out."""

from __future__ import annotations

import os
import re
import signal
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from kavach_core.commands import ExecOptions
from kavach_core.config import SandboxConfig
from kavach_core.types import TerminalSize

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


@contextmanager
def our_terminal(*, config: SandboxConfig) -> Iterator[ExecOptions]:
    """Give the options with which a command gets a terminal like ours.

    If our standard input is a terminal, it is raw for the length of the ``with`` block: keys go to the command as they
    are, Ctrl-C among them. If it is none, the command gets a terminal of the usual size.
    """
    if not os.isatty(0):
        yield ExecOptions(tty=True)
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        options = ExecOptions(tty=_size() or True, tty_sizes=_sizes())
        name = os.environ.get("TERM", "")
        if _PLAIN_NAME.fullmatch(name) and "TERM" not in config.env:
            options["env"] = {"TERM": name}
        yield options
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _size() -> TerminalSize | None:
    """Return the size of our terminal, if it knows one."""
    columns, rows = os.get_terminal_size(0)
    return TerminalSize(rows=rows, columns=columns) if rows and columns else None


async def _sizes() -> AsyncIterator[TerminalSize]:
    """Give each new size of our terminal."""
    with trio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            if (size := _size()) is not None:
                yield size
