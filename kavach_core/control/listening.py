"""The socket at which the owner of boxes can be asked: made so that only its user can reach it.

Little is imported, so that a box that was started early can be reached as well.
"""

from __future__ import annotations

import _socket
import os

NAME = "control"
"""In the directory of an instance. Further trio loops of one process have it with a number."""

_MODE = 0o600
_BACKLOG = 64
_MOST_LOOPS = 64
_ADDRESS_IN_USE = 98


def listen(directory: str) -> tuple[int, str]:
    """Listen in the directory of an instance.

    Returns:
        The descriptor, which no program that is started inherits, and the path of the socket.

    Raises:
        OSError: when that cannot be done.
    """
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), _MODE)  # of what is bound next: there is no moment at which others can connect
        path = _bind(listener, directory)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener.detach(), path


def _bind(listener: _socket.socket, directory: str) -> str:
    for number in range(1, _MOST_LOOPS):
        path = f"{directory}/{NAME}{number if number > 1 else ''}"
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != _ADDRESS_IN_USE:
                raise
        else:
            return path
    raise OSError(_ADDRESS_IN_USE, os.strerror(_ADDRESS_IN_USE), directory)
