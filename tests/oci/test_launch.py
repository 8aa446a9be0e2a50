"""A plan is plain data that a later process uses, perhaps of another version; a launch that fails leaves nothing."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from kavach_guest import express
from kavach_oci import RuncBackend

from kavach_core.abc import HostToolchain, SandboxSpec
from kavach_core.oci.launch import BoxPlan, Launch
from kavach_core.oci.workspace import open_workspace
from kavach_core.policy import PRESETS
from kavach_core.reaper import ledger

pytestmark = pytest.mark.needs_runc


@pytest.fixture
def plan() -> BoxPlan:
    """How runc starts boxes here."""
    spec = SandboxSpec(sandbox_id=secrets.token_hex(8), root=HostToolchain(), policy=PRESETS["basic"], cwd="/")
    quick = RuncBackend().plan(spec)
    assert quick is not None
    made = BoxPlan.from_data(quick.plan)
    assert made is not None
    return made


def test_a_plan_is_data_and_back(plan: BoxPlan) -> None:
    again = BoxPlan.from_data(plan.as_data())
    assert again is not None
    assert again.as_data() == plan.as_data()


@pytest.mark.parametrize("change", [{"delete_command": ["runc"]}, {"watchdog": None}])
def test_a_plan_of_another_version_is_none(plan: BoxPlan, change: dict[str, object]) -> None:
    """It has fields that are no more, or lacks some; then the run goes the long way."""
    data = {**plan.as_data(), **change}
    other = {name: value for name, value in data.items() if value is not None}
    assert BoxPlan.from_data(other) is None
    assert express.run(other, {}, ["true"]) is None


def test_a_launch_that_fails_leaves_nothing(plan: BoxPlan) -> None:
    plan.cgroup_settings = [*plan.cgroup_settings, (plan.cgroup_roots[0], "no.such.file", "1", False)]
    workspace = open_workspace(watchdog=Path(plan.watchdog), roots=tuple(plan.cgroup_roots))
    before = ledger.read(str(workspace.path))[1]
    with pytest.raises(FileNotFoundError):
        Launch(plan, box_id=secrets.token_hex(8), instance=workspace.instance)
    assert ledger.read(str(workspace.path))[1] == before
    assert not any((workspace.path / "bundles").iterdir())


def test_what_is_made_has_been_announced(plan: BoxPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a directory or a cgroup, the ledger has it."""
    box_id = secrets.token_hex(8)
    workspace = open_workspace(watchdog=Path(plan.watchdog), roots=tuple(plan.cgroup_roots))
    seen: list[bool] = []
    write = Launch._write_spec

    def written(self: Launch) -> None:
        record = ledger.read(str(workspace.path))[1][box_id]
        seen.append((record["backend"], record["bundle"]) == ("runc", self.bundle))
        seen.append(not any(Path(root, self.cgroup.name).exists() for root in plan.cgroup_roots))
        write(self)

    monkeypatch.setattr(Launch, "_write_spec", written)
    launch = Launch(plan, box_id=box_id, instance=workspace.instance)
    assert launch.remove() == []
    assert seen == [True, True]
    assert box_id not in ledger.read(str(workspace.path))[1]
