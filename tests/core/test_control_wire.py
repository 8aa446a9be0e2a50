"""What is said over the socket of an owner: it comes as it was sent, and all else is refused."""

from __future__ import annotations

import json

import pytest
from control_box import ASKED, BOX, DONE

from kavach_core.control.wire import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    Copied,
    Direction,
    Refused,
    Request,
    WireViolation,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    refusal_of,
)
from kavach_core.errors import FileTooLarge, SandboxGone


@pytest.mark.parametrize(
    "request_",
    [
        ASKED,
        Request(box=BOX, direction=Direction.DOWNLOAD, local="/\udcff\n", remote="a\udc80b", inside=True, user="0:5"),
        Request(box=BOX, direction=Direction.DOWNLOAD, local="/" + "\udcff" * 4095, remote="\udcff" * 4096),
    ],
)
def test_a_request_comes_as_it_was_sent(request_: Request) -> None:
    line = encode_request(request_)
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_REQUEST_BYTES
    assert decode_request(line) == request_


@pytest.mark.parametrize("answer", [DONE, Refused(code="os_error", message="no \udcff", errno="ENOENT")])
def test_an_answer_comes_as_it_was_sent(answer: Copied | Refused) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_the_largest_answer_is_one_that_is_heard() -> None:
    names = tuple("\udcff" * 4096 for _ in range(100))
    many = Copied(path="\udcff" * 8192, files=1, directories=0, symlinks=0, size=0, skipped_count=100, skipped=names)
    for answer in (many, Refused(code="os_error", message="\udcff" * 100_000)):
        line = encode_answer(answer)
        assert len(line) <= MAX_ANSWER_BYTES
        decode_answer(line)


GOOD = json.loads(encode_request(ASKED))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        "x",
        {**GOOD, "version": 2},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "user"},
        *({**GOOD, "box": box} for box in (None, 1, "", "../../etc", BOX + "0", BOX.upper())),
        *({**GOOD, "direction": way} for way in (None, "sideways", ["upload"], {})),
        *({**GOOD, "local": path} for path in (None, "", "relative", "/a\0b", "/" + "a" * 4096, ["/a"])),
        *({**GOOD, "remote": path} for path in (None, "", "a\0b", "a" * 4097, 5)),
        *({**GOOD, "inside": value} for value in (None, 1, "true")),
        *({**GOOD, "user": value} for value in (0, "x" * 65, [])),
    ],
)
def test_what_is_no_request_is_refused(data: object) -> None:
    with pytest.raises(WireViolation):
        decode_request(json.dumps(data).encode())


@pytest.mark.parametrize("line", [b"", b"\xff", b"[" * 60_000, b"{", b"nan", b"1" * 5000])
def test_what_is_no_json_is_refused(line: bytes) -> None:
    with pytest.raises(WireViolation):
        decode_request(line)
    with pytest.raises(WireViolation):
        decode_answer(line)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"copied": 1},
        {"copied": {}, "refused": {}},
        {"other": {}},
        {"refused": {"code": "x", "message": "m"}},
        {"refused": {"code": "x", "message": "m", "errno": "ENONSENSE"}},
        {"refused": {"code": "x", "message": ["m"], "errno": None}},
        *(
            {"copied": {**json.loads(encode_answer(DONE))["copied"], **change}}
            for change in ({"size": -1}, {"files": True}, {"files": 1.5}, {"skipped": "x"}, {"skipped": [1]}, {"x": 1})
        ),
    ],
)
def test_what_is_no_answer_is_refused(data: object) -> None:
    with pytest.raises(WireViolation):
        decode_answer(json.dumps(data).encode())


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (FileNotFoundError(2, "No such file", b"/\xff"), ("os_error", "No such file: '/\\udcff'", "ENOENT")),
        (FileTooLarge("'x' is larger than allowed", filename="x"), ("file_too_large", "'x' is larger", "EFBIG")),
        (SandboxGone("the box has ended"), ("sandbox_gone", "the box has ended", None)),
        (OSError("odd"), ("os_error", "odd", None)),
        (OSError(9999, "unknown"), ("os_error", "unknown", None)),
        (ZeroDivisionError("secret"), ("kavach_error", "the owner of the box failed: ZeroDivisionError", None)),
    ],
)
def test_errors_are_told(error: Exception, refused: tuple[str, str, str | None]) -> None:
    told = refusal_of(error)
    assert (told.code, told.errno) == (refused[0], refused[2])
    assert told.message.startswith(refused[1])
    assert decode_answer(encode_answer(told)) == told
