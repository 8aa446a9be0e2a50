"""The protocol without input or output: the bytes of every frame, and every rule about one frame."""

from __future__ import annotations

import itertools
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kavach_guest import protocol
from kavach_guest.protocol import Frame, FrameParser, ProtocolViolation

from kavach_core.config import NOBODY
from kavach_core.types import ExecRequest, TerminalSize, User

# From the tables of docs/reference/guest-protocol.md: type, name, shortest and longest payload, streams, of a channel.
GUEST_FRAMES = {
    0x81: ("HELLO", 8, 8, {0}, False),
    0x82: ("STARTED", 4, 4, {0}, True),
    0x83: ("DATA", 1, 65_536, {1, 2}, True),
    0x84: ("EOF", 0, 0, {1, 2}, True),
    0x85: ("CREDIT", 4, 4, {0}, True),
    0x86: ("EXITED", 32, 32, {0}, True),
    0x87: ("FAILED", 8, 8, {0}, True),
    0x88: ("KILLED", 4, 4, {0}, True),
    0x89: ("PONG", 0, 64, {0}, False),
    0x8A: ("END", 0, 0, {0}, True),
    0x8B: ("PROCESS", 41, 105, {0}, False),
    0x8C: ("LISTED", 0, 0, {0}, False),
    0x8D: ("CPU", 8, 8, {0}, True),
    0x8F: ("ERROR", 0, 256, {0}, False),
}
HOST_FRAMES = {
    0x01: "HELLO",
    0x02: "START",
    0x03: "DATA",
    0x04: "EOF",
    0x05: "CREDIT",
    0x06: "SIGNAL",
    0x07: "KILL",
    0x08: "CLOSE",
    0x09: "PING",
    0x0A: "RESIZE",
    0x0B: "PROCESSES",
    0x0C: "CPU",
}


def raw(kind: int, payload: bytes = b"", *, stream: int = 0, channel: int = 0, reserved: int = 0) -> bytes:
    """Build a frame by hand."""
    return struct.pack("<IBBHI", len(payload), kind, stream, reserved, channel) + payload


def parse(data: bytes) -> list[Frame]:
    return list(FrameParser().feed(data))


def start_payload(request: ExecRequest) -> list[tuple[int, bytes]]:
    """Read the fields of a START frame as the reference describes them."""
    frame = protocol.encode_start(1, request)
    length, kind, stream, reserved, channel = struct.unpack("<IBBHI", frame[:12])
    assert (kind, stream, reserved, channel) == (0x02, 0, 0, 1)
    assert length == len(frame) - 12 <= 1_048_576
    fields = []
    rest = frame[12:]
    while rest:
        tag, size = struct.unpack("<BI", rest[:5])
        assert len(rest) >= 5 + size
        fields.append((tag, rest[5 : 5 + size]))
        rest = rest[5 + size :]
    return fields


# --- golden bytes ------------------------------------------------------------------------------


def test_the_numbers_of_the_frames() -> None:
    assert {kind: getattr(protocol, name) for kind, name in HOST_FRAMES.items()} == {kind: kind for kind in HOST_FRAMES}
    names = {kind: f"GUEST_{name}" for kind, (name, *_) in GUEST_FRAMES.items()}
    assert {kind: getattr(protocol, name) for kind, name in names.items()} == {kind: kind for kind in GUEST_FRAMES}


def test_the_limits() -> None:
    assert (protocol.MAX_PAYLOAD, protocol.MAX_START_PAYLOAD) == (65_536, 1_048_576)
    assert (protocol.INITIAL_CREDIT, protocol.MAX_CREDIT) == (262_144, 16_777_216)
    assert (protocol.MAJOR, protocol.MINOR, protocol.MAGIC) == (1, 2, b"KVCH")
    assert protocol.FAILURE_STAGES == {1: "request", 2: "resources", 3: "identity", 4: "cwd", 5: "program"}


