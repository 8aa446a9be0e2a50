"""What came of an upload or a download."""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

MAX_DEPTH: Final = 256
"""How deeply directories of a tree may be nested."""

_TOLD: Final = 100


@frozen(kw_only=True)
class Transferred:
    """What an upload or a download has copied.

    Attributes:
        files: how many files.
        directories: how many directories.
        symlinks: how many symbolic links.
        size: bytes of all files together.
        skipped: what was left out, at most 100 paths below the root of the tree: devices, FIFOs, sockets, and
            links that a
            download does not make.
        skipped_count: how many that were.
    """

    files: int
    directories: int
    symlinks: int
    size: int
    skipped: tuple[str, ...] = ()
    skipped_count: int = 0


@define
class Tally:
    """A count that goes on."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    size: int = 0
    skipped_count: int = 0
    _skipped: list[str] = field(factory=list)

    @property
    def entries(self) -> int:
        """How many names there were."""
        return self.files + self.directories + self.symlinks + self.skipped_count

    def skip(self, path: bytes) -> None:
        """Note what is left out."""
        self.skipped_count += 1
        if len(self._skipped) < _TOLD:
            self._skipped.append(path.decode(errors="surrogateescape"))

    def total(self) -> Transferred:
        """Return the result."""
        return Transferred(
            files=self.files,
            directories=self.directories,
            symlinks=self.symlinks,
            size=self.size,
            skipped=tuple(self._skipped),
            skipped_count=self.skipped_count,
        )
