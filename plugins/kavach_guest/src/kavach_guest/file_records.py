"""The file tool's records to bytes and back, without any input or output.

The rules are in ``docs/reference/file-tool.md``. The tool runs as a user of the box, so what it says is hostile: a
record is checked by its header before anything is kept of it.
"""

from __future__ import annotations

import struct
from typing import Final

from attrs import frozen

from kavach_core.guest_files import FileKind, FileStat, TreeEntry, TreeEvent, TreeMark

MAX_DATA: Final = 262_144
MAX_NAME: Final = 255
MAX_TARGET: Final = 4095
MAX_PATH: Final = 4095

TOO_LARGE: Final = 65_536
NOT_REGULAR: Final = 65_537
TOO_MANY: Final = 65_538
TOO_DEEP: Final = 65_539

_ENTRY, _DATA, _CLOSE, _UP, _DONE, _FAILED = range(1, 7)

_HEADER: Final = struct.Struct("<II")
_FIXED: Final = struct.Struct("<HHHHIIIQq")
_U32: Final = struct.Struct("<I")

_SIZES: Final = {
    _ENTRY: (_FIXED.size, _FIXED.size + MAX_NAME + MAX_TARGET),
    _DATA: (1, MAX_DATA),
    _CLOSE: (0, 0),
    _UP: (0, 0),
    _DONE: (0, 0),
    _FAILED: (_U32.size, _U32.size + MAX_PATH),
}
_MARKS: Final = {_CLOSE: TreeMark.CLOSE, _UP: TreeMark.UP}
_TYPES: Final = {mark: type_ for type_, mark in _MARKS.items()}
_KINDS: Final = (
    FileKind.OTHER,
    FileKind.FILE,
    FileKind.DIRECTORY,
    FileKind.SYMLINK,
    FileKind.FIFO,
    FileKind.SOCKET,
    FileKind.CHARACTER_DEVICE,
    FileKind.BLOCK_DEVICE,
)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}
_MAX_ERRNO: Final = 4095
_REASONS: Final = (TOO_LARGE, NOT_REGULAR, TOO_MANY, TOO_DEEP)


class RecordViolation(Exception):  # noqa: N818 - it is the tool that errs
    """The tool sent what the protocol does not allow."""


@frozen
class Entry:
    """An ENTRY record: what the tool knows of a file.

    Attributes:
        kind: what it is.
        mode: permission bits.
        uid: its owner.
        gid: its group.
        size: bytes.
        modified_ns: nanoseconds since 1970.
        name: its name, empty for what the call is about.
        target: what a symbolic link says.
    """

    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    modified_ns: int
    name: bytes
    target: bytes

    def as_stat(self, name: bytes) -> FileStat:
        """Return it as callers see it, called ``name``."""
        return FileStat(
            name=text(name),
            kind=self.kind,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            size=self.size,
            modified_ns=self.modified_ns,
            target=text(self.target) if self.kind is FileKind.SYMLINK else None,
        )

    def as_tree_entry(self) -> TreeEntry:
        """Return it as a part of a tree."""
        return TreeEntry(kind=self.kind, name=self.name, mode=self.mode, target=self.target)


@frozen
class Failed:
    """A FAILED record.

    Attributes:
        reason: an error number, or one of TOO_LARGE, NOT_REGULAR, TOO_MANY, TOO_DEEP.
        path: what it is about; empty when that is not known.
    """

    reason: int
    path: bytes


class Done:
    """A DONE record."""


DONE: Final = Done()

Record = Entry | TreeMark | Failed | Done | bytes
"""What the tool says; bytes are contents, of a DATA record or of a part of one."""


