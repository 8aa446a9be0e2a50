"""Finding plugins among real distributions: nothing is imported that was not asked for, no name has two owners."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sites import GOOD, GROUP, Site

# --- listing and loading ----------------------------------------------------------------------------


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


# --- duplicates -------------------------------------------------------------------------------------


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


# --- stevedore's cache ------------------------------------------------------------------------------


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
