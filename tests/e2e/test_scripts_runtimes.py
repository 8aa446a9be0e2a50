"""``scripts/install-runtimes``, run for real: what it finds, what it says, what it leaves alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from checkouts import NO_RUNTIMES, ROOT, RUNTIMES, SBIN, Checkout, run


def test_check_tells_the_truth() -> None:
    result = run(ROOT / "scripts/install-runtimes", "--check")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    all_there = "cgroups" not in rows
    for name in RUNTIMES:
        path = shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")
        if path is None:
            assert "missing" in rows[name]
            all_there = False
            continue
        assert rows[name].endswith(f" {path}")
        version = run(path, "--version").stdout.splitlines()[0].removeprefix(f"{name} version ")
        assert version in rows[name]
        all_there = all_there and "unfit" not in rows[name]
    assert result.returncode == (0 if all_there else 1)
    assert result.stderr == ""


def test_check_changes_nothing_and_reports_what_is_missing(checkout: Checkout) -> None:
    before = checkout.listing()
    script = checkout.root / "scripts/install-runtimes"
    result = run(script, "--check", "--for-tests", env=NO_RUNTIMES)
    assert result.returncode == 1
    for name in (*RUNTIMES, "cc-static"):
        assert any(row.split()[:2] == [name, "missing"] for row in result.stdout.splitlines())
    assert checkout.listing() == before


def test_plain_user_is_told_and_nothing_changes(checkout: Checkout, tmp_path: Path) -> None:
    # One runtime there, two not: only those two are named.
    tools = checkout.root.parent / "tools"
    tools.mkdir()
    (tools / "crun").symlink_to("/bin/true")
    before = checkout.listing()
    result = run(
        checkout.root / "scripts/install-runtimes",
        "--for-tests",
        env={"KAVACH_RUNTIME_PATH": str(tools), "KAVACH_CGROUP_ROOT": str(tmp_path / "none")},
        as_nobody=True,
    )
    assert result.returncode == 0
    assert result.stdout == ""
    assert "missing: runc runsc cc-static busybox\n" in result.stderr
    assert "run as root: scripts/install-runtimes --for-tests" in result.stderr
    assert checkout.listing() == before


def test_an_old_runsc_does_not_count(checkout: Checkout) -> None:
    tools = checkout.root.parent / "tools"
    tools.mkdir()
    for name in RUNTIMES:
        (tools / name).write_text(f"#!/bin/sh\necho '{name} version 0.0~20221219.0'\n")
        (tools / name).chmod(0o755)
    env = {"KAVACH_RUNTIME_PATH": str(tools), "KAVACH_CGROUP_ROOT": "/nonexistent"}
    result = run(checkout.root / "scripts/install-runtimes", "--check", env=env)
    assert result.returncode == 1
    verdicts = {row.split()[0]: "unfit" in row for row in result.stdout.splitlines()}
    assert verdicts == {"runc": False, "crun": False, "runsc": True}


@pytest.mark.parametrize(("controllers", "complains"), [("", False), ("misc\n", False), ("hugetlb misc\n", True)])
def test_hybrid_cgroups_are_seen(checkout: Checkout, controllers: str, *, complains: bool) -> None:
    tree = checkout.root.parent / "cgroup"
    (tree / "unified").mkdir(parents=True)
    (tree / "unified/cgroup.controllers").write_text(controllers)
    script = checkout.root / "scripts/install-runtimes"
    env = {"KAVACH_CGROUP_ROOT": str(tree)}
    assert ("cgroups" in run(script, "--check", env=env).stdout) is complains
    told = run(script, env=env, as_nobody=True).stderr
    assert ("hugetlb" in told) is complains
    assert not (tree / "hugetlb").exists()


def hugetlb_is_v1() -> bool:
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()]
    return any(row[0] == "hugetlb" and row[1] != "0" for row in rows)


@pytest.mark.needs_root
@pytest.mark.skipif(
    os.getuid() != 0 or not hugetlb_is_v1() or not all(map(shutil.which, RUNTIMES)),
    reason="needs root, all runtimes, and hugetlb on cgroup v1",
)
def test_hybrid_cgroups_are_mended(checkout: Checkout) -> None:
    """For real, but on a tree of its own and in a mount namespace that ends with the test."""
    tree = checkout.root.parent / "cgroup"
    (tree / "unified").mkdir(parents=True)
    (tree / "unified/cgroup.controllers").write_text("hugetlb\n")
    code = '"$1/scripts/install-runtimes" && findmnt -no FSTYPE,OPTIONS "$2/hugetlb"'
    result = run(
        *("unshare", "--mount", "bash", "-euc", code, "bash", checkout.root, tree),
        env={"KAVACH_CGROUP_ROOT": str(tree)},
    )
    assert result.returncode == 0, result.stderr
    kind, options = result.stdout.split()
    assert kind == "cgroup"
    assert "hugetlb" in options.split(",")
