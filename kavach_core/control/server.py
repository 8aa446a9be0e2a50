"""The socket of the owner of boxes, served.

No data goes over it: owner and client are the same user on the same host, so the owner opens the files itself.
Whoever goes away while it waits for the answer ends the work.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from kavach_core.reaper.files import remove_path

if TYPE_CHECKING:
    from kavach_core.control.attending import Find

_log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 16
"""How many are served at once; others wait to be heard."""

_PAUSE_SECONDS: Final = 0.5


class Server:
    """Serves one listening socket.

    Args:
        descriptor: the socket, from ``listening.listen``; owned by this object from now on.
        path: where it is; taken away at the end.
        find: gives the box with an id, or None.
    """

    def __init__(self, descriptor: int, path: str, find: Find) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._path = path
        self._find = find
        self._places = trio.Semaphore(MOST_AT_ONCE)

    async def serve(self) -> None:
        """Serve until cancelled. Nothing that happens here reaches whoever started it: it is logged.

        Cancellation: what is being copied is ended, and its clients hear nothing more.
        """
        try:
            async with trio.open_nursery() as nursery:
                await self._accept_all(nursery)
        except Exception:  # noqa: BLE001 - in a system task it would end the caller's whole program
            _log.exception("kavach cp cannot reach the boxes of this process any more")
        finally:
            self.stop()

    def stop(self) -> None:
        """Listen no more. May be called again."""
        self._socket.close()
        if self._path:
            remove_path(self._path)

    def abandon(self) -> None:
        """Let go of the socket in a forked child, whose it is not: its name has to stay."""
        self._path = ""
        self._socket.close()

    async def _accept_all(self, nursery: trio.Nursery) -> None:
        listener = trio.socket.from_stdlib_socket(self._socket)
        while True:
            await self._places.acquire()
            nursery.start_soon(self._attend, await _accept(listener))

    async def _attend(self, connection: trio.socket.SocketType) -> None:
        try:
            from kavach_core.control.attending import attend  # noqa: PLC0415 - who is never asked need not wait

            with connection:
                await attend(connection, self._find)
        except Exception:  # noqa: BLE001 - it concerns this client alone, and most have just gone away
            _log.debug("a client of kavach cp was not answered", exc_info=True)
        finally:
            self._places.release()


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """Return the next connection."""
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            _log.warning("cannot hear a client of kavach cp: %s", error)
            await trio.sleep(_PAUSE_SECONDS)  # out of descriptors, for example
        else:
            return connection
