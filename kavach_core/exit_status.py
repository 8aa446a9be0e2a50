"""The exit statuses of ``kavach run`` and of results, as shells have them."""

EXIT_TIMEOUT = 124
EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
SIGNAL_EXIT_BASE = 128
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

EXIT_KILLED = 137

WANT_OF_MEMORY = "the kernel killed for want of memory"
"""What ``kavach run`` says when that is why a command failed."""

_NO_SUCH_FILE = 2


def status_of_failed_start(errno: int) -> int:
    """Return the status for a command that could not be started."""
    return EXIT_NOT_FOUND if errno == _NO_SUCH_FILE else EXIT_NOT_EXECUTABLE


def status_of_end(*, code: int, by_signal: bool) -> int:
    """Return the status for a command that ended with ``code``, or by that signal."""
    return SIGNAL_EXIT_BASE + code if by_signal else code
