"""Who is at the other end of a socket, as the kernel noted it."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, Protocol

from attrs import frozen

_CREDENTIALS: Final = struct.Struct("=iII")


class _Connection(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@frozen(kw_only=True)
class Peer:
    """Who has connected, or who listens.

    Attributes:
        pid: its process, 0 when that is not of our pid namespace.
        uid: its user.
    """

    pid: int
    uid: int

    def sees_our_files(self) -> bool:
        """Say whether a path means the same to it as to us: the same mounts, and the same root."""
        try:
            return all(_is_same(f"/proc/{self.pid}/{part}", f"/proc/self/{part}") for part in ("ns/mnt", "root"))
        except OSError:
            return False


def peer_of(connection: _Connection) -> Peer:
    """Return who is at the other end.

    Raises:
        OSError: when nobody is.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Peer(pid=pid, uid=uid)


def _is_same(path: str, other: str) -> bool:
    return os.path.samestat(os.stat(path), os.stat(other))  # noqa: PTH116 - links of the kernel's