@pytest.mark.parametrize(
    ("frame", "golden"),
    [
        (protocol.encode_hello(), "08000000 01 00 0000 00000000 4b564348 0100 0200"),
        (protocol.encode(protocol.DATA, 1, b"hi"), "02000000 03 00 0000 01000000 6869"),
        (protocol.encode(protocol.DATA, 0x01020304, b"x"), "01000000 03 00 0000 04030201 78"),
        (protocol.encode(protocol.EOF, 2), "00000000 04 00 0000 02000000"),
        (protocol.encode_credit(3, protocol.STDOUT, 131_072), "04000000 05 01 0000 03000000 00000200"),
        (protocol.encode_credit(3, protocol.STDERR, 1), "04000000 05 02 0000 03000000 01000000"),
        (protocol.encode_signal(4, 15, group=False), "02000000 06 00 0000 04000000 0f 00"),
        (protocol.encode_signal(4, 64, group=True), "02000000 06 00 0000 04000000 40 01"),
        (protocol.encode(protocol.KILL, 5), "00000000 07 00 0000 05000000"),
        (protocol.encode(protocol.CLOSE, 6), "00000000 08 00 0000 06000000"),
        (protocol.encode(protocol.PING, payload=b"??"), "02000000 09 00 0000 00000000 3f3f"),
        (protocol.encode_resize(7, TerminalSize(rows=24, columns=258)), "04000000 0a 00 0000 07000000 1800 0201"),
        (protocol.encode(protocol.PROCESSES), "00000000 0b 00 0000 00000000"),
        (protocol.encode(protocol.CPU, 8), "00000000 0c 00 0000 08000000"),
    ],
)
def test_the_bytes_of_each_frame_to_the_agent(frame: bytes, golden: str) -> None:
    assert frame == bytes.fromhex(golden.replace(" ", ""))


def test_the_bytes_of_start() -> None:
    request = ExecRequest(
        argv=(b"sh", b""), env=(b"A=1",), cwd=b"/w", user=User(uid=1, gid=2, groups=(258,)), stdin=True
    )
    golden = """
        3c000000 02 00 0000 07000000
        01 02000000 7368
        01 00000000
        02 03000000 413d31
        03 02000000 2f77
        04 04000000 01000000
        05 04000000 02000000
        06 04000000 02010000
        07 01000000 01
    """
    assert protocol.encode_start(7, request) == bytes.fromhex("".join(golden.split()))


def test_the_bytes_of_what_start_may_say_besides() -> None:
    terminal = TerminalSize(rows=25, columns=80)
    request = ExecRequest(argv=(b"x",), env=(), cwd=b"/", user=User(uid=1, gid=2), terminal=terminal, exec_id=515)
    golden = "09 04000000 1900 5000   0a 01000000 01   0b 08000000 0302000000000000"
    assert protocol.encode_start(1, request, tool=True).endswith(bytes.fromhex(golden))


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=5),
    st.lists(st.binary(max_size=20), max_size=5),
    st.lists(st.integers(0, 65535), max_size=5),
    st.booleans(),
)
def test_start_says_everything_once_and_in_order(
    argv: list[bytes],
    env: list[bytes],
    groups: list[int],
    stdin: bool,  # noqa: FBT001 - hypothesis gives it by position
) -> None:
    user = User(uid=5, gid=6, groups=tuple(groups))
    request = ExecRequest(argv=tuple(argv), env=tuple(env), cwd=b"/", user=user, stdin=stdin)
    fields = start_payload(request)
    assert [value for tag, value in fields if tag == 1] == argv
    assert [value for tag, value in fields if tag == 2] == env
    assert [struct.unpack("<I", value)[0] for tag, value in fields if tag == 6] == groups
    single = {tag: value for tag, value in fields if tag not in {1, 2, 6}}
    assert single.pop(8, struct.pack("<I", 0o022)) == struct.pack("<I", 0o022)
    assert single == {3: b"/", 4: struct.pack("<I", 5), 5: struct.pack("<I", 6), 7: bytes([stdin])}


def test_start_has_a_bound() -> None:
    def request(size: int) -> ExecRequest:
        return ExecRequest(argv=(b"x" * size,), env=(), cwd=b"/", user=NOBODY)

    overhead = sum(5 + len(value) for _, value in start_payload(request(0)))
    most = 1_048_576 - overhead
    assert len(protocol.encode_start(1, request(most))) == 12 + 1_048_576
    with pytest.raises(ValueError, match="at most 1048576 are possible"):
        protocol.encode_start(1, request(most + 1))


