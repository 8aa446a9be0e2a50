"""The file tool as a process of the host's: what it is told, what it says, and how it is built."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from kavach_guest import file_records
from kavach_guest.agent import agent_program
from kavach_guest.file_records import DONE, Entry, Failed, Record, RecordParser

from kavach_core.guest_files import FileKind, TreeEntry, TreeMark

SOURCES = Path(__file__).parents[2] / "plugins" / "kavach_guest" / "agent"
MAIN = '#include "files.h"\nint main(int argc, char **argv) { return files_main(argc, argv); }\n'
DATA, FINISHED = 2, 5
AS_IT_IS = "65536"
ABANDONED, MISUSED = 3, 2
SECONDS = 30


def build(folder: Path) -> dict[str, Path]:
    """Put the tool into a folder: as it is installed, and alone, built so that it dies of a mistake."""
    release = Path(shutil.copy(agent_program(), folder / "release"))
    main = folder / "main.c"
    main.write_text(MAIN)
    units = [str(path) for path in sorted(SOURCES.glob("files*.c"))]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    warn = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", f"-I{SOURCES}", *warn, *sanitize, str(main), *units]
    subprocess.run([*command, "-o", str(folder / "sanitized")], check=True)
    return {"release": release, "sanitized": folder / "sanitized"}


class Said:
    """What the tool said, and how it ended."""

    def __init__(self, records: list[Record], status: int) -> None:
        self.status = status
        self.last = records[-1] if records else None
        self.records = records[:-1]

    @property
    def contents(self) -> bytes:
        """All contents."""
        return b"".join(record for record in self.records if isinstance(record, bytes))

    @property
    def entries(self) -> list[Entry]:
        """All entries."""
        return [record for record in self.records if isinstance(record, Entry)]

    @property
    def ok(self) -> bool:
        """True when it said that all is done, and ended well."""
        return self.last is DONE and self.status == 0

    @property
    def reason(self) -> int:
        """Why it failed."""
        assert isinstance(self.last, Failed)
        assert self.status == 1
        return self.last.reason

    @property
    def path(self) -> str:
        """What that was about."""
        assert isinstance(self.last, Failed)
        return os.fsdecode(self.last.path)


Run = Callable[..., Said]


def run(program: Path, *words: str | Path, told: bytes | None = None, user: int | None = None) -> Said:
    """Run the tool to its end."""
    done = subprocess.run(
        [program, "--files", *words],
        input=told,
        stdin=subprocess.DEVNULL if told is None else None,
        capture_output=True,
        timeout=SECONDS,
        check=False,
        user=user,
        env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=86"},
    )
    assert done.stderr == b""
    return Said(RecordParser().feed(done.stdout), done.returncode)


def data(contents: bytes) -> bytes:
    pieces = [contents[at : at + 262_144] for at in range(0, len(contents), 262_144)]
    return b"".join(struct.pack("<II", len(piece), DATA) + piece for piece in pieces)


END = struct.pack("<II", 0, FINISHED)


def entry(name: str, kind: FileKind = FileKind.FILE, mode: int = 0o644, target: str = "") -> bytes:
    return file_records.encode_event(
        TreeEntry(kind=kind, name=os.fsencode(name), mode=mode, target=os.fsencode(target))
    )


CLOSE = file_records.encode_event(TreeMark.CLOSE)
UP = file_records.encode_event(TreeMark.UP)


def file(name: str, contents: bytes = b"x", mode: int = 0o644) -> bytes:
    return entry(name, mode=mode) + data(contents) + CLOSE


def directory(name: str, *inside: bytes, mode: int = 0o755) -> bytes:
    return entry(name, FileKind.DIRECTORY, mode) + b"".join(inside) + UP


def hidden(folder: Path) -> list[Path]:
    """Return what was left of hidden names."""
    return list(folder.rglob(".kavach-*"))


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777
