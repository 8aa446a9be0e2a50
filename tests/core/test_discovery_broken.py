"""Broken plugins among real distributions: each is a row with the reason, and stops nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sites import GOOD, Site, variant

BROKEN = {
    "import-error": ("import no_such_module_anywhere", "cannot be imported: ModuleNotFoundError"),
    "raises": ("raise RuntimeError('line one\\nline two')", "cannot be imported: RuntimeError: line one line two"),
    "quits": ("import sys; sys.exit(0)", "cannot be imported: SystemExit"),
    "quits-hard": ("raise BaseException('of its own')", "cannot be imported: BaseException"),
    "generator-exit": ("raise GeneratorExit", "cannot be imported: GeneratorExit"),
    "syntax-error": ("def", "cannot be imported: SyntaxError"),
    "binary": (b"\x7fELF\x02\x01\x01\0\0\0", "cannot be imported: "),
    "not-utf8": (b"Good = '\xff\xfe'\n", "cannot be imported: SyntaxError"),
    "recursion": ("def f(): f()\nf()", "cannot be imported: RecursionError"),
    "missing-attribute": ("class Other: pass", "cannot be imported: AttributeError"),
    "function": ("def Good(): pass", "does not name a class"),
    "instance": (GOOD + "\nGood = Good()\n", "does not name a class"),
    "module": ("import sys\nGood = sys", "does not name a class"),
    "none": ("Good = None", "does not name a class"),
    "no-version": (variant("api_version = (1, 0)", "pass"), "declares no usable api_version"),
    "version-is-text": (variant("api_version = (1, 0)", "api_version = '1.0'"), "declares no usable api_version"),
    "version-is-long": (variant("api_version = (1, 0)", "api_version = (1, 0, 0)"), "declares no usable api_version"),
    "version-of-text": (variant("api_version = (1, 0)", "api_version = ('1', '0')"), "declares no usable api_version"),
    "version-is-float": (variant("api_version = (1, 0)", "api_version = 1.0"), "declares no usable api_version"),
    "older-major": (variant("(1, 0)", "(0, 9)"), "is made for version 0.9 of the contract, this is 1.0"),
    "newer-major": (variant("(1, 0)", "(2, 0)"), "is made for version 2.0 of the contract, this is 1.0"),
    "newer-minor": (variant("(1, 0)", "(1, 1)"), "is made for version 1.1 of the contract, this is 1.0"),
    "no-probe": (variant("async def probe", "async def prob"), "lacks probe"),
    "no-open": (variant("async def open", "async def start"), "lacks open"),
    "no-score": (variant("base_score = 1", "score = 1"), "lacks base_score"),
    "nothing": ("class Good:\n    api_version = (1, 0)", "lacks base_score, capabilities, name, open, probe"),
}


@pytest.fixture(scope="module")
def broken_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A host on which all of that is installed at once, and one good backend."""
    site = Site(tmp_path_factory.mktemp("broken"))
    for name, (source, _) in BROKEN.items():
        site.add(f"vendor-{name}", source, names=(name,))
    site.add("vendor-good", GOOD)
    site.add_metadata("vendor-no-module", {"no-module": "vendor_no_module:Good"})
    site.add_metadata("vendor-no-attribute", {"no-attribute": "json"})
    site.add_metadata("vendor-bad-value", {"bad-value": "not a reference!!"})
    site.add_metadata("vendor-empty-value", {"empty-value": ""})
    site.add_metadata("vendor-extras", {"extras": "vendor_good:Good [fast]"})
    return site


@pytest.fixture(scope="module")
def broken_rows(broken_site: Site) -> dict[str, str]:
    rows: dict[str, str] = broken_site.ask("rows()")
    return rows


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, (_, reason) in BROKEN.items()])
def test_a_broken_plugin_is_a_row_with_the_reason(broken_rows: dict[str, str], name: str, reason: str) -> None:
    assert reason in broken_rows[name]
    assert f"vendor-{name} 1.0" in broken_rows[name]
    assert "\n" not in broken_rows[name]


@pytest.mark.parametrize("name", ["no-module", "no-attribute", "bad-value", "empty-value"])
def test_an_entry_point_that_names_nothing_is_a_row(broken_rows: dict[str, str], name: str) -> None:
    assert f"vendor-{name} 1.0" in broken_rows[name]


def test_the_good_ones_work_beside_all_that(broken_rows: dict[str, str]) -> None:
    good = {
        "good": "Good",
        "gvisor": "GvisorBackend",
        "runc": "RuncBackend",
        "crun": "CrunBackend",
        "oci": "OciBackend",
    }
    assert {name: broken_rows[name] for name in good} == good


