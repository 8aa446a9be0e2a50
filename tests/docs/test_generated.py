"""The tables that the code knows better are as the code is now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGES: Final = sorted(page for page in DOCS.rglob("*.md") if "<!-- generated: " in page.read_text())


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_up_to_date(page: Path, generate: ModuleType) -> None:
    text = page.read_text()
    assert text == generate.fill(text), "run: python docs/generate.py"


def test_every_part_is_used_once(generate: ModuleType) -> None:
    used = [name for page in PAGES for name in re.findall(r"<!-- generated: ([a-z-]+) -->", page.read_text())]
    assert sorted(used) == sorted(generate._PARTS)


def test_what_is_out_of_date_is_seen(generate: ModuleType) -> None:
    page = "before\n<!-- generated: presets -->\nold\n<!-- /generated -->\nafter\n"
    made = generate.fill(page)
    assert made != page
    assert made.startswith("before\n<!-- generated: presets -->\n\n| preset |")
    assert made.endswith("|\n\n<!-- /generated -->\nafter\n")
    assert generate.fill(made) == made