# --- strictness --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GUEST_FRAMES)
def test_a_good_frame_of_each_type(kind: int) -> None:
    _, shortest, longest, streams, of_channel = GUEST_FRAMES[kind]
    for size in {shortest, longest}:
        for stream in streams:
            channel = 9 if of_channel else 0
            data = raw(kind, bytes(size), stream=stream, channel=channel)
            assert parse(data) == [Frame(kind, stream, channel, bytes(size))]


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(GUEST_FRAMES)))
def test_an_unknown_type_or_one_in_the_wrong_direction(kind: int) -> None:
    with pytest.raises(ProtocolViolation):
        parse(raw(kind, channel=1))


@pytest.mark.parametrize("kind", GUEST_FRAMES)
def test_each_rule_about_the_header(kind: int) -> None:
    _, shortest, longest, streams, of_channel = GUEST_FRAMES[kind]
    stream, channel, good = min(streams), 9 if of_channel else 0, bytes(shortest)
    wrong = [
        raw(kind, good, stream=stream, channel=0 if of_channel else 9),
        *(raw(kind, good, stream=stream, channel=channel, reserved=reserved) for reserved in (1, 0x100, 0xFFFF)),
        *(raw(kind, good, stream=other, channel=channel) for other in set(range(256)) - streams),
        raw(kind, bytes(longest + 1), stream=stream, channel=channel),
    ]
    if shortest:
        wrong.append(raw(kind, bytes(shortest - 1), stream=stream, channel=channel))
    for data in wrong:
        with pytest.raises(ProtocolViolation):
            parse(data)


