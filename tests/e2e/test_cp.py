"""``kavach cp`` with real boxes of other processes: the command, and boxes of every kind of owner."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from held_runs import BOUND_SECONDS, Hold, described

import kavach_core as kavach_api
from kavach_core import blocking
from kavach_core.control.client import ask, find_boxes
from kavach_core.control.wire import Copied, Direction, Refused, Request
from kavach_core.errors import SandboxError

# --- the command ------------------------------------------------------------------------------------


def test_there_and_back(hold: Hold, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401 - of conftest
    box = hold("exec sleep 1000")
    up = run_kavach("cp", "--json", tree, f"{box.id[:15]}:new")
    assert (up.returncode, up.stderr) == (0, b"")
    (told,) = json.loads(up.stdout)
    assert (told["path"], told["files"], told["directories"], told["symlinks"]) == ("new", 3, 3, 1)
    down = run_kavach("cp", f"{box.id}:/work/new", tmp_path / "back")
    assert (down.returncode, down.stdout, down.stderr) == (0, b"", b"")
    assert described(tmp_path / "back") == described(tree)
    (tmp_path / "into").mkdir()
    several = run_kavach("cp", f"{box.id}:new/script", f"{box.id}:new/sub", tmp_path / "into")
    assert several.returncode == 0
    assert sorted(path.name for path in (tmp_path / "into").iterdir()) == ["script", "sub"]
    assert box.end() == 128 + signal.SIGTERM


def test_errors_are_one_line_each(hold: Hold, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401
    box = hold("exec sleep 1000")
    cases: list[tuple[tuple[str | Path, ...], list[str]]] = [
        ((f"{box.id}:none", tmp_path), ["No such file or directory: '/work/none'"]),
        ((tmp_path / "none", f"{box.id}:x"), [f"No such file or directory: '{tmp_path}/none'"]),
        ((tree / "script", f"{box.id}:/usr/x"), ["Read-only file system"]),
        ((tree / "script", f"{box.id}:none/"), ["Not a directory: 'none/'"]),
        ((tree / "link", f"{box.id}:x"), ["symbolic link"]),
        ((tree, f"{box.id}:/dev/null"), [""]),
        (("--user", "nonsense", tree, f"{box.id}:x"), ["'nonsense' is not a user"]),
        ((f"{box.id}:no", f"{box.id}:neither", tmp_path), ["'/work/no'", "'/work/neither'"]),
        ((f"{box.id}:a", f"{box.id}:b"), ["in boxes"]),
        (("a", "b"), ["neither it nor the target"]),
        (("a", "ffff:b"), ["ffff: no such box"]),
    ]
    for arguments, texts in cases:
        done = run_kavach("cp", *arguments)
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, len(lines)) == (125, len(texts)), (arguments, lines)
        assert all(line.startswith("kavach: ") and text in line for line, text in zip(lines, texts, strict=True)), lines
    assert box.process.poll() is None


def test_users(hold: Hold, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401 - of conftest
    box = hold("exec sleep 1000")
    (tree / "script").chmod(0o600)
    assert run_kavach("cp", "--user", "root", tree / "script", f"{box.id}:/tmp/secret").returncode == 0
    refused = run_kavach("cp", f"{box.id}:/tmp/secret", tmp_path)
    assert refused.returncode == 125
    assert b"Permission denied" in refused.stderr
    assert run_kavach("cp", "--user", "0:0", f"{box.id}:/tmp/secret", tmp_path).returncode == 0
    assert (tmp_path / "secret").read_bytes() == (tree / "script").read_bytes()


# --- other owners -----------------------------------------------------------------------------------


async def test_boxes_of_a_program(backend: str, tree: Path, tmp_path: Path) -> None:
    """A paused box says so, one that is closed is not there any more, and one of a pool is as good as any."""

    async def copied(box_id: str, target: Path) -> Copied | Refused:
        request = Request(box=box_id, direction=Direction.DOWNLOAD, local=str(target), remote="tree")
        return await trio.to_thread.run_sync(lambda: ask(find_boxes(box_id)[0], request))

    with trio.fail_after(BOUND_SECONDS):
        async with kavach_api.open_sandbox(backend=backend) as sandbox:
            await sandbox.files.upload(tree, "tree")
            assert isinstance(await copied(sandbox.id, tmp_path / "one"), Copied)
            await sandbox.pause()
            refused = await copied(sandbox.id, tmp_path / "two")
            assert isinstance(refused, Refused)
            assert refused.code == "invalid_transition"
            await sandbox.resume()
            assert isinstance(await copied(sandbox.id, tmp_path / "two"), Copied)
            owned = find_boxes(sandbox.id)[0]
            asked = Request(box=sandbox.id, direction=Direction.DOWNLOAD, local=str(tmp_path / "x"), remote="tree")
        with pytest.raises(SandboxError):
            await trio.to_thread.run_sync(ask, owned, asked)
        async with kavach_api.open_pool(backend=backend, size=1) as pool, pool.sandbox() as sandbox:
            await sandbox.files.upload(tree, "tree")
            assert isinstance(await copied(sandbox.id, tmp_path / "three"), Copied)
    assert described(tmp_path / "one") == described(tmp_path / "three") == described(tree)


def test_boxes_of_plain_code(backend: str, run_kavach: Any, tree: Path, tmp_path: Path) -> None:  # noqa: ANN401
    with blocking.open_sandbox(backend=backend) as sandbox:
        assert run_kavach("cp", tree, f"{sandbox.id}:tree").returncode == 0
        assert sandbox.files.exists("tree/script")
        assert run_kavach("cp", f"{sandbox.id}:tree", tmp_path / "back").returncode == 0
    assert described(tmp_path / "back") == described(tree)
