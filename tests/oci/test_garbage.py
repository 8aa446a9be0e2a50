"""``kavach gc`` removes what dead owners left and nobody needs, and nothing else; ``kavach ps`` lists what is alive."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kavach_core as kavach_api
from kavach_core.cli.ps import age, show_boxes
from kavach_core.oci import garbage, idrange, workspace
from kavach_core.reaper import identity
from tests.conftest import Host, Running

LONG_AGO = 1_000_000_000
Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A base of this test's own, the only one there is."""
    base = tmp_path / "kavach"
    for part in ("ids", "shared"):
        (base / part).mkdir(parents=True, mode=0o711)
    monkeypatch.setattr(garbage, "existing_bases", lambda: [base])
    monkeypatch.setattr(workspace, "base_directory", lambda: base)
    return base


def shared(base: Path, name: str, *, used: float = LONG_AGO) -> Path:
    """Make a shared directory that was used last at that time."""
    path = base / "shared" / name
    path.mkdir()
    (path / "file").touch()
    os.utime(path, (used, LONG_AGO))
    return path


def test_nothing_is_touched_in_a_dry_run(base: Path) -> None:
    (base / "instance-0").mkdir()
    (base / "ids" / "1").touch()
    old = shared(base, "old")
    found = garbage.collect(dry_run=True)
    assert {finding.kind for finding in found} == {"instance", "shared", "ids"}
    assert not any(finding.removed or finding.left for finding in found)
    assert (base / "instance-0").exists()
    assert (base / "ids" / "1").exists()
    assert old.exists()
    assert all(finding.removed for finding in garbage.collect(dry_run=False))
    assert not (base / "instance-0").exists()
    assert not (base / "ids" / "1").exists()
    assert not old.exists()
    assert garbage.collect(dry_run=False) == []


def test_what_was_used_lately_stays(base: Path) -> None:
    recent = shared(base, "recent", used=time.time() - 3600)
    again = shared(base, "again")
    workspace.shared("again", lambda _: None)
    assert again.stat().st_mtime == LONG_AGO, "a kept plan is void when this changes"
    garbage.collect(dry_run=False)
    assert recent.exists()
    assert again.exists()


