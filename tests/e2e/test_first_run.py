"""The first run after a boot: whatever the umask of root, and whoever was quicker to make a directory of our name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kavach_core.cli import kept_plans
from kavach_core.errors import CreateError
from kavach_core.oci import workspace

IN_A_NEW_RUN = "mount -t tmpfs -o mode=755 tmpfs /run; mount -t tmpfs -o mode=1777 tmpfs /dev/shm; cd /; "


def as_after_a_boot(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of bash where nobody has used kavach so far, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    command = [unshare, "-m", "bash", "-euc", IN_A_NEW_RUN + script, "bash", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("mask", ["022", "027", "077", "0777"])
def test_root_may_have_any_umask(kavach: Path, backend: str, mask: str) -> None:
    """Both ways: the first run makes all there is, the second does as the first did."""
    script = """
        umask "$1"; "$2" run -b "$3" -- sh -c 'umask; ls /etc/ssl/certs >/dev/null; echo long'
        "$4" -X importtime "$2" run -b "$3" -- sh -c 'umask; echo short'
    """
    done = as_after_a_boot(script, mask, kavach, backend, sys.executable)
    assert done.stdout == "0022\nlong\n0022\nshort\n", done.stderr
    assert "trio" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.needs_crun
def test_directories_that_a_umask_closed_are_opened(kavach: Path) -> None:
    """Some other version, or another tool of ours, may have made them so."""
    script = 'mkdir -pm 700 /run/kavach /run/kavach/shared; "$1" run -b crun -- echo hi; stat -c %a /run/kavach'
    done = as_after_a_boot(script, kavach)
    assert done.stdout == "hi\n711\n", done.stderr


EVIL = "#!/bin/sh\n: > /run/proof\n"


@pytest.mark.needs_crun
def test_a_plan_that_another_user_has_planted_is_not_used(kavach: Path, open_path: Path) -> None:
    """Root has downloaded it from a box; the other user makes a link of our name to where it lies."""
    script = """
        "$1" run -b crun --memory 123M -- true
        mkdir -p "$2/results"; mv /run/kavach/plans "$2/results/"; rm -r /run/kavach
        file=$(echo "$2"/results/plans/*.json)
        "$3" -c "import json, sys; path = sys.argv[1]; kept = json.load(open(path))
kept['plan']['watchdog'] = sys.argv[2]; json.dump(kept, open(path, 'w'))" "$file" "$2/evil"
        setpriv --reuid=65534 --regid=65534 --clear-groups ln -s "$2/results" /dev/shm/kavach
        "$1" run -b crun --memory 123M -- echo hi
        test ! -e /run/proof && echo no proof
    """
    evil = open_path / "evil"
    evil.write_text(EVIL)
    evil.chmod(0o755)
    done = as_after_a_boot(script, kavach, open_path, sys.executable)
    assert done.stdout == "hi\nno proof\n", done.stderr


PLAIN = ["run", "-b", "x", "--", "true"]


class Planted:
    """A kept plan, and what leads to it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        parts = {"launcher": ["agent", "/x"], "plan": {}, "request": {"env": []}, "backend": "x", "score": "1"}
        kept_plans.keep(PLAIN, str(base), {**parts, "summary": False}, [])
        (self.file,) = (base / "plans").iterdir()

    def is_used(self) -> bool:
        return kept_plans.find(PLAIN) is not None


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    base = tmp_path / "shm" / "kavach"
    base.mkdir(parents=True)
    (tmp_path / "shm").chmod(0o1777)
    monkeypatch.setattr(kept_plans, "_BASES", (str(base),))
    planted = Planted(base)
    assert planted.is_used()
    return planted


@pytest.mark.needs_root
def test_no_link_leads_to_a_plan(planted: Planted) -> None:
    for link in (planted.base, planted.base / "plans", planted.file):
        elsewhere = planted.base.parent / "elsewhere"
        link.rename(elsewhere)
        link.symlink_to(elsewhere)
        assert not planted.is_used(), link
        link.unlink()
        elsewhere.rename(link)
    assert planted.is_used()


@pytest.mark.needs_root
def test_nobody_else_can_have_put_a_plan_there(planted: Planted) -> None:
    for path in (planted.base, planted.base / "plans", planted.file):
        mode = path.stat().st_mode
        for bit in (0o020, 0o002):
            path.chmod(mode | bit)
            assert not planted.is_used(), path
        path.chmod(mode)
        os.chown(path, 65534, 0)
        assert not planted.is_used(), path
        os.chown(path, 0, 0)
    assert planted.is_used()


@pytest.mark.needs_root
def test_nobody_else_can_put_another_directory_in_its_place(planted: Planted) -> None:
    above = planted.base.parent
    above.chmod(0o777)  # without the sticky bit whoever likes may rename what is there
    assert not planted.is_used()
    above.chmod(0o1777)
    os.chown(above, 65534, 0)
    assert not planted.is_used()


@pytest.mark.needs_root
@pytest.mark.parametrize("watched", [[], [["/no/such", None]]])
def test_a_plan_that_watches_nothing_never_holds(planted: Planted, watched: list[object]) -> None:
    kept = json.loads(planted.file.read_text())
    planted.file.write_text(json.dumps({**kept, "watched": watched}))
    assert not planted.is_used()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory in which kavach may have its own, open to all as /dev/shm is."""
    place = tmp_path / "shm"
    place.mkdir()
    place.chmod(0o1777)
    monkeypatch.setattr(workspace, "_CANDIDATES", (place,))
    return place


@pytest.mark.needs_root
def test_a_base_is_made_and_found(place: Path) -> None:
    assert workspace.base_directory.__wrapped__() == place / "kavach"
    assert workspace.existing_bases() == [place / "kavach"]


@pytest.mark.needs_root
@pytest.mark.parametrize("plant", ["link", "owner", "writable", "parent", "parent's owner"])
def test_a_base_that_another_user_had_a_hand_in_is_refused(place: Path, plant: str) -> None:
    base, elsewhere = place / "kavach", place / "elsewhere"
    elsewhere.mkdir(mode=0o711)
    if plant == "link":
        base.symlink_to(elsewhere)
    else:
        base.mkdir(mode=0o711)
    if plant == "writable":
        base.chmod(0o733)
    elif plant == "parent":
        place.chmod(0o777)
    elif plant != "link":
        os.chown(base if plant == "owner" else place, 65534, 0)
    assert workspace.existing_bases() == []
    with pytest.raises(CreateError, match="kavach"):
        workspace.base_directory.__wrapped__()
    assert not any(elsewhere.iterdir())
