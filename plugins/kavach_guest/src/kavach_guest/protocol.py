"""The guest protocol without any input or output: frames to bytes, bytes to frames, every rule about one frame.

The rules are in ``docs/reference/guest-protocol.md``. What comes from the agent is hostile: a frame is
checked by its header before anything is kept of it, and no more than one frame beyond what was fed is ever
held.
"""

from __future__ import annotations

import struct
from collections import namedtuple

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kavach_core.types import ExecRequest, TerminalSize

MAJOR: Final = 1
MINOR: Final = 2
MINOR_OF_DRAINED: Final = 2
"""The first that has DRAINED and KILL_REST."""
MAGIC: Final = b"KVCH"

MAX_PAYLOAD: Final = 65_536
MAX_START_PAYLOAD: Final = 1_048_576
INITIAL_CREDIT: Final = 262_144
MAX_CREDIT: Final = 16_777_216

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

HELLO: Final = 0x01
START: Final = 0x02
DATA: Final = 0x03
EOF: Final = 0x04
CREDIT: Final = 0x05
SIGNAL: Final = 0x06
KILL: Final = 0x07
CLOSE: Final = 0x08
PING: Final = 0x09
RESIZE: Final = 0x0A
PROCESSES: Final = 0x0B
CPU: Final = 0x0C
KILL_REST: Final = 0x0D

GUEST_HELLO: Final = 0x81
GUEST_STARTED: Final = 0x82
GUEST_DATA: Final = 0x83
GUEST_EOF: Final = 0x84
GUEST_CREDIT: Final = 0x85
GUEST_EXITED: Final = 0x86
GUEST_FAILED: Final = 0x87
GUEST_KILLED: Final = 0x88
GUEST_PONG: Final = 0x89
GUEST_END: Final = 0x8A
GUEST_PROCESS: Final = 0x8B
GUEST_LISTED: Final = 0x8C
GUEST_CPU: Final = 0x8D
GUEST_DRAINED: Final = 0x8E
GUEST_ERROR: Final = 0x8F

FAILURE_STAGES: Final = {1: "request", 2: "resources", 3: "identity", 4: "cwd", 5: "program"}

_MAX_ERRNO = 4095

_HEADER = struct.Struct("<IBBHI")
_HELLO = struct.Struct("<4sHH")
_U32 = struct.Struct("<I")
_EXITED = struct.Struct("<IIQQQ")
_FAILED = struct.Struct("<II")
_FIELD = struct.Struct("<BI")
_SIZE = struct.Struct("<HH")
_U64 = struct.Struct("<Q")
_PROCESS = struct.Struct("<IIIIQQQB")

_MAX_NAME = 64

_ARG, _ENV, _CWD, _UID, _GID, _GROUP, _STDIN, _UMASK, _TTY, _TOOL, _LABEL = range(1, 12)


class ProtocolViolation(Exception):  # noqa: N818 - it is the agent that errs
    """The agent sent what the protocol does not allow."""


class Frame(namedtuple("Frame", ("type", "stream", "channel", "payload"))):
    """One frame from the agent, with a valid header and a payload of a valid size.

    Fields: type int; stream int; channel int; payload bytes.
    """

    __slots__ = ()


class Hello(namedtuple("Hello", ("major", "minor"))):
    """Payload of HELLO.

    Fields: major int; minor int.
    """

    __slots__ = ()


class Exited(namedtuple("Exited", ("by_signal", "code", "user_us", "system_us", "max_rss_bytes"))):
    """Payload of EXITED.

    Fields: by_signal bool; code int; user_us int; system_us int; max_rss_bytes int.
    """

    __slots__ = ()


class Process(
    namedtuple("Process", ("pid", "parent", "uid", "threads", "label", "cpu_us", "rss_bytes", "state", "name"))
):
    """Payload of PROCESS.

    Fields: pid int; parent int; uid int; threads int; label int; cpu_us int; rss_bytes int; state str; name bytes.
    """

    __slots__ = ()


