"""Our terminal, lent to a command: raw while it runs, and as it was whenever somebody else has it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import termios
import tty
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import trio

from kavach_core.cli.foreground import in_background
from kavach_core.commands import ExecOptions
from kavach_core.config import SandboxConfig
from kavach_core.types import TerminalSize

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


@contextmanager
def our_terminal(*, config: SandboxConfig, ended_by: Sequence[int]) -> Iterator[ExecOptions]:
    """Give the options with which a command gets a terminal like ours.

    If our standard input is a terminal, it is raw for the length of the ``with`` block: keys go to the command as they
    are, Ctrl-C among them. If it is none, the command gets a terminal of the usual size.

    Args:
        config: of the sandbox.
        ended_by: the signals that have asked us to end so far.
    """
    if not os.isatty(0):
        yield ExecOptions(tty=True)
        return
    with _raw(ended_by):
        options = ExecOptions(tty=_size() or True, tty_sizes=_sizes())
        name = os.environ.get("TERM", "")
        if _PLAIN_NAME.fullmatch(name) and "TERM" not in config.env:
            options["env"] = {"TERM": name}
        yield options


@contextmanager
def _raw(ended_by: Sequence[int]) -> Iterator[None]:
    """Have our terminal raw, but not while we are stopped."""
    terminal = _Terminal(ended_by)
    handlers = {signal.SIGTSTP: terminal.stop, signal.SIGCONT: terminal.go_on}
    # A shell without job control has us ignore a stop.
    heeded = {number: handle for number, handle in handlers.items() if signal.getsignal(number) == signal.SIG_DFL}
    for number, handle in heeded.items():
        signal.signal(number, handle)
    try:
        terminal.go_on()
        yield
    finally:
        terminal.give_back_for_good()
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


class _Terminal:
    """The terminal at our standard input.

    Args:
        ended_by: the signals that have asked us to end so far.
    """

    def __init__(self, ended_by: Sequence[int]) -> None:
        self._ended_by = ended_by
        self._before: list[Any] | None = None
        self._wanted = True

    def go_on(self, *_: object) -> None:
        """Make it raw, once it is ours: until then the kernel stops us, as it does with whoever sets a terminal."""
        if self._ended_by or not self._wanted:
            return  # a shell's kill lets a stopped job go on, so that it can end
        if in_background(0):
            signal.raise_signal(signal.SIGTTOU)
        if not in_background(0):
            self._take()

    def _take(self) -> None:
        with contextlib.suppress(termios.error):  # it has been hung up
            before = self._before or termios.tcgetattr(0)
            tty.setraw(0, termios.TCSANOW)
            self._before = before
            signal.raise_signal(signal.SIGWINCH)  # it may have another size now

    def stop(self, *_: object) -> None:
        """Be stopped, as the signal would do without us, with the terminal as it was."""
        self.give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self.stop)
        self.go_on()  # nobody has stopped us where no shell could let us go on

    def give_back_for_good(self) -> None:
        """Make it as it was, and leave it so whatever signal comes now."""
        self._wanted = False
        self.give_back()

    def give_back(self) -> None:
        """Make it as it was, unless another job has it: then it is as that wants it."""
        before, self._before = self._before, None
        if before is not None and not in_background(0):
            with contextlib.suppress(termios.error):  # it has been hung up
                termios.tcsetattr(0, termios.TCSANOW, before)


def _size() -> TerminalSize | None:
    """Return the size of our terminal, if it knows one."""
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return None  # it has been hung up
    return TerminalSize(rows=rows, columns=columns) if rows and columns else None


async def _sizes() -> AsyncIterator[TerminalSize]:
    """Give each new size of our terminal."""
    with trio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            if (size := _size()) is not None:
                yield size
