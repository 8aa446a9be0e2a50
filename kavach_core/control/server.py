"""The owner's side: who connects says in a line what to copy, and hears in a line what came of it.

No data goes over the socket: owner and client are the same user on the same host, so the owner opens the files itself.
Whoever goes away while it waits for the answer ends the work.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from kavach_core.control.copying import copy
from kavach_core.control.listening import unlink
from kavach_core.control.peers import peer_of
from kavach_core.control.wire import (
    MAX_REQUEST_BYTES,
    REQUEST_SECONDS,
    UNKNOWN_BOX,
    Copied,
    Refused,
    Request,
    WireViolation,
    decode_request,
    encode_answer,
    refusal_of,
)

if TYPE_CHECKING:
    from kavach_core.files import SandboxFiles

_log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 16
"""How many are served at once; others wait to be heard."""

_ANSWER_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.5
_READ_BYTES: Final = 8192


class Reachable(Protocol):
    """A box that others may copy from and to: a ``Sandbox``, or what stands for one."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def files(self) -> SandboxFiles:
        """Its files; raises when it cannot work on them."""


class Server:
    """Serves one listening socket.

    Args:
        descriptor: the socket, from ``listening.listen``; owned by this object from now on.
        path: where it is; taken away at the end.
        find: gives the box with an id, or None.
    """

    def __init__(self, descriptor: int, path: str, find: Callable[[str], Reachable | None]) -> None:
        self.socket = socket.socket(fileno=descriptor)
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
        self.socket.close()
        unlink(self._path)

    async def _accept_all(self, nursery: trio.Nursery) -> None:
        listener = trio.socket.from_stdlib_socket(self.socket)
        while True:
            await self._places.acquire()
            nursery.start_soon(self._attend, await _accept(listener))

    async def _attend(self, connection: trio.socket.SocketType) -> None:
        try:
            with connection:
                answer = await self._answer(connection)
                if answer is not None:
                    await _send(connection, encode_answer(answer))
        except Exception:  # noqa: BLE001 - it concerns this client alone, and most have just gone away
            _log.debug("a client of kavach cp was not answered", exc_info=True)
        finally:
            self._places.release()

    async def _answer(self, connection: trio.socket.SocketType) -> Copied | Refused | None:
        """Do what is asked for and return what came of it; None when nobody wants to know."""
        try:
            line = await _read_line(connection)
            request = None if line is None else decode_request(line)
        except WireViolation as violation:
            return Refused(code="invalid_request", message=f"not understood: {violation}")
        if request is None:
            return None
        answer: Copied | Refused | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_until_gone, connection, nursery.cancel_scope)
            answer = await self._carry_out(request)
            nursery.cancel_scope.cancel()
        return answer

    async def _carry_out(self, request: Request) -> Copied | Refused:
        box = self._find(request.box)
        if box is None:
            return Refused(code=UNKNOWN_BOX, message="no such box here, or it is ending")
        try:
            return await copy(box.files, request)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's, too: it must not end its user's program
            return refusal_of(error)


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """Return the next connection of our own user; all others are closed unheard."""
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            _log.warning("cannot hear a client of kavach cp: %s", error)
            await trio.sleep(_PAUSE_SECONDS)  # out of descriptors, for example
            continue
        if _is_ours(connection):
            return connection
        connection.close()


def _is_ours(connection: trio.socket.SocketType) -> bool:
    """Say whether it is our own user at the other end; the socket's mode lets nobody else in but root."""
    try:
        return peer_of(connection).uid == os.geteuid()
    except OSError:
        return False


async def _read_line(connection: trio.socket.SocketType) -> bytes | None:
    """Return the first line; None when whoever should say it goes away or takes too long.

    Raises:
        WireViolation: when it is too long, or is not all that comes.
    """
    data = b""
    with trio.move_on_after(REQUEST_SECONDS):
        while piece := await connection.recv(_READ_BYTES):
            data += piece
            line, newline, rest = data.partition(b"\n")
            if rest or len(line) > MAX_REQUEST_BYTES:
                raise WireViolation("one line of bounded length is heard, and nothing after it")
            if newline:
                return line
    return None


async def _wait_until_gone(connection: trio.socket.SocketType, scope: trio.CancelScope) -> None:
    """Cancel the work when the client goes away, or says more than it may."""
    try:
        await connection.recv(1)
    except OSError as error:
        _log.debug("a client of kavach cp has gone: %s", error)
    scope.cancel()


async def _send(connection: trio.socket.SocketType, data: bytes) -> None:
    with trio.move_on_after(_ANSWER_SECONDS):
        while data:
            data = data[await connection.send(data) :]
