"""The server of an owner: what it answers, what is bounded, and when it ends a work."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from control_box import ASKED, DONE, Files, ask_at, nothing, say, served

from kavach_core.control import attending, server
from kavach_core.control.server import MOST_AT_ONCE
from kavach_core.control.wire import (
    MAX_REQUEST_BYTES,
    UNKNOWN_BOX,
    Copied,
    Direction,
    Refused,
    Request,
    decode_answer,
    encode_request,
    refusal_of,
)
from kavach_core.errors import SandboxGone


async def test_it_answers(tmp_path: Path) -> None:
    files = Files()
    async with served(tmp_path, files) as path:
        assert await ask_at(path) == DONE
        unknown = await ask_at(path, Request(box="f" * 16, direction=Direction.UPLOAD, local="/a", remote="b"))
        assert isinstance(unknown, Refused)
        assert unknown.code == UNKNOWN_BOX
    assert files.calls == [("upload", "/etc/hosts", "x")]


@pytest.mark.parametrize("error", [OSError(28, "full"), SandboxGone("gone"), RuntimeError("?"), SystemExit(3)])
async def test_errors_are_answers(tmp_path: Path, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    files = Files(fail)
    async with served(tmp_path, files) as path:
        assert await ask_at(path) == refusal_of(error)
        files.work = nothing
        assert await ask_at(path) == DONE


@pytest.mark.parametrize(
    "data", [b"\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * (MAX_REQUEST_BYTES + 1), encode_request(ASKED) + b"more"]
)
async def test_nonsense_is_refused_and_others_are_heard(tmp_path: Path, data: bytes) -> None:
    files = Files()
    async with served(tmp_path, files) as path:
        told = await say(path, data)
        if told:  # what was not read yet takes the answer along
            answer = decode_answer(told)
            assert isinstance(answer, Refused)
            assert answer.code == "invalid_request"
        assert not files.calls
        assert await ask_at(path) == DONE


async def test_an_endless_line_is_not_kept(tmp_path: Path) -> None:
    async with served(tmp_path, Files()) as path:
        sent = 0
        async with await trio.open_unix_socket(path) as stream:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(bytes(65_536))
                    sent += 65_536
        assert sent < 100 * MAX_REQUEST_BYTES
        assert await ask_at(path) == DONE


async def test_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "REQUEST_SECONDS", 0.05)
    async with served(tmp_path, Files()) as path:
        for data in (b"", b'{"version":'):
            assert await say(path, data) == b""


async def test_the_silent_keep_others_out_for_so_long_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "REQUEST_SECONDS", 3600)
    async with served(tmp_path, Files()) as path:
        silent = [await trio.open_unix_socket(path) for _ in range(MOST_AT_ONCE)]
        answers: list[Copied | Refused] = []

        async def ask_too() -> None:
            answers.append(await ask_at(path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_too)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not answers
            await silent.pop().aclose()
        assert answers == [DONE]
        for stream in silent:
            await stream.aclose()


@pytest.mark.parametrize("more", [None, b"x"])
async def test_who_goes_away_or_goes_on_ends_the_work(tmp_path: Path, more: bytes | None) -> None:
    files = Files(trio.sleep_forever)
    async with served(tmp_path, files) as path, await trio.open_unix_socket(path) as stream:
        await stream.send_all(encode_request(ASKED))
        await files.began.wait()
        assert not files.cancelled.is_set()
        if more is None:
            await stream.aclose()
        else:
            await stream.send_all(more)
        await files.cancelled.wait()


async def test_its_end_ends_the_work(tmp_path: Path) -> None:
    files = Files(trio.sleep_forever)
    heard: list[bytes] = []
    async with trio.open_nursery() as nursery, served(tmp_path, files) as path:

        async def ask_for_long() -> None:
            heard.append(await say(path, encode_request(ASKED)))

        nursery.start_soon(ask_for_long)
        await files.began.wait()
    assert heard == [b""]
    assert files.cancelled.is_set()


async def test_out_of_descriptors_it_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSE_SECONDS", 0.01)
    failures = [OSError(24, "Too many open files")]
    wrap = trio.socket.from_stdlib_socket

    class Listener:
        def __init__(self, plain: socket.socket) -> None:
            self._listener = wrap(plain)

        async def accept(self) -> object:
            if failures:
                raise failures.pop()
            return await self._listener.accept()

    monkeypatch.setattr(trio.socket, "from_stdlib_socket", Listener)
    async with served(tmp_path, Files()) as path:
        assert await ask_at(path) == DONE
    assert not failures
