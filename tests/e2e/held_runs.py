"""A ``kavach run`` whose box others ask for."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kavach_core.control.client import ask, find_boxes
from kavach_core.control.wire import Copied, Direction, Refused, Request
from kavach_core.errors import SandboxGone

BOUND_SECONDS = 60


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # it was closed meanwhile
        return ""


class Held:
    """A ``kavach run`` whose box is asked for."""

    def __init__(self, process: subprocess.Popen[bytes], host: Any) -> None:  # noqa: ANN401 - a witness of conftest
        self.process = process
        self.boxes = host.boxes_of(process.pid)
        found = [owned for box_id in self.boxes for owned in find_boxes(box_id)]
        if not found:
            raise SandboxGone("it has ended before anybody could ask for it")
        (self.owned,) = found
        self.id = self.owned.box_id

    @property
    def control(self) -> str:
        """The path of its socket."""
        return f"{self.owned.directory}/control"

    def ask(self, direction: Direction, local: Path | str, remote: str) -> Copied | Refused:
        """Do what ``kavach cp`` does, without its start."""
        request = Request(box=self.id, direction=direction, local=str(local), remote=remote)
        return ask(self.owned, request)

    def upload(self, local: Path | str, remote: str) -> Copied | Refused:
        return self.ask(Direction.UPLOAD, local, remote)

    def download(self, remote: str, local: Path | str) -> Copied | Refused:
        return self.ask(Direction.DOWNLOAD, local, remote)

    def has_trio(self) -> bool:
        """Say whether it has imported trio, which brings the library's TLS along."""
        return "/_ssl." in Path(f"/proc/{self.process.pid}/maps").read_text()

    def has_open(self, directory: Path) -> bool:
        """Say whether it has a file below a directory open."""
        links = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return any(_target(link).startswith(f"{directory}/") for link in links)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(BOUND_SECONDS)


Hold = Callable[..., Held]


def described(path: Path) -> dict[str, tuple[str, object]]:
    """Return all that is to be kept of a tree."""

    def about(entry: Path) -> tuple[str, object]:
        if entry.is_symlink():
            return "link", os.readlink(entry)  # noqa: PTH115 - text
        mode = oct(entry.stat().st_mode)
        return mode, None if entry.is_dir() else hashlib.sha256(entry.read_bytes()).hexdigest()

    return {str(entry.relative_to(path)): about(entry) for entry in path.rglob("*")}
