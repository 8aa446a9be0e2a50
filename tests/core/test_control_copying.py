"""Where a copy goes: into a directory, or under the name that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from control_box import BOX, Files

from kavach_core.control.copying import copy
from kavach_core.control.wire import Direction, Request


@pytest.mark.parametrize(
    ("local", "remote", "target"),
    [
        ("/a/file", "new", "new"),
        ("/a/file", "there", "there/file"),
        ("/a/dir/", "there", "there/dir"),
        ("/a/dir//", "there/", "there/dir"),
        ("/a/.", "there", "there"),
        ("/a/..", "there", "there"),
        ("/", "there", "there"),
    ],
)
async def test_a_directory_takes_what_is_copied_into_it(local: str, remote: str, target: str, tmp_path: Path) -> None:
    files: Any = Files(directories=("there", "there/"))
    done = await copy(files, Request(box=BOX, direction=Direction.UPLOAD, local=local, remote=remote))
    assert done.path == target
    (tmp_path / "there").mkdir()
    here = str(tmp_path / remote)
    done = await copy(files, Request(box=BOX, direction=Direction.DOWNLOAD, local=here, remote=local))
    assert done.path == str(tmp_path / target)
    assert files.calls == [("upload", local, target), ("download", local, str(tmp_path / target))]


@pytest.mark.parametrize("direction", Direction)
async def test_what_has_to_be_in_a_directory_is_not_copied_without_one(direction: Direction, tmp_path: Path) -> None:
    files: Any = Files()
    with pytest.raises(NotADirectoryError):
        await copy(files, Request(box=BOX, direction=direction, local=f"{tmp_path}/no", remote="no", inside=True))
    assert not files.calls