@pytest.mark.parametrize("length", [65_537, 1_048_576, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_by_the_header_alone(length: int) -> None:
    """Before any of it is awaited or kept."""
    with pytest.raises(ProtocolViolation):
        parse(struct.pack("<IBBHI", length, 0x83, 1, 0, 1))


def test_frames_before_a_violation_are_given() -> None:
    parser = FrameParser()
    frames = parser.feed(raw(0x82, bytes(4), channel=1) + raw(0x70))
    assert next(frames).type == 0x82
    with pytest.raises(ProtocolViolation):
        next(frames)


@pytest.mark.parametrize(
    ("payload", "hello"), [(b"KVCH\1\0\0\0", (1, 0)), (b"KVCH\1\0\xff\xff", (1, 65535)), (b"KVCH\2\0\0\0", (2, 0))]
)
def test_hello(payload: bytes, hello: tuple[int, int]) -> None:
    assert protocol.decode_hello(payload) == hello


@pytest.mark.parametrize("magic", [b"\0\0\0\0", b"HCVK", b"kvch", b"KVCI"])
def test_a_wrong_magic(magic: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        protocol.decode_hello(magic + b"\1\0\0\0")


@pytest.mark.parametrize(("kind", "code"), [(0, 0), (0, 1), (0, 255), (1, 1), (1, 9), (1, 64)])
def test_an_end_that_can_be(kind: int, code: int) -> None:
    exited = protocol.decode_exited(struct.pack("<IIQQQ", kind, code, 1, 2, 2**64 - 1))
    assert exited == (kind == 1, code, 1, 2, 2**64 - 1)


@pytest.mark.parametrize(
    ("kind", "code"), [(0, 256), (0, 2**32 - 1), (1, 0), (1, 65), (1, 128), (1, 2**32 - 1), (2, 0), (2**32 - 1, 1)]
)
def test_an_end_that_cannot_be(kind: int, code: int) -> None:
    with pytest.raises(ProtocolViolation):
        protocol.decode_exited(struct.pack("<IIQQQ", kind, code, 0, 0, 0))


def test_a_process() -> None:
    payload = struct.pack("<IIIIQQQB", 1, 2, 3, 4, 5, 6, 7, ord("S")) + b"a\nb"
    assert protocol.decode_process(payload) == (1, 2, 3, 4, 5, 6, 7, "S", b"a\nb")


@pytest.mark.parametrize("state", [0, 10, 0x1B, 0x30, 0xE4, 0xFF])
def test_a_process_in_no_state(state: int) -> None:
    with pytest.raises(ProtocolViolation):
        protocol.decode_process(struct.pack("<IIIIQQQB", 1, 2, 3, 4, 5, 6, 7, state))


@pytest.mark.parametrize("stage", range(1, 6))
def test_a_failed_start(stage: int) -> None:
    assert protocol.decode_failed(struct.pack("<II", stage, 2)) == (protocol.FAILURE_STAGES[stage], 2)


@pytest.mark.parametrize("stage", [0, 6, 2**32 - 1])
def test_a_failed_start_at_no_known_stage(stage: int) -> None:
    with pytest.raises(ProtocolViolation):
        protocol.decode_failed(struct.pack("<II", stage, 2))


# --- any bytes, in any pieces ------------------------------------------------------------------

good_frames = st.sampled_from(sorted(GUEST_FRAMES)).flatmap(
    lambda kind: st.builds(
        lambda payload, stream, channel: raw(kind, payload, stream=stream, channel=channel),
        st.binary(min_size=GUEST_FRAMES[kind][1], max_size=min(GUEST_FRAMES[kind][2], GUEST_FRAMES[kind][1] + 40)),
        st.sampled_from(sorted(GUEST_FRAMES[kind][3])),
        st.integers(1, 2**32 - 1) if GUEST_FRAMES[kind][4] else st.just(0),
    )
)
odd_frames = st.builds(
    lambda kind, payload, stream, channel, reserved: raw(
        kind, payload, stream=stream, channel=channel, reserved=reserved
    ),
    st.sampled_from([*GUEST_FRAMES, 0, 1, 0x8E, 0xFF]),
    st.binary(max_size=40),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([0, 0, 0, 1]),
)
streams_of_bytes = st.lists(good_frames | odd_frames | st.binary(max_size=20), max_size=8).map(b"".join)


def outcome(pieces: list[bytes]) -> tuple[list[Frame], str | None, bool]:
    """Feed pieces; return the frames, the violation if any, and whether all was consumed."""
    parser = FrameParser()
    frames: list[Frame] = []
    try:
        for piece in pieces:
            frames.extend(parser.feed(piece))
    except ProtocolViolation as violation:
        return frames, str(violation), False
    return frames, None, parser.idle


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(good_frames, max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_good_frames_come_out_whole_however_they_are_cut(frames: list[bytes], places: list[int]) -> None:
    found, violation, idle = outcome(cut(b"".join(frames), places))
    assert violation is None
    assert idle
    again = [raw(frame.type, frame.payload, stream=frame.stream, channel=frame.channel) for frame in found]
    assert again == frames


@given(streams_of_bytes, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_bytes_give_frames_or_a_violation_and_the_cuts_do_not_matter(data: bytes, places: list[int]) -> None:
    """A violation may come in the middle of a piece; the frames before it count in either case."""
    whole, pieces = outcome([data]), outcome(cut(data, places))
    single = outcome([data[place : place + 1] for place in range(len(data))])
    assert whole[1:] == pieces[1:] == single[1:]
    if whole[1] is None:
        assert whole[0] == pieces[0] == single[0]


@given(st.binary(max_size=200))
def test_a_frame_is_refused_as_soon_as_its_header_is_there(data: bytes) -> None:
    parser = FrameParser()
    for place in range(len(data)):
        try:
            list(parser.feed(data[place : place + 1]))
        except ProtocolViolation:
            assert place >= 11
            return


def test_no_more_than_one_frame_is_held() -> None:
    """A frame that never ends: every byte of it is within the limit, so it is kept, but nothing more."""
    parser = FrameParser()
    list(parser.feed(struct.pack("<IBBHI", 65_536, 0x83, 1, 0, 1)))
    held = 12
    for size in (1, 100, 4096, 30_000, 31_338):
        assert list(parser.feed(bytes(size))) == []
        held += size
        assert sys.getsizeof(parser._buffer) <= 2 * held + 1024
    assert len(list(parser.feed(b"\0"))) == 1
    assert parser.idle
    assert sys.getsizeof(parser._buffer) <= 4096


def test_many_frames_at_once_are_not_held() -> None:
    parser = FrameParser()
    one = raw(0x83, bytes(1000), stream=1, channel=1)
    tail = one[:-1]
    assert len(list(parser.feed(one * 200 + tail))) == 200
    assert len(parser._buffer) == len(tail)
