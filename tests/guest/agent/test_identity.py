"""In a box: who a command is, what it may not do, and that process 1 is out of its reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.agent.conftest import Agent

STARTED = 0x82
MARKERS = range(64512, 64512 + 1008)
NO_CAPABILITY = "0" * 16
USERS = pytest.mark.parametrize("user", [0, 1, 1000, 64511, 65535])


def status(agent: Agent, pid: str = "self", **fields: object) -> dict[str, list[str]]:
    text = agent.run("cat", f"/proc/{pid}/status", **fields).out.decode()
    lines = [line.split(":", 1) for line in text.splitlines()]
    return {name: value.split() for name, value in lines}


@USERS
def test_identity_is_complete(box: Agent, user: int) -> None:
    found = status(box, uid=user, gid=user)
    assert found["Uid"] == [str(user)] * 4
    assert found["Gid"] == [str(user)] * 4
    assert len(found["Groups"]) == 1
    assert int(found["Groups"][0]) in MARKERS
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert found[name] == [NO_CAPABILITY], name
    assert found["NoNewPrivs"] == ["1"]
    assert found["SigIgn"] == [NO_CAPABILITY]
    assert found["SigBlk"] == [NO_CAPABILITY]


def test_supplementary_groups(box: Agent) -> None:
    groups = list(range(100, 164))
    found = [int(number) for number in status(box, groups=groups)["Groups"]]
    assert found[:-1] == groups or sorted(found) == sorted([*groups, found[-1]])
    assert len([number for number in found if number in MARKERS]) == 1


def test_concurrent_commands_have_markers_of_their_own(box: Agent) -> None:
    channels = [box.start("sh", "-c", "id -G; cat", stdin=True) for _ in range(10)]
    for channel in channels:
        while b"\n" not in box.channels[channel].out:
            box.frame()
    groups = {box.channels[channel].out for channel in channels}
    assert len(groups) == 10


def test_an_identity_outside_the_box_fails_at_stage_3(box: Agent) -> None:
    for fields in ({"uid": 70_000}, {"gid": 70_000}, {"groups": [70_000]}):
        failure = box.run("true", **fields).failure
        assert failure is not None
        assert failure[0] == 3
    assert box.run("true").exit == (0, 0)


def test_the_agent_keeps_three_capabilities(box: Agent) -> None:
    found = status(box, "1")
    three = f"{1 << 5 | 1 << 6 | 1 << 7:016x}"
    assert found["CapPrm"] == found["CapEff"] == [three]
    assert found["CapInh"] == found["CapBnd"] == found["CapAmb"] == [NO_CAPABILITY]
    assert found["NoNewPrivs"] == ["1"]


def test_its_capabilities_come_back_after_each_command(box: Agent) -> None:
    for user in (1000, 0, 65535):
        assert box.run("true", uid=user, gid=user).exit == (0, 0)
    assert status(box, "1")["CapEff"] == status(box, "1")["CapPrm"]
    assert status(box, "1")["Uid"] == ["65520"] * 4


@pytest.mark.parametrize("user", [0, 1000])
def test_process_1_is_out_of_reach(box: Agent, user: int) -> None:
    report = box.run_guest("attack", uid=user, gid=user).out.decode()
    results = dict(line.split() for line in report.splitlines())
    assert results.pop("setgroups") == "EPERM"
    for name in ("setuid", "kill", "stop", "prlimit"):
        assert results.pop(name) == "EPERM"
    assert len(results) == 12
    assert set(results.values()) <= {"EACCES", "EPERM"}, report
    assert box.run("true").exit == (0, 0)


def test_a_setuid_program_gives_nothing(box: Agent) -> None:
    for program in ("/bin/su", "/usr/bin/passwd", "/bin/mount"):
        text = f"[ -u {program} ] && exec {program} --help; true"
        assert box.run("sh", "-c", text).failure is None
    found = status(box)
    assert found["NoNewPrivs"] == ["1"]
