"""``kavach cp`` without boxes: what is refused, what is asked, and what is told."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from control_box import BOX, DONE

from kavach_core.cli import cp
from kavach_core.control import client
from kavach_core.control.client import Owned
from kavach_core.control.wire import Copied, Direction, Refused, Request
from kavach_core.errors import ConfigError


def options(*paths: str) -> Any:  # noqa: ANN401 - a namespace of argparse
    return SimpleNamespace(paths=list(paths), user=None, json=False)


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of live boxes, and a caller who may ask for them."""
    ids = [BOX, "0123ffffffffffff", "aaaa000000000000"]
    monkeypatch.setattr(cp, "require_root", lambda: None)
    monkeypatch.setattr(
        cp, "find_boxes", lambda prefix: [Owned(box_id=i, directory="/x") for i in ids if i.startswith(prefix)]
    )
    return ids


@pytest.mark.parametrize(
    ("paths", "problems"),
    [
        (["a"], ["target: is missing"]),
        (["a", "b"], ["a: neither it nor the target is in a box"]),
        (["aaaa:a", "aaaa:b"], ["aaaa:a: it and the target are in boxes"]),
        (["a", "aaaa:b", "aaaa:c"], ["aaaa:b: it and the target are in boxes"]),
        (["a", "aaaa:"], ["aaaa:: names no path"]),
        (["", "aaaa:b"], [": names no path"]),
        (["a", "0123:b"], [f"0123: may be {BOX}, 0123ffffffffffff (write more digits)"]),
        (["a", "aaa:b"], ["aaa: no such box"]),
        (["a", "AAAA:b"], ["AAAA: no such box"]),
        (["bbbb:a", "cc\ncc:b", "."], ["bbbb: no such box", "cc cc: no such box"]),
    ],
)
@pytest.mark.usefixtures("boxes")
def test_usage(paths: list[str], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cp.copy_files(options(*paths), [])
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == len(problems)
    assert all(text.startswith(start) for text, start in zip(told, problems, strict=True)), told


@pytest.mark.usefixtures("boxes")
def test_what_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Request] = []

    def note(_: Owned, request: Request) -> Copied:
        asked.append(request)
        return DONE

    monkeypatch.setattr(cp, "ask", note)
    monkeypatch.chdir(tmp_path)
    assert cp.copy_files(options("x/.", "./a:b", "aaaa:to"), []) == 0
    assert cp.copy_files(options("0123f:from", "here/"), []) == 0
    up = functools.partial(Request, box="aaaa000000000000", direction=Direction.UPLOAD, remote="to", inside=True)
    down = Request(
        box="0123ffffffffffff", direction=Direction.DOWNLOAD, local=f"{tmp_path}/here/", remote="from", inside=True
    )
    assert asked == [up(local=f"{tmp_path}/x/."), up(local=f"{tmp_path}/./a:b"), down]


@pytest.mark.usefixtures("boxes")
def test_what_cannot_be_copied_keeps_nothing_else_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        "/a": Refused(code="os_error", message="No such file: '\x1b[2J\n'", errno="ENOENT"),
        "/b": client.SandboxGone("its owner has ended it meanwhile"),
        "/c": Copied(path="x", files=1, directories=0, symlinks=0, size=5, skipped_count=2, skipped=("p", "q\n")),
    }

    def answer(_: Owned, request: Request) -> Copied | Refused:
        found = told[request.local]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(cp, "ask", answer)
    given = options("/a", "/b", "/c", "aaaa:x")
    given.json = True
    assert cp.copy_files(given, []) == 125
    out, err = capsys.readouterr()
    assert [row["source"] for row in json.loads(out)] == ["/c"]
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("kavach: ") and line.isprintable() for line in lines)
    assert lines[2] == "kavach: left out of /c: 2, for example p, q "