def test_extras_of_an_entry_point_do_not_matter(broken_rows: dict[str, str]) -> None:
    assert broken_rows["extras"] == "Good"


def test_the_version_that_was_declared_is_told(broken_rows: dict[str, str]) -> None:
    assert "'1.0'" in broken_rows["version-is-text"]


@pytest.mark.parametrize("name", ["quits", "newer-minor", "older-major", "function", "no-probe"])
def test_asking_for_a_broken_one_is_an_error_with_a_remedy(broken_site: Site, name: str) -> None:
    kind, text, asked, hint = broken_site.ask(f"failure({name!r})")
    assert kind == ("PluginLoadError" if name == "quits" else "IncompatiblePlugin")
    assert (asked, BROKEN[name][1] in text) == (name, True)
    assert hint


def test_the_command_line_lists_them_all(broken_site: Site, kavach: Path) -> None:
    """One run, with every broken plugin installed: a row for each, and the status of the good ones."""
    listed = subprocess.run(
        [str(kavach), "backends", "--json"],
        env={**os.environ, "PYTHONPATH": str(broken_site.path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert listed.stderr == ""
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    for name, (_, reason) in BROKEN.items():
        row = rows[name]
        assert not row["usable"]
        assert (row["distribution"], row["distribution_version"]) == (f"vendor-{name}", "1.0")
        assert reason in row["reasons"][0]["text"]
        assert row["reasons"][0]["remedy"]
    assert {"gvisor", "runc", "crun", "oci", "good"} <= set(rows)
    assert rows["good"]["reasons"] == []
    names = list(rows)
    assert names.index("gvisor") < names.index("runc") < names.index("good") < names.index("quits")


def test_ctrl_c_during_an_import_is_not_taken_for_a_broken_plugin(site: Site) -> None:
    site.add("vendor-good", "raise KeyboardInterrupt")
    done = site.run("from kavach_core.discovery import *; load_all(BACKENDS)")
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode != 0


# What follows breaks not its own row but all of them.
ALL_ROWS = {"gvisor", "runc", "crun", "oci"}


@pytest.mark.parametrize("text", [b"[kavach_core.backends]\ngarbage\n", b"\xff\xfe\x00\n"])
def test_metadata_that_cannot_be_parsed(site: Site, text: bytes) -> None:
    (site.add_metadata("vendor-a", {}) / "entry_points.txt").write_bytes(text)
    assert set(site.ask("rows()")) >= ALL_ROWS


def test_a_distribution_half_removed(site: Site) -> None:
    """As an interrupted ``pip uninstall`` leaves it: entry points, but no name."""
    (site.add_metadata("vendor-a", {"half": "vendor_a:Good"}) / "METADATA").unlink()
    assert set(site.ask("rows()")) >= ALL_ROWS


LATER = {
    "score-is-text": variant("base_score = 1", "base_score = 'high'"),
    "score-is-property": variant("base_score = 1", "base_score = property(lambda self: 1)"),
    "init-raises": GOOD + "\n    def __init__(self): raise RuntimeError('no licence')\n",
    "init-wants": GOOD + "\n    def __init__(self, path): pass\n",
    "probe-raises": variant("return ProbeReport(usable=False)", "raise RuntimeError('of its own')"),
    "probe-is-sync": variant("async def probe(self)", "def probe(self)"),
    "probe-gives-nothing": variant("return ProbeReport(usable=False)", "return None"),
    "metaclass-raises": """
class Meta(type):
    @property
    def api_version(cls):
        raise RuntimeError("no")

class Good(metaclass=Meta):
    pass
""",
}
EXAMINE_GOOD_ONLY = """
import json, trio
from kavach_core.cli import backends
every = backends.load_all
# The real ones would start boxes, which says nothing here.
backends.load_all = lambda group: [status for status in every(group) if status.plugin.name == "good"]
print(json.dumps([backends._row(status, candidate) for status, candidate in trio.run(backends.examine)]))
"""


def examine_good(site: Site) -> dict[str, Any]:
    done = site.run(EXAMINE_GOOD_ONLY)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    found: dict[str, Any] = row
    return found


def test_a_plugin_that_behaves_is_a_row(site: Site) -> None:
    site.add("vendor-good", GOOD)
    row = examine_good(site)
    assert (row["name"], row["usable"], row["base_score"], row["reasons"]) == ("good", False, 1, [])


@pytest.mark.parametrize("source", LATER.values(), ids=LATER)
def test_a_plugin_that_misbehaves_later_is_a_row_too(site: Site, source: str) -> None:
    site.add("vendor-good", source)
    row = examine_good(site)
    assert not row["usable"]
    assert row["reasons"]
