"""Our end of ``kavach-watchdog``: a process that outlives us, and removes what we leave if we cannot."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence

_FAREWELL_SECONDS = 2.0


class Watchdog:
    """A watchdog that runs until ``dismiss``, or until it has done its work.

    Args:
        program: its path.
        arguments: see the program's source.

    Raises:
        OSError: when it cannot be started.

    Attributes:
        pid: its process.
    """

    def __init__(self, program: str, arguments: Sequence[str]) -> None:
        end, self._pipe = os.pipe()  # neither is inherited, so no other program can keep the pipe open
        try:
            to_stdin = [(os.POSIX_SPAWN_DUP2, end, 0)]
            self.pid = os.posix_spawn(program, [program, *arguments], {}, file_actions=to_stdin, setsid=True)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(end)
        self._handle = os.pidfd_open(self.pid)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What it keeps open here."""
        return self._pipe, self._handle

    def is_alive(self) -> bool:
        """Say whether it still watches."""
        return not _has_ended(self._handle, 0)

    def dismiss(self) -> None:
        """Tell it that nothing is left to do, and see it end; if something is left, it does that first."""
        os.close(self._pipe)
        if _has_ended(self._handle, _FAREWELL_SECONDS):
            _reap(self._handle)
        os.close(self._handle)

    def abandon(self) -> None:
        """Let go of it in a forked child, whose it is not."""
        os.close(self._pipe)
        os.close(self._handle)


def _has_ended(handle: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _reap(handle: int) -> None:
    try:
        os.waitid(os.P_PIDFD, handle, os.WEXITED)
    except ChildProcessError:
        return  # somebody waits for all children of this process, and has had it
