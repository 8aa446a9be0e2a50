"""Our cgroup of a box: for real where this host has version 1, and on a tree of files for the layouts it has not."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from kavach_core.oci.cgroup_tree import CgroupTree
from kavach_core.oci.cgroups import CgroupLayout, detect_layout, enable_controllers, plan_cgroup, read_usage
from kavach_core.policy import ByteSize, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits(memory=ByteSize(64 * 1024 * 1024), cpus=0.25, pids=9)

V2 = "31 23 0:26 / {root} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
V1 = """\
22 28 0:20 / /proc rw,nosuid - proc proc rw
31 30 0:26 / {root} ro,nosuid - tmpfs tmpfs ro,mode=755
33 31 0:28 / {root}/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
34 31 0:29 / {root}/memory rw,nosuid shared:15 - cgroup cgroup rw,memory
35 31 0:30 / {root}/cpu,cpuacct rw,nosuid shared:16 - cgroup cgroup rw,cpu,cpuacct
36 31 0:31 / {root}/pids rw,nosuid shared:17 - cgroup cgroup rw,pids
37 31 0:32 / {root}/net_cls,net_prio rw,nosuid shared:18 - cgroup cgroup rw,net_cls,net_prio"""
HYBRID = V1 + "\n32 31 0:27 / {root}/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate"


def layout_of(text: str, root: Path, *, controllers: str = "") -> CgroupLayout:
    """Detect the layout that a mountinfo describes; ``root`` stands for /sys/fs/cgroup."""
    for name in ("", "unified"):
        if f"{{root}}/{name} " in text or (not name and text is V2):
            (root / name).mkdir(exist_ok=True)
            (root / name / "cgroup.controllers").write_text(controllers)
    mountinfo = root / "mountinfo"
    mountinfo.write_text(text.format(root=root) + "\n")
    return detect_layout(mountinfo)


def test_version_2(tmp_path: Path) -> None:
    layout = layout_of(V2, tmp_path, controllers="cpuset cpu io memory pids\n")
    assert (layout.version, layout.unified, layout.roots) == (2, tmp_path, [tmp_path])
    assert all(layout.has(name) for name in ("memory", "cpu", "pids"))
    assert not layout.has("hugetlb")


def test_version_2_without_controllers(tmp_path: Path) -> None:
    layout = layout_of(V2, tmp_path, controllers="cpu\n")
    assert layout.version == 2
    assert [name for name in ("memory", "cpu", "pids") if layout.has(name)] == ["cpu"]


def test_version_1(tmp_path: Path) -> None:
    layout = layout_of(V1, tmp_path)
    assert (layout.version, layout.unified) == (1, None)
    assert layout.hierarchies["cpu"] == layout.hierarchies["cpuacct"] == tmp_path / "cpu,cpuacct"
    assert all(layout.has(name) for name in ("memory", "cpu", "pids"))
    assert not {"rw", "xattr", "nosuid"} & layout.hierarchies.keys()
    assert len(layout.roots) == len(set(layout.roots)) == 5


def test_hybrid(tmp_path: Path) -> None:
    layout = layout_of(HYBRID, tmp_path, controllers="hugetlb\n")
    assert (layout.version, layout.unified) == (1, tmp_path / "unified")
    assert tmp_path / "unified" in layout.roots


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    layout = layout_of("22 28 0:20 / /proc rw,nosuid - proc proc rw", tmp_path)
    assert (layout.unified, layout.roots) == (None, [])
    assert not any(layout.has(name) for name in ("memory", "cpu", "pids"))


def test_settings_of_version_2(tmp_path: Path) -> None:
    plan = plan_cgroup(layout_of(V2, tmp_path, controllers="cpu memory pids\n"), LIMITS, host_tasks=73)
    written = {file: (value, optional) for _, file, value, optional in plan.settings if file}
    assert written == {
        "../cgroup.subtree_control": ("+cpu +memory +pids", False),
        "pids.max": ("73", False),
        "memory.max": (str(LIMITS.memory), False),
        "memory.swap.max": ("0", True),
        "cpu.max": ("25000 100000", False),
    }
    assert plan.roots == (str(tmp_path),)


def test_settings_of_version_1(tmp_path: Path) -> None:
    plan = plan_cgroup(layout_of(V1, tmp_path), LIMITS, host_tasks=None)
    written = {
        (root.removeprefix(f"{tmp_path}/"), file): (value, opt) for root, file, value, opt in plan.settings if file
    }
    assert written == {
        ("pids", "pids.max"): ("max", False),
        ("memory", "memory.limit_in_bytes"): (str(LIMITS.memory), False),
        ("memory", "memory.memsw.limit_in_bytes"): (str(LIMITS.memory), True),
        ("cpu,cpuacct", "cpu.cfs_quota_us"): ("25000", False),
    }


def test_no_limit_is_no_setting(tmp_path: Path) -> None:
    plan = plan_cgroup(layout_of(V2, tmp_path, controllers="cpu memory\n"), Limits(), host_tasks=None)
    assert [setting[1] for setting in plan.settings if setting[1]] == ["../cgroup.subtree_control"]
    assert plan.settings_once_booted == ()


def test_tighter_bound_once_booted(tmp_path: Path) -> None:
    layout = layout_of(V2, tmp_path, controllers="cpu memory pids\n")
    plan = plan_cgroup(layout, LIMITS, host_tasks=73, booted_tasks=10)
    (tmp_path / "kavach-i").mkdir()
    for file in ("pids.max", "memory.max", "cpu.max"):  # the kernel makes these with the group
        (tmp_path / "kavach-i" / file).touch()
    tree = CgroupTree("kavach-i", roots=plan.roots, settings=())
    tree.write(plan.settings_once_booted)
    assert (tmp_path / "kavach-i" / "pids.max").read_text() == "10"


def test_missing_controllers_are_enabled_once(tmp_path: Path) -> None:
    layout = layout_of(V2, tmp_path, controllers="cpuset cpu memory pids\n")
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("memory\n")
    enable_controllers(layout)
    assert control.read_text() == "+cpu +pids"
    control.write_text("cpu memory pids\n")
    enable_controllers(layout)
    assert control.read_text() == "cpu memory pids\n"


def test_counters_of_version_2(tmp_path: Path) -> None:
    layout = layout_of(V2, tmp_path, controllers="cpu memory pids\n")
    group = tmp_path / "kavach-x"
    group.mkdir()
    (group / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n")
    (group / "memory.current").write_text("1024\n")
    (group / "memory.peak").write_text("4096\n")
    (group / "memory.events").write_text("low 0\nmax 7\noom 2\noom_kill 1\n")
    (group / "pids.current").write_text("3\n")
    (group / "pids.peak").write_text("5\n")
    usage = read_usage(layout, "kavach-x")
    assert (usage.cpu_seconds, usage.cpu_user_seconds, usage.cpu_system_seconds) == (1.5, 1.0, 0.5)
    assert (usage.memory_bytes, usage.memory_peak_bytes) == (1024, 4096)
    assert (usage.memory_limit_hits, usage.oom_kills) == (7, 1)
    assert (usage.pids, usage.pids_peak) == (3, 5)


def test_what_is_not_counted_is_none(tmp_path: Path) -> None:
    usage = read_usage(layout_of(V2, tmp_path), "kavach-x")
    assert (usage.cpu_seconds, usage.memory_peak_bytes, usage.memory_limit_hits, usage.pids) == (None, None, None, None)


def test_tree_that_cannot_be_made_is_undone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    tree = CgroupTree(
        "kavach-x", roots=[str(one), str(two)], settings=[(str(one), "", "", False), (str(two), "", "", False)]
    )
    with pytest.raises(FileNotFoundError):
        tree.create()
    assert not any(one.iterdir())


def test_setting_that_may_be_missing(tmp_path: Path) -> None:
    tree = CgroupTree("kavach-x", roots=[str(tmp_path)], settings=[(str(tmp_path), "swap.max", "0", True)])
    tree.create()
    assert tree.remove() == []
    strict = CgroupTree("kavach-x", roots=[str(tmp_path)], settings=[(str(tmp_path), "memory.max", "0", False)])
    with pytest.raises(FileNotFoundError):
        strict.create()
    assert not (tmp_path / "kavach-x").exists()


# --- the real ones ------------------------------------------------------------------------------------


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    """Our cgroup on this host, gone at the end."""
    plan = plan_cgroup(detect_layout(), LIMITS, host_tasks=40)
    made = CgroupTree(f"kavach-test{os.getpid()}", roots=plan.roots, settings=plan.settings)
    made.create()
    yield made
    made.kill()
    assert made.remove() == []


def join(tree: CgroupTree, pid: int) -> None:
    """Put a process into the group, in each hierarchy that has it."""
    for root in detect_layout().roots:
        procs = root / tree.name / "cgroup.procs"
        if procs.exists():
            procs.write_text(str(pid))


@pytest.mark.needs_root
def test_real_tree(tree: CgroupTree) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        assert tree.pids() == set()
        join(tree, child.pid)
        assert tree.pids() == {child.pid}
        assert tree.remove(), "the kernel keeps a group that has a process"
        assert tree.pids() == {child.pid}
        usage = read_usage(detect_layout(), tree.name)
        assert usage.pids == 1
        assert usage.cpu_seconds is not None
        tree.kill()
        assert child.wait(timeout=10) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


@pytest.mark.needs_root
def test_real_limits(tree: CgroupTree) -> None:
    written = [(f"{root}/{tree.name}/{file}", value) for root, file, value, _ in tree._settings if file]
    assert len(written) >= 3
    for path, value in written:
        if os.path.exists(path):  # noqa: PTH110 - a text like the tree's own
            with open(path, encoding="ascii") as file:  # noqa: PTH123 - likewise
                assert file.read().strip() == value


@pytest.mark.needs_root
def test_a_number_that_has_gone_to_another_process_is_not_killed(tree: CgroupTree) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        tree.kill_member(bystander.pid)
        tree.kill()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    tree.kill_member(bystander.pid)  # and one that is no more is no error