class RecordParser:
    """Splits what the tool sends into records. Nothing may follow DONE and FAILED."""

    def __init__(self) -> None:
        self._partial = b""
        self._data_left = 0
        self._ended = False

    def feed(self, data: bytes) -> list[Record]:
        """Take ``data`` and return every record that it completes, and contents as far as they have come.

        Raises:
            RecordViolation: at the first record that breaks a rule; the parser must not be used after that.
        """
        records: list[Record] = []
        if self._data_left:
            piece, data = data[: self._data_left], data[self._data_left :]
            self._data_left -= len(piece)
            records.append(piece)
        if self._partial:
            data, self._partial = self._partial + data, b""
        position = 0
        while position < len(data) and (end := self._next(data, position, records)):
            position = end
        self._partial = data[position:]
        return records

    def _next(self, data: bytes, position: int, records: list[Record]) -> int:
        """Parse the record at ``position``; return where the next one begins, or 0 when this one is not complete."""
        if self._ended:
            raise RecordViolation("more after its last word")
        begin = position + _HEADER.size
        if begin > len(data):
            return 0
        length: int
        length, type_ = _HEADER.unpack_from(data, position)
        _check_header(length, type_)
        payload = data[begin : begin + length]
        if type_ == _DATA:
            self._data_left = length - len(payload)
            if payload:
                records.append(payload)
            return begin + len(payload)
        if len(payload) < length:
            return 0
        records.append(_decode(type_, payload))
        self._ended = type_ in (_DONE, _FAILED)
        return begin + length


def _check_header(length: int, type_: int) -> None:
    sizes = _SIZES.get(type_)
    if sizes is None:
        raise RecordViolation(f"a record of unknown type {type_}")
    if not sizes[0] <= length <= sizes[1]:
        raise RecordViolation(f"a record of type {type_} with {length} bytes")


def _decode(type_: int, payload: bytes) -> Record:
    if type_ == _ENTRY:
        return _decode_entry(payload)
    if type_ == _FAILED:
        return _decode_failed(payload)
    return DONE if type_ == _DONE else _MARKS[type_]


def _decode_entry(payload: bytes) -> Entry:
    kind, name_size, target_size, zero, mode, uid, gid, size, modified = _FIXED.unpack_from(payload)
    name = payload[_FIXED.size : _FIXED.size + name_size]
    target = payload[_FIXED.size + name_size :]
    if zero or kind >= len(_KINDS) or mode > 0o7777:  # noqa: PLR2004 - all the bits there are
        raise RecordViolation("an impossible entry")
    if len(name) != name_size or len(target) != target_size or not is_name(name, may_be_empty=True):
        raise RecordViolation("an entry with an impossible name")
    if b"\0" in target or (target and _KINDS[kind] is not FileKind.SYMLINK):
        raise RecordViolation("an entry with an impossible target")
    return Entry(_KINDS[kind], mode, uid, gid, size, modified, name, target)


def is_name(name: bytes, *, may_be_empty: bool = False) -> bool:
    """Say whether ``name`` is one that a directory can have."""
    if not name:
        return may_be_empty
    return len(name) <= MAX_NAME and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def _decode_failed(payload: bytes) -> Failed:
    reason: int = _U32.unpack_from(payload)[0]
    path = payload[_U32.size :]
    if not 0 < reason <= _MAX_ERRNO and reason not in _REASONS:
        raise RecordViolation(f"an impossible reason {reason}")
    if b"\0" in path:
        raise RecordViolation("an impossible path")
    return Failed(reason, path)


def text(raw: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 come as ``os.fsdecode`` gives them, and go back unchanged."""
    return raw.decode(errors="surrogateescape")


def data_header(size: int) -> bytes:
    """Encode the header of a DATA record of ``size`` bytes."""
    return _HEADER.pack(size, _DATA)


def encode_done() -> bytes:
    """Encode DONE."""
    return _HEADER.pack(0, _DONE)


def encode_event(event: TreeEntry | TreeMark) -> bytes:
    """Encode a step of a tree that is not contents."""
    if isinstance(event, TreeMark):
        return _HEADER.pack(0, _TYPES[event])
    kind = _NUMBERS[event.kind]
    fixed = _FIXED.pack(kind, len(event.name), len(event.target), 0, event.mode, 0, 0, 0, 0)
    payload = b"".join((fixed, event.name, event.target))
    return _HEADER.pack(len(payload), _ENTRY) + payload


def as_tree_event(record: Record) -> TreeEvent:
    """Return a record as a step of a tree.

    Raises:
        RecordViolation: when it is none.
    """
    if isinstance(record, Entry):
        return record.as_tree_entry()
    if isinstance(record, (TreeMark, bytes)):
        return record
    raise RecordViolation("an end in the middle")
