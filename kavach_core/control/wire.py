"""What is said to the owner of a box and what it answers: a line of JSON each, bounded and checked strictly."""

from __future__ import annotations

import enum
import errno
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from kavach_core.errors import KavachError
from kavach_core.reaper.ledger import is_box_id

MAX_REQUEST_BYTES: Final = 65_536
MAX_ANSWER_BYTES: Final = 262_144
REQUEST_SECONDS: Final = 5.0
"""How long whoever has connected may take to say what it wants."""

UNKNOWN_BOX: Final = "unknown_box"
"""The code of the answer of an owner that has no such box, or not any more."""

_VERSION: Final = 1
_MAX_PATH: Final = 4096
_MAX_USER: Final = 64
_MAX_TEXT: Final = 8192
_SKIPPED_TOLD: Final = 8
_COUNTS: Final = ("files", "directories", "symlinks", "size", "skipped_count")


class Direction(enum.Enum):
    """Which way is copied."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class WireViolation(Exception):  # noqa: N818 - it says what happened
    """What came is no request, or no answer."""


@frozen(kw_only=True)
class Request:
    """What the owner of a box is asked to copy.

    Attributes:
        box: id of the box.
        direction: which way.
        local: path on the host, absolute.
        remote: path in the box.
        inside: the target has to be a directory, and what is copied goes into it.
        user: who does it in the box, or None for the sandbox's user.
    """

    box: str
    direction: Direction
    local: str
    remote: str
    inside: bool = False
    user: str | None = None


@frozen(kw_only=True)
class Copied:
    """What was copied.

    Attributes:
        path: what the copy is called.
        files: how many files.
        directories: how many directories.
        symlinks: how many symbolic links.
        size: bytes of all files together.
        skipped_count: how many names were left out.
        skipped: some of them.
    """

    path: str
    files: int
    directories: int
    symlinks: int
    size: int
    skipped_count: int
    skipped: tuple[str, ...] = ()


@frozen(kw_only=True)
class Refused:
    """Why nothing was copied, or not all.

    Attributes:
        code: that of the error, see ``kavach_core.errors``; ``os_error`` for what a kernel says.
        message: for a person.
        errno: the name of a kernel's error, for example ``ENOENT``.
    """

    code: str
    message: str
    errno: str | None = None


def encode_request(request: Request) -> bytes:
    """Return a request as a line."""
    data = {
        "version": _VERSION,
        "box": request.box,
        "direction": request.direction.value,
        "local": request.local,
        "remote": request.remote,
        "inside": request.inside,
        "user": request.user,
    }
    return _line(data)


def decode_request(line: bytes) -> Request:
    """Return the request that a line is.

    Raises:
        WireViolation: when it is none.
    """
    data = _object(line)
    _require_keys(data, "version", "box", "direction", "local", "remote", "inside", "user")
    if data.pop("version") != _VERSION:
        raise WireViolation("another version of kavach speaks differently")
    _require(data, "box", is_box_id)
    _require(data, "direction", _is_direction)
    _require(data, "local", lambda value: _is_path(value) and value.startswith("/"))
    _require(data, "remote", _is_path)
    _require(data, "inside", lambda value: isinstance(value, bool))
    _require(data, "user", lambda value: value is None or _is_text(value, _MAX_USER))
    return Request(**{**data, "direction": Direction(data["direction"])})


def encode_answer(answer: Copied | Refused) -> bytes:
    """Return an answer as a line."""
    if isinstance(answer, Refused):
        refused = {"code": answer.code, "message": answer.message[:_MAX_TEXT], "errno": answer.errno}
        return _line({"refused": refused})
    counts = {name: getattr(answer, name) for name in _COUNTS}
    skipped = [path for path in answer.skipped if len(path) <= _MAX_PATH][:_SKIPPED_TOLD]
    return _line({"copied": {"path": answer.path, "skipped": skipped, **counts}})


def decode_answer(line: bytes) -> Copied | Refused:
    """Return the answer that a line is.

    Raises:
        WireViolation: when it is none.
    """
    data = _object(line)
    kind, body = next(iter(data.items()), ("", None))
    if len(data) != 1 or not isinstance(body, dict):
        raise WireViolation("no answer")
    if kind == "refused":
        return _refused(body)
    if kind == "copied":
        return _copied(body)
    raise WireViolation("no answer")


def _refused(data: dict[str, Any]) -> Refused:
    _require_keys(data, "code", "message", "errno")
    _require(data, "code", lambda value: _is_text(value, _MAX_USER))
    _require(data, "message", lambda value: _is_text(value, _MAX_TEXT))
    _require(data, "errno", lambda value: value is None or value in errno.errorcode.values())
    return Refused(**data)


def _copied(data: dict[str, Any]) -> Copied:
    _require_keys(data, "path", "skipped", *_COUNTS)
    _require(data, "path", lambda value: _is_text(value, 2 * _MAX_PATH))
    _require(data, "skipped", _is_list_of_paths)
    for name in _COUNTS:
        _require(data, name, lambda value: type(value) is int and 0 <= value < 2**63)
    return Copied(**{**data, "skipped": tuple(data["skipped"])})


def refusal_of(error: BaseException) -> Refused:
    """Return what to answer for an error."""
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    name = errno.errorcode.get(number) if number is not None else None
    if isinstance(error, KavachError):
        return Refused(code=error.code, message=str(error), errno=name)
    if isinstance(error, OSError):
        about = "" if error.filename is None else f": {_text(error.filename)!r}"
        return Refused(code="os_error", message=f"{error.strerror or error}{about}", errno=name)
    return Refused(code="kavach_error", message=f"the owner of the box failed: {type(error).__name__}")


def _text(path: object) -> str:
    return path.decode(errors="surrogateescape") if isinstance(path, bytes) else str(path)


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise WireViolation("no JSON") from None
    if not isinstance(data, dict):
        raise WireViolation("no JSON object")
    return data


def _require_keys(data: dict[str, Any], *names: str) -> None:
    if data.keys() != set(names):
        raise WireViolation(f"has to have {', '.join(names)}, and nothing else")


def _require(data: dict[str, Any], name: str, check: Callable[[Any], bool]) -> None:
    if not check(data[name]):
        raise WireViolation(f"{name} makes no sense")


def _is_direction(value: object) -> bool:
    return value in [direction.value for direction in Direction]


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most


def _is_path(value: object) -> bool:
    return _is_text(value, _MAX_PATH) and value != "" and "\0" not in str(value)


def _is_list_of_paths(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _SKIPPED_TOLD and all(_is_text(path, _MAX_PATH) for path in value)
