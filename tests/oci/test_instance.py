"""What a killed process leaves of its instance is swept; what a living one has, or one just being made, is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kavach_guest.agent import watchdog_program

from kavach_core.reaper import identity
from kavach_core.reaper.instance import Instance
from kavach_core.reaper.sweep import find_living, sweep

LONG_AGO = 1_000_000_000


def left(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """An instance of this process, with no hierarchy of cgroups."""
    made = Instance(str(tmp_path), watchdog=str(watchdog_program()), roots=())
    yield made
    if Path(made.path).exists():
        made.remove()


def dead_identity() -> dict[str, object]:
    """Return the identity of a process that has ended."""
    script = "from kavach_core.reaper import identity; import json; print(json.dumps(identity.own()))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_an_instance_is_made_and_removed(tmp_path: Path, instance: Instance) -> None:
    assert left(Path(instance.path)) == {"owner", "ledger", "bundles", "state"}
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {Path(instance.path).name}
    [(path, owner, boxes)] = find_living(str(tmp_path))
    assert (path, owner, boxes) == (instance.path, identity.own(), {})
    assert instance.remove() == []
    assert not left(tmp_path)
    assert identity.start_of(instance.watchdog_pid) is None


def test_a_watchdog_that_was_killed_is_followed_by_another(instance: Instance) -> None:
    first = instance.watchdog_pid
    instance.guard()
    assert instance.watchdog_pid == first
    os.kill(first, 9)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    instance.guard()
    assert instance.watchdog_pid != first
    assert identity.start_of(instance.watchdog_pid) is not None
    assert instance.remove() == []


def test_boxes_that_are_still_there_go_with_it(tmp_path: Path, instance: Instance) -> None:
    bundle = Path(instance.path, "bundles", "0123456789abcdef")
    bundle.mkdir()
    (bundle / "config.json").touch()
    assert instance.remove() == []
    assert not left(tmp_path)


@pytest.mark.parametrize("parts", [["owner", "bundles", "state"], ["owner", "state"], ["bundles/kavach"], []])
def test_what_has_no_living_owner_is_swept(tmp_path: Path, parts: list[str]) -> None:
    """At whatever moment of its end he was killed."""
    instance = tmp_path / "instance-0"
    instance.mkdir()
    for part in parts:
        (instance / part).touch() if part == "owner" else (instance / part).mkdir(parents=True)
    sweep(str(tmp_path), [])
    assert not left(tmp_path)


def test_what_was_never_finished_is_swept_when_its_maker_is_dead(tmp_path: Path) -> None:
    """Its name says who that was; where that cannot be judged, its age has the say."""
    own, dead = identity.own(), dead_identity()
    names = [f".instance-0-{who['pid']}-{who['start']}-{who['namespace']}" for who in (own, dead)]
    foreign = f".instance-0-{dead['pid']}-{dead['start']}-1"
    for name in (*names, foreign):
        (tmp_path / name / "state").mkdir(parents=True)
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {names[0], foreign}
    os.utime(tmp_path / foreign, (LONG_AGO, LONG_AGO))
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {names[0]}


def test_other_things_are_not_touched(tmp_path: Path) -> None:
    for name in ("ids", "plans", "shared", "instances", ".instance"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {"ids", "plans", "shared", "instances", ".instance"}


def test_removal_follows_no_link(tmp_path: Path) -> None:
    """Neither that of a bundle nor that of the instance itself."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    base = tmp_path / "base"
    for directory in (base / "instance-0" / "bundles", base / "instance-0" / "state"):
        directory.mkdir(parents=True)
    (base / "instance-0" / "bundles" / "0123456789abcdef").symlink_to(kept)
    (base / "instance-0" / "state" / "runc").symlink_to(kept)
    (base / "instance-0" / "owner").touch()
    (base / "instance-1").symlink_to(kept)
    sweep(str(base), [])
    assert (kept / "file").exists()
    assert "instance-0" not in left(base)


def test_a_forked_child_that_lives_on_does_not_hold_what_is_its_parents(tmp_path: Path) -> None:
    """It has the lock, by inheritance; the owner of the boxes is dead all the same."""
    script = f"""
import os, sys, time
from kavach_core.reaper.instance import Instance
Instance({str(tmp_path)!r}, watchdog="/bin/true", roots=())
if os.fork() == 0:
    print("up", flush=True)
    time.sleep(1000)
os._exit(0) if sys.stdin.read() == "" else None
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    try:
        assert owner.stdout.readline() == b"up\n"
        sweep(str(tmp_path), [])
        assert left(tmp_path)
        owner.stdin.close()
        owner.wait()
        sweep(str(tmp_path), [])
        assert not left(tmp_path)
    finally:
        os.killpg(owner.pid, 9)
        owner.stdout.close()


def test_a_process_is_known_by_more_than_its_number() -> None:
    own = identity.own()
    assert not identity.is_dead(own)
    assert identity.is_dead({**own, "start": own["start"] + 1})
    assert identity.is_dead({**own, "boot": "another"})
    assert not identity.is_dead({**own, "namespace": 1, "start": 1}), "what cannot be judged lives"
    assert not identity.is_dead({})
    assert identity.is_dead(dead_identity())
