"""The signals that end ``kavach run``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""A fault comes again when its handler returns, and again."""
_NOT_CATCHABLE: Final = {signal.SIGKILL, signal.SIGSTOP}
_NOT_ENDING: Final = {
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGURG,
    signal.SIGWINCH,
}
ENDING: Final = frozenset(signal.valid_signals()) - _FAULTS - _NOT_CATCHABLE - _NOT_ENDING
"""Those whose default ends a process, signal(7), and that can be caught: what has been begun is to be ended well."""


@contextmanager
def signals_cancel() -> Iterator[list[int]]:
    """Cancel the block when we are asked to end; the list then holds the signal."""
    received: list[int] = []
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def handle(number: int, _: object) -> None:
            received.append(number)
            token.run_sync_soon(scope.cancel)

        # What our caller has us ignore, as nohup does, stays ignored; so Python does with SIGPIPE and SIGXFSZ.
        heeded = [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, handle) for number in heeded}
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
