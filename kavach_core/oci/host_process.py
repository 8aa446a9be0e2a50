"""Starting and ending a program of the host: it inherits no descriptor and no environment.

trio's own process support starts children from a worker thread and takes its time to kill them; a runtime is
started by vfork here, in about the time the kernel takes, and watched through a pidfd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Final

import trio

from kavach_core.printable import printable

_PIPE_BYTES: Final = 65_536
_KEPT_STDERR_BYTES: Final = 8192


class HostProcess:
    """One program of the host, started in its own session with an empty environment.

    Attributes:
        stdin_fd: our end of its standard input, or -1; the caller takes it over.
        stdout_fd: our end of its standard output, or -1; likewise.
    """

    def __init__(self, argv: list[str], *, pipes: bool) -> None:
        """Start ``argv``.

        Args:
            argv: program (a path) and arguments.
            pipes: connect standard input and output by pipes; else they are ``/dev/null``.

        Raises:
            OSError: when it cannot be started.
        """
        channel = subprocess.PIPE if pipes else subprocess.DEVNULL
        self._stderr_fd, self._stderr_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._stderr_fd, False)
        try:
            self._process = subprocess.Popen(
                argv,
                bufsize=0,
                stdin=channel,
                stdout=channel,
                stderr=self._stderr_end,
                cwd="/",
                env={},
                umask=0o022,
                start_new_session=True,
            )
        except OSError:
            os.close(self._stderr_fd)
            os.close(self._stderr_end)
            raise
        self._stderr = b""
        self._pidfd = os.pidfd_open(self._process.pid)
        self.stdin_fd = _detach(self._process.stdin)
        self.stdout_fd = _detach(self._process.stdout)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its status once it has been waited for; ``-N`` after signal N."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and reap it. May be called again."""
        if self._process.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self._process.wait()  # does not block: the pidfd says that it has ended
        code = self._process.returncode
        assert code is not None  # noqa: S101 - it has just been reaped
        return code

    def kill(self) -> None:
        """Send SIGKILL; nothing happens when it has ended."""
        if self._process.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def drain_stderr(self) -> None:
        """Keep the last of what it writes to standard error, until cancelled. ``stop_listening`` has to follow."""
        while True:
            await trio.lowlevel.wait_readable(self._stderr_fd)
            self._read_stderr()

    def _read_stderr(self) -> None:
        """Take what is in the pipe."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._stderr_fd, _PIPE_BYTES)
            self._stderr = (self._stderr + data)[-_KEPT_STDERR_BYTES:]

    def stop_listening(self) -> None:
        """Let what it writes to standard error from now on be lost when the pipe is full, instead of stopping it."""
        if self._stderr_end >= 0:
            os.set_blocking(self._stderr_end, False)  # the pipe's end is the same for it and for us
            os.close(self._stderr_end)
            self._stderr_end = -1

    def stderr_tail(self) -> str:
        """Return the last of what it has written to standard error, made safe to show."""
        self._read_stderr()
        return printable(self._stderr)

    def close(self) -> None:
        """Close what is left of its descriptors. The process must have been waited for."""
        for name in ("_pidfd", "_stderr_fd", "_stderr_end"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


def _detach(file: object) -> int:
    """Take over the descriptor of one of Popen's files, so that only we close it."""
    if file is None:
        return -1
    descriptor = os.dup(file.fileno())  # type: ignore[attr-defined]  # Popen types its pipes as IO[bytes] | None
    file.close()  # type: ignore[attr-defined]
    return descriptor
