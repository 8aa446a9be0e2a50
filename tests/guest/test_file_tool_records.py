"""The file tool's records: every rule that ``docs/reference/file-tool.md`` gives, and hostile bytes."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kavach_guest import file_records
from kavach_guest.file_records import DONE, Entry, Failed, Record, RecordParser, RecordViolation

from kavach_core.guest_files import FileKind, TreeEntry, TreeMark

ENTRY, DATA, CLOSE, UP, FINISHED, FAILED = range(1, 7)
FIXED = struct.Struct("<HHHHIIIQq")
LARGEST_PARTIAL = 8 + 36 + 255 + 4095


def record(type_: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<II", len(payload) if length is None else length, type_) + payload


def entry(  # noqa: PLR0913 - a record has as many fields
    name: bytes = b"name",
    target: bytes = b"",
    *,
    kind: int = 1,
    zero: int = 0,
    mode: int = 0o644,
    name_length: int | None = None,
    target_length: int | None = None,
) -> bytes:
    sizes = (len(name) if name_length is None else name_length, len(target) if target_length is None else target_length)
    return record(ENTRY, FIXED.pack(kind, *sizes, zero, mode, 1, 2, 3, -4) + name + target)


def failed(reason: int, path: bytes = b"/x") -> bytes:
    return record(FAILED, struct.pack("<I", reason) + path)


def parse(data: bytes, size: int = 1_000_000) -> list[Record]:
    """Feed in pieces of ``size`` bytes, and put contents together again."""
    parser = RecordParser()
    found: list[Record] = []
    for at in range(0, len(data), size):
        for one in parser.feed(data[at : at + size]):
            if isinstance(one, bytes) and found and isinstance(found[-1], bytes):
                found[-1] += one
            else:
                found.append(one)
            assert one != b""
    return found


def test_what_an_entry_says() -> None:
    (found,) = parse(entry(b"n\xff", b"", mode=0o4755))
    assert found == Entry(FileKind.FILE, 0o4755, 1, 2, 3, -4, b"n\xff", b"")
    assert isinstance(found, Entry)
    stat = found.as_stat(found.name)
    assert (stat.name, stat.size, stat.modified_ns, stat.target) == ("n\udcff", 3, -4, None)
    (link,) = parse(entry(b"l", b"/a/b", kind=3))
    assert isinstance(link, Entry)
    assert link.as_stat(b"l").target == "/a/b"
    assert link.as_tree_entry() == TreeEntry(kind=FileKind.SYMLINK, name=b"l", mode=0o644, target=b"/a/b")


WHOLE = b"".join(
    (
        entry(b""),
        record(DATA, b"a" * 1000),
        entry(b"x" * 255, b"y" * 4095, kind=3),
        record(CLOSE),
        record(DATA, b"b"),
        record(UP),
        record(FINISHED),
    )
)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 35, 36, 37, 1000, 1_000_000])
def test_pieces_of_any_size_give_the_same(size: int) -> None:
    found = parse(WHOLE, size)
    assert found == parse(WHOLE)
    assert [type(one) for one in found if not isinstance(one, bytes)] == [Entry, Entry, TreeMark, TreeMark, type(DONE)]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(record(0), id="type 0"),
        pytest.param(record(7), id="type 7"),
        pytest.param(record(2**32 - 1), id="type at the end"),
        pytest.param(record(DATA), id="no contents"),
        pytest.param(record(DATA, b"", 262_145), id="contents beyond the bound"),
        pytest.param(record(DATA, b"", 2**32 - 1), id="contents without bound"),
        pytest.param(record(ENTRY, bytes(35)), id="short entry"),
        pytest.param(record(ENTRY, b"", 36 + 255 + 4096), id="long entry"),
        pytest.param(record(CLOSE, b"x"), id="close with more"),
        pytest.param(record(UP, b"x"), id="up with more"),
        pytest.param(record(FINISHED, b"x"), id="done with more"),
        pytest.param(record(FAILED, b"abc"), id="short failure"),
        pytest.param(record(FAILED, b"", 4 + 4096), id="long failure"),
        pytest.param(failed(0), id="no reason"),
        pytest.param(failed(4096), id="no error number"),
        pytest.param(failed(65_540), id="no reason of ours"),
        pytest.param(failed(2, b"a\0b"), id="a NUL in a path"),
        pytest.param(entry(kind=8), id="unknown kind"),
        pytest.param(entry(zero=1), id="zero is not"),
        pytest.param(entry(mode=0o10000), id="a bit too many"),
        pytest.param(entry(b"a/b"), id="slash"),
        pytest.param(entry(b"/"), id="only a slash"),
        pytest.param(entry(b"a\0b"), id="NUL"),
        pytest.param(entry(b"."), id="dot"),
        pytest.param(entry(b".."), id="dot dot"),
        pytest.param(entry(b"x" * 256), id="long name"),
        pytest.param(entry(name_length=3), id="name shorter than told"),
        pytest.param(entry(name_length=5), id="name longer than told"),
        pytest.param(entry(target_length=1), id="target longer than told"),
        pytest.param(entry(target=b"x"), id="target of a file"),
        pytest.param(entry(target=b"x\0", kind=3), id="NUL in a target"),
        pytest.param(record(FINISHED) + b"\0", id="more after done"),
        pytest.param(record(FINISHED) + record(FINISHED), id="done twice"),
        pytest.param(failed(2) + record(FINISHED), id="done after failed"),
    ],
)
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_what_breaks_a_rule_is_refused(bad: bytes, size: int) -> None:
    with pytest.raises(RecordViolation):
        parse(entry() + bad, size)


def test_more_after_the_last_word_in_a_piece_of_its_own() -> None:
    parser = RecordParser()
    assert parser.feed(record(FINISHED)) == [DONE]
    with pytest.raises(RecordViolation):
        parser.feed(b"\0")


def test_limits_are_inclusive() -> None:
    assert parse(record(DATA, bytes(262_144))) == [bytes(262_144)]
    assert len(parse(entry(b"x" * 255, b"y" * 4095, kind=3))) == 1
    assert parse(failed(4095, b"p" * 4095)) == [Failed(4095, b"p" * 4095)]
    assert parse(failed(65_539, b"")) == [Failed(65_539, b"")]


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=50))
def test_any_bytes_are_parsed_or_refused_and_little_is_kept(pieces: list[bytes]) -> None:
    parser = RecordParser()
    try:
        for piece in pieces:
            parser.feed(piece)
            assert len(parser._partial) <= LARGEST_PARTIAL
    except RecordViolation:
        pass


@given(
    st.lists(st.sampled_from([entry(), entry(b"l", b"t", kind=3), record(DATA, b"abc"), record(CLOSE), record(UP)])),
    st.data(),
)
def test_one_changed_byte_never_crashes(records: list[bytes], data: st.DataObject) -> None:
    stream = bytearray(b"".join(records) + record(FINISHED))
    stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RecordViolation):
        parse(bytes(stream), data.draw(st.integers(1, 50)))


names = st.binary(min_size=1, max_size=255).filter(file_records.is_name)
targets = st.binary(min_size=1, max_size=4095).filter(lambda target: b"\0" not in target)


@given(st.sampled_from(FileKind), names, st.integers(0, 0o777), targets)
def test_what_is_encoded_is_parsed_to_the_same(kind: FileKind, name: bytes, mode: int, target: bytes) -> None:
    event = TreeEntry(kind=kind, name=name, mode=mode, target=target if kind is FileKind.SYMLINK else b"")
    (found,) = parse(file_records.encode_event(event))
    assert file_records.as_tree_event(found) == event


def test_marks_and_contents_are_encoded_likewise() -> None:
    stream = b"".join(
        (
            file_records.encode_event(TreeMark.CLOSE),
            file_records.data_header(3) + b"abc",
            file_records.encode_event(TreeMark.UP),
            file_records.encode_done(),
        )
    )
    assert parse(stream) == [TreeMark.CLOSE, b"abc", TreeMark.UP, DONE]


def test_an_end_is_no_part_of_a_tree() -> None:
    with pytest.raises(RecordViolation):
        file_records.as_tree_event(Failed(2, b""))