class Failed(namedtuple("Failed", ("stage", "errno"))):
    """Payload of FAILED.

    Fields: stage str; errno int.
    """

    __slots__ = ()


class _Shape(
    namedtuple(
        "_Shape",
        ("minimum", "maximum", "streams", "of_channel"),
        defaults=(
            (0,),
            True,
        ),
    )
):
    """What is allowed in a frame of one type: sizes of the payload, streams, and whether it belongs to a channel.

    Fields: minimum int; maximum int; streams tuple[int, ...]; of_channel bool.
    """

    __slots__ = ()


_SHAPES: Final = {
    GUEST_HELLO: _Shape(_HELLO.size, _HELLO.size, of_channel=False),
    GUEST_STARTED: _Shape(_U32.size, _U32.size),
    GUEST_DATA: _Shape(1, MAX_PAYLOAD, streams=(STDOUT, STDERR)),
    GUEST_EOF: _Shape(0, 0, streams=(STDOUT, STDERR)),
    GUEST_CREDIT: _Shape(_U32.size, _U32.size, streams=(STDIN,)),
    GUEST_EXITED: _Shape(_EXITED.size, _EXITED.size),
    GUEST_FAILED: _Shape(_FAILED.size, _FAILED.size),
    GUEST_KILLED: _Shape(_U32.size, _U32.size),
    GUEST_PONG: _Shape(0, 64, of_channel=False),
    GUEST_END: _Shape(0, 0),
    GUEST_PROCESS: _Shape(_PROCESS.size, _PROCESS.size + _MAX_NAME, of_channel=False),
    GUEST_LISTED: _Shape(0, 0, of_channel=False),
    GUEST_CPU: _Shape(_U64.size, _U64.size),
    GUEST_DRAINED: _Shape(0, 0, streams=(STDOUT, STDERR)),
    GUEST_ERROR: _Shape(0, 256, of_channel=False),
}


