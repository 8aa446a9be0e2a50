"""Asking an owner: what is made of one that makes no sense, ends, or does not listen."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from control_box import ASKED, BOUND_SECONDS, BOX

from kavach_core.control.client import Owned, ask
from kavach_core.control.peers import Peer
from kavach_core.control.wire import MAX_ANSWER_BYTES, UNKNOWN_BOX, Refused, encode_answer
from kavach_core.errors import SandboxError, SandboxGone


@contextmanager
def owner(directory: Path, answer: bytes) -> Iterator[None]:
    """Be an owner that answers the first client so, and goes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "control"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(answer)
                except BrokenPipeError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(BOUND_SECONDS)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"", SandboxGone, "has ended"),
        (b'{"copied"', SandboxGone, "has ended"),
        (b"nonsense\n", SandboxError, "makes no sense"),
        (b"x" * (MAX_ANSWER_BYTES * 2), SandboxError, "makes no sense"),
        (encode_answer(Refused(code=UNKNOWN_BOX, message="?")), SandboxError, "does not answer for it"),
    ],
)
def test_an_owner_that_makes_no_sense(tmp_path: Path, answer: bytes, error: type[Exception], text: str) -> None:
    with owner(tmp_path, answer), pytest.raises(error, match=text):
        ask(Owned(box_id=BOX, directory=str(tmp_path)), ASKED)


def test_an_owner_that_sees_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "sees_our_files", lambda _: False)
    with owner(tmp_path, b""), pytest.raises(SandboxError, match="other files"):
        ask(Owned(box_id=BOX, directory=str(tmp_path)), ASKED)


def test_nobody_listens(tmp_path: Path) -> None:
    owned = Owned(box_id=BOX, directory=str(tmp_path))
    with pytest.raises(SandboxError, match="does not answer"):
        ask(owned, ASKED)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control"))
    with pytest.raises(SandboxError, match="does not answer"):
        ask(owned, ASKED)
    with pytest.raises(SandboxError, match="does not answer"):
        ask(Owned(box_id=BOX, directory=str(tmp_path / "gone")), ASKED)