def test_what_a_live_box_has_in_it_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has been running."""
    used, unused = shared(base, "used"), shared(base, "unused")
    monkeypatch.setattr(garbage, "_specs_of_the_living", lambda _: [b'{"root": {"path": "/x/shared/used"}}'])
    garbage.collect(dry_run=False)
    assert used.exists()
    assert not unused.exists()


async def test_the_living_are_known_by_their_ledgers(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        own = workspace.workspace()
        assert own is not None
        specs = garbage._specs_of_the_living(str(own.path.parent))
        assert any(b"/shared/" in spec for spec in specs)
        [box] = [box for box in garbage.live_boxes() if box.id == sandbox.id]
        assert (box.backend, box.owner_pid, box.state) == (backend, os.getpid(), "running")
        assert 0 <= box.age_seconds < 120
        await sandbox._session._box.pause()
        assert [box.state for box in garbage.live_boxes() if box.id == sandbox.id] == ["paused"]


def test_half_made_shared_things_go_with_their_maker(base: Path) -> None:
    own = identity.own()
    mine = shared(base, f".new-{own['namespace']}-{own['pid']}-{own['start']}-x")
    dead = shared(base, f".new-{own['namespace']}-{own['pid']}-{own['start'] - 1}-x", used=time.time())
    garbage.collect(dry_run=False)
    assert mine.exists()
    assert not dead.exists()


def test_a_range_that_is_held_stays_held(base: Path) -> None:
    """Also for who has opened the lock before it was pruned, and takes it after: two boxes with one range."""
    held = idrange.IdRange.take(str(base))
    (base / "ids" / "9000").touch()
    assert idrange.prune(str(base), dry_run=False) == 1
    assert len(list((base / "ids").iterdir())) == 1
    stale = os.open(base / "ids" / "9001", os.O_RDWR | os.O_CREAT)
    assert idrange.prune(str(base), dry_run=False) == 1
    os.close(stale)
    held.release()
    assert idrange.prune(str(base), dry_run=False) == 1


def test_a_lock_that_was_pruned_while_it_was_taken_is_not_one(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = base / "ids" / "1"
    lock = idrange.fcntl.flock

    def pruned_first(descriptor: int, operation: int) -> None:
        path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(idrange.fcntl, "flock", pruned_first)
    assert idrange._lock(str(path)) is None


BOX = "0123456789abcdef"
ODD = [
    {"box": BOX, "created": None},
    {"box": BOX, "created": "yesterday"},
    {"box": BOX, "created": float("nan")},
    {"box": BOX, "created": float("inf")},
    {"box": BOX, "created": -1},
    {"box": BOX, "created": True},
    {"box": BOX, "created": 10**400},
    {"box": BOX, "created": [1]},
    {"box": BOX, "group": "../../x\0", "bundle": "a\0b", "backend": ["\033[2J"]},
    {"box": BOX, "group": None, "bundle": 3, "backend": "one\ntwo"},
]


@pytest.fixture
def odd_ledger(base: Path) -> Iterator[Callable[..., None]]:
    """Write the ledger of a living instance, whatever is to be in it."""
    instance = base / "instance-0123"
    (instance / "bundles").mkdir(parents=True)
    with (instance / "owner").open("w") as owner:
        idrange.fcntl.flock(owner.fileno(), idrange.fcntl.LOCK_EX)

        def write(*lines: object) -> None:
            (instance / "ledger").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

        yield write


@pytest.mark.needs_root
@pytest.mark.parametrize("record", ODD, ids=repr)
def test_of_an_odd_ledger_is_shown_what_can_be(
    odd_ledger: Callable[..., None], record: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    odd_ledger({"owner": identity.own()}, record)
    [box] = garbage.live_boxes()
    assert (box.id, box.owner_pid, box.age_seconds, box.state) == (BOX, os.getpid(), None, "starting")
    for as_json in (False, True):
        assert show_boxes(argparse.Namespace(json=as_json), []) == 0
    shown = capsys.readouterr().out
    assert f"\n{BOX}" in shown
    assert "\033" not in shown
    assert garbage.collect(dry_run=False) == []


@pytest.mark.needs_root
@pytest.mark.parametrize("pid", [None, "x", "1\0", -1, 0, True, 1.5, float("inf"), 10**30, [1], {}])
def test_of_an_odd_owner_no_process_is_shown(odd_ledger: Callable[..., None], pid: object) -> None:
    odd_ledger({"owner": {**identity.own(), "pid": pid}}, {"box": BOX, "created": 0})
    assert [box.owner_pid for box in garbage.live_boxes()] in ([None], [])  # what cannot be the owner's is dead
    assert [finding.owner_pid for finding in garbage.collect(dry_run=True)] in ([None], [])


@pytest.mark.needs_runc
def test_the_command_line(run_kavach: Runner, start_kavach: Callable[..., Running], host: Host) -> None:
    running = start_kavach("run", "-b", "runc", "--", "sh", "-c", "echo up; sleep 1000")
    running.wait_for_line()
    [box_id] = host.boxes_of(running.pid)
    listed = json.loads(run_kavach("ps", "--json").stdout)
    [box] = [box for box in listed if box["id"] == box_id]
    assert (box["owner_pid"], box["backend"], box["state"]) == (running.pid, "runc", "running")
    assert box_id.encode() in run_kavach("ps").stdout
    dry = run_kavach("gc", "--dry-run")
    assert dry.returncode == 0
    assert box_id.encode() not in dry.stdout
    for arguments in (["gc", "--json"], ["gc"]):
        assert run_kavach(*arguments).returncode == 0
    assert host.members(box_id), "the owner lives"
    [watchdog] = [pid for pid in host_watchdogs() if running.pid in pid[1]]
    os.kill(watchdog[0], signal.SIGKILL)
    running.end(signal.SIGKILL)
    assert host.until(lambda: not host.members(box_id))
    assert host.cgroups(box_id), "nobody has removed anything so far, so it can be seen that gc does"
    told = json.loads(run_kavach("gc", "--json").stdout)
    assert any(box_id in finding["boxes"] and finding["removed"] for finding in told["findings"])
    assert not host.cgroups(box_id)
    assert box_id.encode() not in run_kavach("ps").stdout


def host_watchdogs() -> list[tuple[int, list[int]]]:
    """Return the watchdogs of this host, and the numbers in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"/kavach-watchdog"):
                found.append((int(entry.name), [int(word) for word in words if word.isdigit()]))
    return found


@pytest.mark.needs_root
@pytest.mark.parametrize("command", ["gc", "ps"])
def test_another_user_is_told(kavach: Path, command: str) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    argv = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", kavach, command]
    done = subprocess.run(argv, check=False, capture_output=True)
    if b"Permission denied" in done.stderr or b"ModuleNotFound" in done.stderr:
        pytest.skip("this installation is not readable by others")
    assert done.returncode == 125
    assert b"root" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0s"), (59, "59s"), (61, "1m"), (7200, "2h"), (200_000, "2d"), (None, "-")]
)
def test_age(seconds: float | None, text: str) -> None:
    assert age(seconds) == text