class FrameParser:
    """Splits what the agent sends into frames."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """Take ``data`` and yield every frame that it completes. Nothing of it is referred to afterwards.

        Raises:
            ProtocolViolation: at the first frame that breaks a rule; the parser must not be used after that.
        """
        # Reads mostly end with a whole frame, so that payloads are copied once.
        whole = self._buffer + data if self._buffer else data
        offset = 0
        try:
            while len(whole) - offset >= _HEADER.size:
                length, type_, stream, reserved, channel = _HEADER.unpack_from(whole, offset)
                _check_header(length, type_, stream, reserved, channel)
                end = offset + _HEADER.size + length
                if end > len(whole):
                    break
                payload = bytes(whole[offset + _HEADER.size : end])
                offset = end
                yield Frame(type_, stream, channel, payload)
        finally:
            self._buffer = bytes(whole[offset:])

    @property
    def idle(self) -> bool:
        """True when the bytes fed so far end with a whole frame."""
        return not self._buffer


def _check_header(length: int, type_: int, stream: int, reserved: int, channel: int) -> None:
    shape = _SHAPES.get(type_)
    if shape is None:
        raise ProtocolViolation(f"unknown frame type 0x{type_:02x}")
    if not shape.minimum <= length <= shape.maximum:
        raise ProtocolViolation(f"a payload of {length} bytes in a frame of type 0x{type_:02x}")
    if stream not in shape.streams or reserved or bool(channel) is not shape.of_channel:
        raise ProtocolViolation(f"a malformed header in a frame of type 0x{type_:02x}")


def decode_hello(payload: bytes) -> Hello:
    """Decode HELLO.

    Raises:
        ProtocolViolation: when the magic is wrong.
    """
    magic, major, minor = _HELLO.unpack(payload)
    if magic != MAGIC:
        raise ProtocolViolation("the other side is no kavach agent")
    return Hello(major, minor)


def decode_number(payload: bytes) -> int:
    """Decode the one number of STARTED, CREDIT and KILLED."""
    value: int = _U32.unpack(payload)[0]
    return value


def decode_cpu(payload: bytes) -> int:
    """Decode CPU: microseconds."""
    value: int = _U64.unpack(payload)[0]
    return value


def decode_process(payload: bytes) -> Process:
    """Decode PROCESS.

    Raises:
        ProtocolViolation: when the state is no letter.
    """
    pid, parent, uid, threads, label, cpu_us, rss_bytes, state = _PROCESS.unpack_from(payload)
    letter = chr(state)
    if not (letter.isascii() and letter.isalpha()):
        raise ProtocolViolation(f"an impossible state of a process: {state}")
    return Process(pid, parent, uid, threads, label, cpu_us, rss_bytes, letter, payload[_PROCESS.size :])


def decode_exited(payload: bytes) -> Exited:
    """Decode EXITED.

    Raises:
        ProtocolViolation: when the kind or the code cannot be.
    """
    kind, code, user_us, system_us, max_rss = _EXITED.unpack(payload)
    if kind not in (0, 1) or code > 255 or (kind == 1 and not 1 <= code <= 64):  # noqa: PLR2004 - what wait(2) can say
        raise ProtocolViolation(f"an impossible end of a command: kind {kind}, code {code}")
    return Exited(kind == 1, code, user_us, system_us, max_rss)


def decode_failed(payload: bytes) -> Failed:
    """Decode FAILED.

    Raises:
        ProtocolViolation: when the stage or the error number cannot be.
    """
    stage, errno = _FAILED.unpack(payload)
    if stage not in FAILURE_STAGES or not 0 < errno <= _MAX_ERRNO:
        raise ProtocolViolation(f"an impossible reason of a failed start: stage {stage}, errno {errno}")
    return Failed(FAILURE_STAGES[stage], errno)


def encode(type_: int, channel: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    """Encode one frame to the agent."""
    return _HEADER.pack(len(payload), type_, stream, 0, channel) + payload


def encode_hello() -> bytes:
    """Encode our HELLO."""
    return encode(HELLO, payload=_HELLO.pack(MAGIC, MAJOR, MINOR))


def encode_credit(channel: int, stream: int, amount: int) -> bytes:
    """Encode CREDIT."""
    return encode(CREDIT, channel, _U32.pack(amount), stream)


def encode_signal(channel: int, signal: int, *, group: bool) -> bytes:
    """Encode SIGNAL."""
    return encode(SIGNAL, channel, bytes((signal, group)))


def encode_resize(channel: int, size: TerminalSize) -> bytes:
    """Encode RESIZE."""
    return encode(RESIZE, channel, _SIZE.pack(size.rows, size.columns))


def encode_start(channel: int, request: ExecRequest, *, tool: bool = False) -> bytes:
    """Encode START.

    Args:
        channel: its number.
        request: what to start.
        tool: start the agent's own program instead of the one that the request names.

    Raises:
        ValueError: when the payload is larger than the protocol allows.
    """
    user = request.user
    fields = [_field(_ARG, argument) for argument in request.argv]
    fields += [_field(_ENV, variable) for variable in request.env]
    fields += [_field(_CWD, request.cwd), _number_field(_UID, user.uid), _number_field(_GID, user.gid)]
    fields += [_number_field(_GROUP, group) for group in user.groups]
    fields.append(_field(_STDIN, bytes((request.stdin,))))
    if request.terminal is not None:
        fields.append(_field(_TTY, _SIZE.pack(request.terminal.rows, request.terminal.columns)))
    if tool:
        fields.append(_field(_TOOL, b"\1"))
    if request.exec_id:
        fields.append(_field(_LABEL, _U64.pack(request.exec_id)))
    payload = b"".join(fields)
    if len(payload) > MAX_START_PAYLOAD:
        raise ValueError(f"{len(payload)} bytes of arguments and environment, at most {MAX_START_PAYLOAD} are possible")
    return encode(START, channel, payload)


def _field(tag: int, value: bytes) -> bytes:
    return _FIELD.pack(tag, len(value)) + value


def _number_field(tag: int, value: int) -> bytes:
    return _FIELD.pack(tag, _U32.size) + _U32.pack(value)
