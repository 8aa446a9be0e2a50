"""One client: it says in a line what to copy, and hears in a line what came of it.

Imported when the first one comes: who is never asked need not wait for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from kavach_core.control.copying import copy
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

_ANSWER_SECONDS: Final = 5.0
_READ_BYTES: Final = 8192


class Reachable(Protocol):
    """A box that others may copy from and to: a ``Sandbox``, or what stands for one."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def files(self) -> SandboxFiles:
        """Its files; raises when it cannot work on them."""


Find = Callable[[str], Reachable | None]
"""Gives the box with an id, or None."""


async def attend(connection: trio.socket.SocketType, find: Find) -> None:
    """Hear what somebody wants, do it, and say what came of it. Who is not our own user is not heard.

    Cancellation: what is being copied is ended, and nothing more is said.

    Raises:
        OSError: when it goes away in between.
    """
    if peer_of(connection).uid != os.geteuid():
        return  # the socket's mode lets nobody in but root
    answer = await _answer(connection, find)
    if answer is not None:
        await _send(connection, encode_answer(answer))


async def _answer(connection: trio.socket.SocketType, find: Find) -> Copied | Refused | None:
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
        answer = await _carry_out(request, find)
        nursery.cancel_scope.cancel()
    return answer


async def _carry_out(request: Request, find: Find) -> Copied | Refused:
    box = find(request.box)
    if box is None:
        return Refused(code=UNKNOWN_BOX, message="no such box here, or it is ending")
    try:
        return await copy(box.files, request)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's, too: it must not end its user's program
        return refusal_of(error)


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
