"""Every block of the documentation that can be run is run, in order, and prints what the page says it prints.

What the language of a fenced block means:

- ``python``: a program. It must exit with 0; a ``text`` block that follows at once is its output.
- ``console``: lines that begin with ``$ `` are commands; what follows each is its output. They must exit with 0.
- ``LANGUAGE file=NAME``: a file, written for the blocks after it; nothing is run.
- ``sh``, ``text`` and all else: not run.

The blocks of a page share a directory of their own. ``...`` in an output stands for any text. When a page has written a
``pyproject.toml``, the project counts as installed: its entry points are found, and its ``src`` can be imported.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("plugins/*/README.md"), *(ROOT / "docs").rglob("*.md")],
)
BLOCK_SECONDS: Final = 30
_FENCED: Final = re.compile(
    r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?", re.DOTALL | re.MULTILINE
)
_COMMAND: Final = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@frozen
class Step:
    """One thing that a reader of a page does: write a file, or run a command."""

    line: int
    file: str | None = None
    text: str = ""
    command: tuple[str, ...] = ()
    output: str | None = None


def steps(page: str) -> Iterator[Step]:
    """Read the steps of a page."""
    for block in _FENCED.finditer(page):
        language, _, file = block["info"].strip().partition(" file=")
        line = page.count("\n", 0, block.start()) + 1
        if file:
            yield Step(line, file=file, text=block["body"])
        elif language == "python":
            yield Step(line, command=(sys.executable, "-c", block["body"]), output=block["output"])
        elif language == "console":
            for found in _COMMAND.finditer(block["body"]):
                yield Step(line, command=("bash", "-c", found[1]), output=found[2])


def follow(page: str, directory: Path) -> None:
    """Do what a page says, in ``directory``."""
    for step in steps(page):
        if step.file is None:
            _run(step, directory)
            continue
        path = directory / step.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text)
        if path.name == "pyproject.toml":
            _install(path)


def _run(step: Step, directory: Path) -> None:
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "PYTHONPATH": ":".join(map(str, directory.glob("**/src"))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        step.command,
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BLOCK_SECONDS,
        check=False,
        text=True,
    )
    what = f"line {step.line}: {shlex.join(step.command)}\n{done.stdout}"
    assert done.returncode == 0, f"exit {done.returncode}, {what}"
    if step.output is not None:
        assert matches(step.output, done.stdout), f"the page says\n{step.output}but {what}"


def matches(said: str, printed: str) -> bool:
    """Compare an output with what the page says of it, in which ``...`` stands for anything."""
    parts = (re.escape(part) for part in said.strip().split("..."))
    return re.fullmatch(".*?".join(parts), printed.strip(), re.DOTALL) is not None


def _install(pyproject: Path) -> None:
    """Do what matters here of ``pip install -e``, without a network: metadata with the entry points."""
    project = tomllib.loads(pyproject.read_text())["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    metadata = pyproject.parent / "src" / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
    groups = project.get("entry-points", {}).items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _parameters() -> Iterator[object]:
    for page in PAGES:
        if any(step.command for step in steps(page.read_text())):
            yield pytest.param(page, id=str(page.relative_to(ROOT)))


@pytest.mark.needs_runc
@pytest.mark.needs_crun
@pytest.mark.needs_runsc
@pytest.mark.needs_root
@pytest.mark.parametrize("page", list(_parameters()))
def test_page(page: Path, tmp_path: Path) -> None:
    follow(page.read_text(), tmp_path)


def test_every_kind_of_page_is_among_them() -> None:
    """A change of the convention, or of where pages live, must not leave them all out."""
    run = {str(page.relative_to(ROOT)).split("/")[-2:][0] for page in PAGES if list(steps(page.read_text()))}
    assert run >= {"README.md", "tutorials", "how-to", "reference"}


RIGHT: Final = """
```sh
exit 1
```

```text file=sub/word
hello
```

```python
print(open("sub/word").read(), end="")
print(id(print))
```

```text
hello
...
```

```console
$ cat sub/word
hello
$ true
$ (exit 3); echo $?
3
```
"""


def test_what_is_right_passes(tmp_path: Path) -> None:
    assert len(list(steps(RIGHT))) == 5
    follow(RIGHT, tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("print(id(print))", "raise SystemExit(1)"),
        ("hello\n...", "hallo\n..."),
        ("$ true", "$ false"),
        ("$ true", "$ echo more"),
        ("\n3\n", "\n4\n"),
        ("\n3\n", "\n"),
    ],
)
def test_what_is_wrong_fails(right: str, wrong: str, tmp_path: Path) -> None:
    page = RIGHT.replace(right, wrong, 1)
    assert page != RIGHT
    with pytest.raises(AssertionError, match="line "):
        follow(page, tmp_path)


def test_a_project_of_a_page_is_found(tmp_path: Path) -> None:
    page = """
```toml file=pyproject.toml
[project]
name = "some-plugin"
version = "1.2"

[project.entry-points."kavach_core.backends"]
some = "some_plugin:Backend"
```

```python
from kavach_core.discovery import BACKENDS, list_plugins

print([(plugin.target, plugin.distribution) for plugin in list_plugins(BACKENDS) if plugin.name == "some"])
```

```text
[('some_plugin:Backend', 'some-plugin')]
```
"""
    follow(page, tmp_path)


def test_no_fence_is_left_open() -> None:
    """An unclosed block would hide the rest of its page from these tests."""
    odd = [str(page.relative_to(ROOT)) for page in PAGES if page.read_text().count("\n```") % 2]
    assert not odd


def test_environment_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page must work for a reader, who has not our variables."""
    monkeypatch.setenv("KAVACH_DOCS_TEST", "1")
    assert "KAVACH_DOCS_TEST" in os.environ
    follow("```console\n$ env | grep -c KAVACH_DOCS_TEST || true\n0\n```\n", tmp_path)
