"""``--rootfs DIR``: a directory of the caller's is the root, is not written to, and leads no runtime astray."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kavach_core as kavach_api

if TYPE_CHECKING:
    from tests.conftest import Runner

BUSYBOX = shutil.which("busybox", path="/usr/local/bin:/usr/bin:/bin")

pytestmark = pytest.mark.needs_busybox


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that can be changed of a directory: names, modes, owners, times of change, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else None
        target = os.readlink(path) if path.is_symlink() else None  # noqa: PTH115 - a text, not a path
        facts = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_ctime_ns)
        found[str(path.relative_to(root))] = (*facts, content, target)
    return found


def add_busybox(root: Path, *names: str) -> None:
    """Put busybox into ``root``, and the names by which it is called."""
    (root / "bin").mkdir()
    shutil.copy(str(BUSYBOX), root / "bin" / "busybox")
    for name in names:
        (root / "bin" / name).symlink_to("busybox")


@pytest.fixture
def full(open_path: Path) -> Path:
    """A root with the common directories."""
    add_busybox(open_path, "sh", "ls", "cat", "pwd", "touch", "id")
    for name in ("dev", "proc", "sys", "tmp", "etc", "data"):
        (open_path / name).mkdir()
    (open_path / "etc" / "secret").write_text("for all\n")
    (open_path / "data").chmod(0o777)
    (open_path / "tmp").chmod(0o1777)
    return open_path


@pytest.fixture
def bare(open_path: Path) -> Path:
    """A root that has one static program and nothing else."""
    shutil.copy(str(BUSYBOX), open_path / "busybox")
    return open_path


def test_a_root_with_everything(run_kavach: Runner, backend: str, full: Path) -> None:
    before = snapshot(full)
    script = "pwd; cat /etc/secret; ls /; touch /tmp/x && echo made; touch /data/x || echo refused; id -u"
    done = run_kavach("run", "-b", backend, "--rootfs", full, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["/", "for all"]
    assert {"bin", "data", "dev", "etc", "proc", "tmp"} <= set(lines)

    assert lines[-3:] == ["made", "refused", "65534"]
    assert snapshot(full) == before


def test_a_root_with_one_program(run_kavach: Runner, backend: str, bare: Path) -> None:
    """There is no /proc, /dev, /tmp to mount onto, no shell, no library, no /etc/passwd."""
    before = snapshot(bare)
    for applet, expected in (("id", b"uid=65534"), ("pwd", b"/\n")):
        done = run_kavach("run", "-b", backend, "--rootfs", bare, "--", "/busybox", applet)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)
    listing = run_kavach("run", "-b", backend, "--rootfs", bare, "--", "/busybox", "ls", "/proc/self/fd", "/dev/null")
    assert listing.returncode == 0, listing.stderr
    script = "echo x >/tmp/x && cat /tmp/x; echo x >/x; echo x >>/busybox"
    writes = run_kavach("run", "-b", backend, "--rootfs", bare, "--", "/busybox", "sh", "-c", script)
    assert writes.stdout == b"x\n"
    assert writes.returncode != 0
    assert snapshot(bare) == before


def test_root_of_the_box_cannot_write_to_it_either(run_kavach: Runner, backend: str, full: Path) -> None:
    before = snapshot(full)
    script = "touch /data/x; echo x >/etc/secret; echo x >/bin/busybox; touch /x; ls /data"
    done = run_kavach("run", "-b", backend, "--user", "0", "--rootfs", full, "--", "sh", "-c", script)
    assert done.stdout == b""
    assert snapshot(full) == before


def test_tmp_is_for_everybody_whatever_it_is_in_the_root(run_kavach: Runner, backend: str, full: Path) -> None:
    """A runtime may give a tmpfs the mode of the directory that it covers, unless told otherwise."""
    (full / "tmp").chmod(0o755)
    done = run_kavach("run", "-b", backend, "--rootfs", full, "--", "sh", "-c", "touch /tmp/x && echo made")
    assert done.stdout == b"made\n"


async def test_many_commands_in_one_root(backend: str, full: Path) -> None:
    async with kavach_api.open_sandbox(backend=backend, rootfs=full, cwd="/data") as sandbox:
        assert (await sandbox.exec("pwd")).stdout == "/data\n"
        assert (await sandbox.shell("echo kept >/tmp/file")).ok
        assert (await sandbox.exec("cat", "/tmp/file")).stdout == "kept\n"


@pytest.mark.parametrize("name", ["dev", "proc", "tmp", "etc", "sys"])
def test_links_where_the_runtime_mounts_are_refused(run_kavach: Runner, backend: str, full: Path, name: str) -> None:
    """A mount onto a link would land outside the root: CVE-2021-30465 and its kin."""
    outside = full / "data" / "outside"
    outside.mkdir()
    shutil.rmtree(full / name)
    (full / name).symlink_to("/data/outside")
    done = run_kavach("run", "-b", backend, "--rootfs", full, "--", "sh", "-c", "echo started")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"rootfs" in done.stderr
    assert f"/{name}".encode() in done.stderr
    assert not any(outside.iterdir())


@pytest.mark.parametrize("kind", ["link", "file", "missing", "relative"])
def test_what_is_no_directory_is_refused(run_kavach: Runner, backend: str, full: Path, kind: str) -> None:
    link = full / "data" / "link"
    link.symlink_to(full)
    given = {"link": str(link), "file": str(full / "bin" / "busybox"), "missing": "/no/such", "relative": "some/where"}
    done = run_kavach("run", "-b", backend, "--rootfs", given[kind], "--", "sh", "-c", "echo started")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"kavach: rootfs: ")


def test_a_link_that_leads_out_shows_nothing_of_the_host(run_kavach: Runner, backend: str, full: Path) -> None:
    """Links are followed inside the box, where what they name is not the host's."""
    (full / "out").symlink_to("/etc/shadow")
    (full / "up").symlink_to("../../../../../../etc/shadow")
    done = run_kavach("run", "-b", backend, "--rootfs", full, "--", "sh", "-c", "cat /out /up")
    assert done.returncode == 1
    assert done.stdout == b""


async def test_what_is_mounted_below_a_root_is_read_only_too(backend: str, full: Path) -> None:
    """Runtimes make a mount read-only, and not what is mounted below it."""
    below = full / "data" / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", below], check=True)  # noqa: ASYNC221 - does not wait
    try:
        async with kavach_api.open_sandbox(backend=backend, rootfs=full) as sandbox:
            result = await sandbox.shell("echo x >/data/below/x")
        assert not result.ok
        assert not list(below.iterdir())
    finally:
        subprocess.run(["umount", below], check=True)  # noqa: ASYNC221 - as above
