"""What one process has made on this host, written down before it is made: so whoever comes after knows what to remove.

A line of JSON each: the owner first, then a line for each box before anything of it is there, and one when it is known
to be gone. A line is written at once, and an announcement is synced; one that was cut off by a crash says nothing, and
what it was to announce has not been made.
"""

from __future__ import annotations

import _thread
import json
import os

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

NAME = "ledger"
_MOST_GONE = 512
_MAX_BYTES = 16 * 1024 * 1024
_ID_DIGITS = 16


class Ledger:
    """The ledger of this process.

    Args:
        directory: of its instance.
        owner: its identity.

    Raises:
        OSError: when it cannot be written.
    """

    def __init__(self, directory: str, owner: Record) -> None:
        self._owner = {"owner": owner}
        self._boxes: dict[str, Record] = {}
        self._gone = 0
        self._directory = directory
        self._lock = _thread.allocate_lock()  # threads of one process share it
        self._file = _create(f"{directory}/{NAME}", [self._owner])

    @property
    def descriptor(self) -> int:
        """Its file."""
        return self._file

    def announce(self, box_id: str, record: Record) -> None:
        """Write down a box that is about to be made.

        Raises:
            OSError: when it cannot be written; then it must not be made.
        """
        with self._lock:
            line = {"box": box_id, **record}
            _append(self._file, [line])
            self._boxes[box_id] = line

    def strike(self, box_id: str) -> None:
        """Write down that a box is known to be gone.

        Raises:
            OSError: when it cannot be written.
        """
        with self._lock:
            if self._boxes.pop(box_id, None) is None:
                return
            _append(self._file, [{"gone": box_id}], sync=False)  # lost, it is found to be gone once more
            self._gone += 1
            if self._gone > _MOST_GONE:
                self._rewrite()

    def open_boxes(self) -> list[str]:
        """Return the ids of the boxes that are not known to be gone."""
        with self._lock:
            return list(self._boxes)

    def _rewrite(self) -> None:
        """Begin anew with what is there: a process that lives long must not fill the file system."""
        path = f"{self._directory}/{NAME}"
        fresh = _create(f"{path}.new", [self._owner, *self._boxes.values()])
        try:
            os.rename(f"{path}.new", path)
        except OSError:
            os.close(fresh)
            raise
        os.close(self._file)
        self._file = fresh
        self._gone = 0

    def relocate(self, directory: str) -> None:
        """Tell it that its directory has been renamed."""
        self._directory = directory

    def close(self) -> None:
        """Close its file. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _create(path: str, records: list[Record]) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        _append(file, records)
    except OSError:
        os.close(file)
        raise
    return file


def _append(file: int, records: list[Record], *, sync: bool = True) -> None:
    text = "".join(f"{json.dumps(record, separators=(',', ':'))}\n" for record in records).encode()
    if os.write(file, text) != len(text):
        raise OSError(28, "the ledger cannot be written")  # ENOSPC: nothing else cuts a write to a file
    if sync:
        os.fsync(file)


def read(directory: str) -> tuple[Record, dict[str, Record]]:
    """Return the owner's identity, empty when it is not known, and the boxes not known to be gone, by id.

    Whatever is wrong with a line, the others are read.
    """
    owner: Record = {}
    boxes: dict[str, Record] = {}
    for record in _lines(f"{directory}/{NAME}"):
        if isinstance(record.get("owner"), dict):
            owner = record["owner"]
        elif is_box_id(record.get("box")):
            boxes[record["box"]] = record
        else:
            boxes.pop(str(record.get("gone")), None)
    return owner, boxes


def _lines(path: str) -> list[Record]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    with open(file, "rb") as stream:
        lines = stream.read(_MAX_BYTES).split(b"\n")[:-1]  # what comes after the last newline was cut off
    return [record for record in map(_parse, lines) if isinstance(record, dict)]


def _parse(line: bytes) -> object:
    try:
        found: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found


def is_box_id(word: object) -> bool:
    """Say whether this can be the id of a box, and with it part of a path."""
    return isinstance(word, str) and len(word) == _ID_DIGITS and not set(word) - set("0123456789abcdef")
