"""The asking side: finds the process that has a box, and asks it. Plain blocking code."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Final

from attrs import frozen

from kavach_core.control.listening import NAME
from kavach_core.control.peers import peer_of
from kavach_core.control.wire import (
    MAX_ANSWER_BYTES,
    UNKNOWN_BOX,
    Copied,
    Refused,
    Request,
    WireViolation,
    decode_answer,
    encode_request,
)
from kavach_core.errors import SandboxError, SandboxGone
from kavach_core.oci.workspace import existing_bases
from kavach_core.reaper.sweep import find_living

_CONNECT_SECONDS: Final = 10.0
_READ_BYTES: Final = 65_536


@frozen(kw_only=True)
class Owned:
    """A live box and where its owner can be asked.

    Attributes:
        box_id: its id.
        directory: of its owner's instance.
    """

    box_id: str
    directory: str


def find_boxes(prefix: str) -> list[Owned]:
    """Return the live boxes of this user whose id begins with ``prefix``."""
    return [
        Owned(box_id=box_id, directory=path)
        for base in map(str, existing_bases())
        for path, _, boxes in find_living(base)
        for box_id in boxes
        if box_id.startswith(prefix)
    ]


def ask(owned: Owned, request: Request) -> Copied | Refused:
    """Ask the owner of a box and wait for its answer, for as long as it works. Closing the process ends the work.

    Raises:
        SandboxGone: when the owner ends before it has answered.
        SandboxError: when it cannot be asked, or may not be.
    """
    for path in _sockets(owned.directory):
        answer = _ask(path, owned.box_id, request)
        if answer is not None:
            return answer
    hint = "wait until kavach ps shows it as running"
    raise SandboxError("its owner does not answer for it", sandbox_id=owned.box_id, stage="control", hint=hint)


def _sockets(directory: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - texts
    except FileNotFoundError:
        return
    yield from (f"{directory}/{name}" for name in names if name.startswith(NAME))


def _ask(path: str, box_id: str, request: Request) -> Copied | Refused | None:
    """Ask at one socket; None when nobody listens there, or nobody who has the box."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            text = f"its owner cannot be asked: {error.strerror or error}"
            raise SandboxError(text, sandbox_id=box_id, stage="control") from error
        _check_owner(connection, box_id)
        connection.settimeout(None)
        answer = _talk(connection, box_id, request)
    return None if isinstance(answer, Refused) and answer.code == UNKNOWN_BOX else answer


def _check_owner(connection: socket.socket, box_id: str) -> None:
    """See that the owner is who it should be, and that it means the same file by a path as we do.

    Raises:
        SandboxError: otherwise.
    """
    owner = peer_of(connection)
    if owner.uid != os.geteuid():
        raise SandboxError(f"its owner is user {owner.uid}, not you", sandbox_id=box_id, stage="control")
    if not owner.sees_our_files():
        hint = "call kavach cp where its owner runs"
        text = "its owner sees other files than you, in another container for example"
        raise SandboxError(text, sandbox_id=box_id, stage="control", hint=hint)


def _talk(connection: socket.socket, box_id: str, request: Request) -> Copied | Refused:
    try:
        connection.sendall(encode_request(request))
        return decode_answer(_read_line(connection))
    except WireViolation as violation:
        text = f"its owner's answer makes no sense: {violation}"
        raise SandboxError(text, sandbox_id=box_id, stage="control") from None
    except OSError:
        raise SandboxGone("its owner has ended it meanwhile", sandbox_id=box_id, stage="control") from None


def _read_line(connection: socket.socket) -> bytes:
    """Return what the owner says.

    Raises:
        ConnectionError: when it ends before it has said it.
        WireViolation: when it says too much.
    """
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(_READ_BYTES)
        if not piece:
            raise ConnectionResetError
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise WireViolation("too long")
    return data
