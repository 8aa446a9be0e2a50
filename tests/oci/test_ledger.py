"""What a process is about to make is written down first; whatever a crash does to the last line, the rest is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kavach_core.reaper import ledger
from kavach_core.reaper.ledger import Ledger

OWNER = {"pid": 1}
ONE, TWO = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path), OWNER)


def test_what_is_announced_is_there_until_it_is_struck(tmp_path: Path, book: Ledger) -> None:
    book.announce(ONE, {"runtime": "runc"})
    book.announce(TWO, {"runtime": "crun"})
    book.strike(ONE)
    book.strike(ONE)
    assert ledger.read(str(tmp_path)) == (OWNER, {TWO: {"box": TWO, "runtime": "crun"}})
    assert book.open_boxes() == [TWO]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_line_that_was_cut_off(tmp_path: Path, book: Ledger, cut: int) -> None:
    book.announce(ONE, {})
    whole = (tmp_path / "ledger").stat().st_size
    book.announce(TWO, {"runtime": "a long enough word"})
    os.truncate(tmp_path / "ledger", (tmp_path / "ledger").stat().st_size - cut)
    assert (tmp_path / "ledger").stat().st_size > whole
    assert ledger.read(str(tmp_path)) == (OWNER, {ONE: {"box": ONE}})


@pytest.mark.parametrize("junk", ["{", "[]", "1", '{"box": "../../etc"}', '{"box": 7}', "[" * 100_000, "\x00", "{}"])
def test_junk_between_the_lines(tmp_path: Path, book: Ledger, junk: str) -> None:
    with (tmp_path / "ledger").open("a") as file:
        file.write(f"{junk}\n")
    book.announce(ONE, {})
    assert ledger.read(str(tmp_path)) == (OWNER, {ONE: {"box": ONE}})


def test_it_does_not_grow_for_ever(tmp_path: Path, book: Ledger) -> None:
    book.announce(ONE, {"runtime": "runc"})
    for number in range(5000):
        book.announce(f"{number:016x}", {"runtime": "runc"})
        book.strike(f"{number:016x}")
    assert (tmp_path / "ledger").stat().st_size < 60_000
    assert ledger.read(str(tmp_path)) == (OWNER, {ONE: {"box": ONE, "runtime": "runc"}})
    assert {path.name for path in tmp_path.iterdir()} == {"ledger"}


def test_what_cannot_be_written_down_is_an_error() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        ledger._append(full.fileno(), [OWNER])


def test_no_ledger_is_an_empty_one(tmp_path: Path) -> None:
    assert ledger.read(str(tmp_path)) == ({}, {})
    (tmp_path / "ledger").symlink_to("/etc/passwd")
    assert ledger.read(str(tmp_path)) == ({}, {})
