"""Finding plugins among real distributions: nothing is imported that was not asked for, nothing broken stops the rest.

The distributions are folders with the metadata that pip would write; each test looks at them from a program of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

GROUP = "kavach_core.backends"
GOOD = """
from kavach_core.types import ProbeReport

class Good:
    name = "good"
    api_version = (1, 0)
    capabilities = frozenset()
    base_score = 1

    async def probe(self):
        return ProbeReport(usable=False)

    async def open(self, spec):
        raise NotImplementedError
"""


def variant(line: str, replacement: str) -> str:
    """Return the good backend with one line changed."""
    assert line in GOOD
    return GOOD.replace(line, replacement)


class Site:
    """A folder with distributions in it, as ``pip install --target`` makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        distribution: str,
        source: str | bytes,
        names: tuple[str, ...] = ("good",),
        target: str = "Good",
        group: str = GROUP,
    ) -> Site:
        """Add a distribution with one module; importing that leaves a trace."""
        module = distribution.replace("-", "_")
        if isinstance(source, str):
            source = f"open({str(self._trace(module))!r}, 'w').close()\n{source}".encode()
        (self.path / f"{module}.py").write_bytes(source)
        self.add_metadata(distribution, dict.fromkeys(names, f"{module}:{target}"), group)
        return self

    def add_metadata(self, distribution: str, entry_points: Mapping[str, str], group: str = GROUP) -> Path:
        """Add a distribution without a module."""
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        return info

    def imported(self) -> set[str]:
        """Return the modules that anybody has imported."""
        return {path.stem for path in self.path.glob("*.imported")}

    def _trace(self, module: str) -> Path:
        return self.path / f"{module}.imported"

    def run(self, code: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program that sees these distributions beside the installed ones."""
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1", **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def ask(self, expression: str, **env: str) -> Any:  # noqa: ANN401 - plain data
        """Return the value of an expression that may use ``kavach_core.discovery``."""
        done = self.run(
            f"""
import json
from kavach_core.errors import DiscoveryError
from kavach_core.discovery import *
def failure(name):
    try:
        load_plugin(BACKENDS, name)
    except DiscoveryError as error:
        return [type(error).__name__, str(error), error.name, error.hint]
def rows():
    return {{s.plugin.name: s.cls.__name__ if s.cls else str(s.error) for s in load_all(BACKENDS)}}
print(json.dumps({expression}))
""",
            **env,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# --- listing and loading -----------------------------------------------------------------------


def test_listing_imports_nothing(site: Site) -> None:
    site.add("vendor-good", GOOD).add("vendor-quits", "raise SystemExit", names=("quits",))
    listed = site.ask("[[p.name, p.target, p.distribution, p.version] for p in list_plugins(BACKENDS)]")
    assert ["good", "vendor_good:Good", "vendor-good", "1.0"] in listed
    assert ["quits", "vendor_quits:Good", "vendor-quits", "1.0"] in listed
    assert listed == sorted(listed)
    assert site.imported() == set()


def test_only_the_one_that_was_asked_for_is_imported(site: Site) -> None:
    site.add("vendor-a", GOOD, names=("a",)).add("vendor-b", GOOD, names=("b",))
    assert site.ask("load_plugin(BACKENDS, 'a').__name__") == "Good"
    assert site.imported() == {"vendor_a"}


def test_other_groups_are_other_plugins(site: Site) -> None:
    site.add("vendor-good", GOOD, group="kavach_core.audit_sinks")
    assert "good" not in site.ask("rows()")
    assert site.imported() == set()


def test_an_image_provider_has_a_contract_of_its_own(site: Site) -> None:
    site.add("vendor-images", GOOD, names=("images",), group="kavach_core.images")
    expression = "[(s.plugin.name, str(s.error)) for s in load_all(IMAGES)]"
    rows = dict(site.ask(expression))
    assert "lacks mount, unmount" in rows["images"]


def test_an_unknown_name_says_what_to_install(site: Site) -> None:
    kind, text, name, hint = site.ask("failure('process')")
    assert (kind, name, hint) == ("UnknownPlugin", "process", "pip install kavach-process")
    assert "no backend 'process' is installed" in text
    *_, hint = site.ask("failure('gvizor')")
    assert hint == "installed: crun, gvisor, oci, runc"


def test_a_name_that_is_almost_one_is_not_loaded(site: Site) -> None:
    assert [site.ask(f"failure({name!r})")[0] for name in ("RUNC", " runc", "")] == ["UnknownPlugin"] * 3


# --- duplicates --------------------------------------------------------------------------------


def test_a_duplicate_is_refused_before_either_is_imported(site: Site) -> None:
    site.add("vendor-a", GOOD).add("vendor-b", GOOD)
    kind, text, name, hint = site.ask("failure('good')")
    assert (kind, name, hint) == ("DuplicatePlugin", "good", "uninstall all but one")
    assert "vendor-a 1.0" in text
    assert "vendor-b 1.0" in text
    assert site.imported() == set()


def test_nobody_takes_the_name_of_a_backend_of_ours(site: Site) -> None:
    """An interleaved pair: each offers two names that are taken, and one of its own."""
    site.add("vendor-a", GOOD, names=("gvisor", "oci", "a")).add("vendor-b", GOOD, names=("gvisor", "oci", "b"))
    rows = site.ask("[[s.plugin.name, s.error.code if s.error else None, str(s.error)] for s in load_all(BACKENDS)]")
    codes = {name: code for name, code, _ in rows}
    assert len(rows) == len(codes)
    assert codes == {
        "gvisor": "duplicate_plugin",
        "oci": "duplicate_plugin",
        "a": None,
        "b": None,
        "runc": None,
        "crun": None,
    }
    texts = {name: text for name, _, text in rows}
    for owner in ("vendor-a 1.0", "vendor-b 1.0", "kavach-gvisor 0.1.0"):
        assert owner in texts["gvisor"]
    assert "kavach-oci 0.1.0" in texts["oci"]


def test_one_distribution_that_names_a_backend_twice(site: Site) -> None:
    info = site.add_metadata("vendor-a", {})
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ngood = vendor_a:Good\n[{GROUP}]\ngood = vendor_a:Other\n")
    assert site.ask("failure('good')")[0] == "DuplicatePlugin"


@pytest.mark.needs_runc
@pytest.mark.needs_root
def test_a_run_like_an_earlier_one_sees_a_new_duplicate(site: Site, kavach: Path) -> None:
    """What kavach keeps of earlier runs must not outlive the refusal."""
    command = [str(kavach), "run", "-b", "runc", "--", "true"]
    for _ in range(2):
        assert subprocess.run(command, check=False, timeout=60).returncode == 0
    site.add("vendor-a", GOOD, names=("runc",))
    env = {**os.environ, "PYTHONPATH": str(site.path)}
    refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 125
    assert "more than one distribution provides 'runc'" in refused.stderr
    assert site.imported() == set()


# --- broken ones -------------------------------------------------------------------------------

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


# --- stevedore's cache -------------------------------------------------------------------------

POISON = """
import json, os, sys
import stevedore._cache as cache
digest, values = cache._hash_settings_for_path(tuple(sys.path))
folder = cache._get_cache_dir()
os.makedirs(folder, exist_ok=True)
entry = ["runc", "vendor_evil:Good", "kavach_core.backends"]
data = {"groups": {"kavach_core.backends": [entry]}, "sys.executable": sys.executable, "sys.prefix": sys.prefix,
        "path_values": values}
json.dump(data, open(os.path.join(folder, digest), "w"))
"""
FOOLED = "from stevedore import DriverManager; print(DriverManager('kavach_core.backends', 'runc').driver.__module__)"


def test_a_poisoned_cache_injects_no_class(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stevedore keeps the entry points it found in the user's cache folder, and believes what it reads there."""
    home = str(tmp_path_factory.mktemp("cache"))
    (site.path / "vendor_evil.py").write_text(f"open({str(site.path / 'vendor_evil.imported')!r}, 'w').close()\n{GOOD}")
    poisoned = site.run(POISON, XDG_CACHE_HOME=home)
    assert poisoned.returncode == 0, poisoned.stderr
    before = {path: path.read_bytes() for path in Path(home).rglob("*") if path.is_file()}
    assert before
    assert site.ask("load_plugin(BACKENDS, 'runc').__module__", XDG_CACHE_HOME=home) == "kavach_oci.backend"
    assert site.ask("rows()['runc']", XDG_CACHE_HOME=home) == "RuncBackend"
    assert site.ask("failure('evil')", XDG_CACHE_HOME=home)[0] == "UnknownPlugin"
    assert site.imported() == set()
    # The poison works on whoever uses stevedore as it comes: without this the above would show nothing.
    for path, content in before.items():
        path.write_bytes(content)
    (site.path / "vendor_evil.imported").unlink(missing_ok=True)
    fooled = site.run(FOOLED, XDG_CACHE_HOME=home)
    assert fooled.stdout == "vendor_evil\n", fooled.stderr
    assert site.imported() == {"vendor_evil"}


def test_nothing_is_written_to_the_cache(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("cache")
    site.add("vendor-good", GOOD)
    site.ask("rows()", XDG_CACHE_HOME=str(home))
    assert list(home.rglob("*")) == []
