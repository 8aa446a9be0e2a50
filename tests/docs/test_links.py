"""Every link between pages leads somewhere: to a file that is there, and to a heading that is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("plugins/*/README.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ (.*)$", re.MULTILINE)


def broken(page: Path, text: str) -> Iterator[str]:
    """Return the links of a page that lead nowhere; those to other sites are not followed."""
    for link in _LINK.findall(_BLOCK.sub("", text)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            yield link


def anchors(text: str) -> set[str]:
    """Return the names that headings get: lower case, spaces as hyphens, no punctuation."""
    headings = (heading.lower().strip() for heading in _HEADING.findall(_BLOCK.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    assert not list(broken(page, page.read_text()))


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A title, and `code`\n")
    text = "[a](other.md) [b](other.md#a-title-and-code) [c](none.md) [d](other.md#nothing) [e](https://example.org/x)"
    page.write_text(text)
    assert list(broken(page, text)) == ["none.md", "other.md#nothing"]


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text())}
    pages = {page for page in PAGES if page.is_relative_to(index.parent)} - {index}
    assert not {str(page.relative_to(ROOT)) for page in pages - linked}
