"""The root file system of a box: the host's own programs, or a directory of the caller's, both read-only.

Neither is ever written to, not even for a mount point: where a mount point is missing, the root is composed,
which means that a skeleton of our own holds the mount points and what the caller gave is bound into it entry
by entry.
"""

from __future__ import annotations

import functools
import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import frozen

from kavach_core.abc import HostToolchain, RootSource
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.oci.workspace import workspace

AGENT_PATH: Final = "/dev/.kavach-agent"
"""Where a box has its agent: below /dev, which is the box's own tmpfs, so that no root needs a mount point for it."""

WRITABLE_DIRECTORIES: Final = ("/tmp", "/home", "/work")  # noqa: S108 - paths inside the box

_HOST_PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_HOST_SETTINGS: Final = ("ld.so.cache", "localtime")
_HOST_SETTING_DIRECTORIES: Final = ("alternatives", "ssl/certs")
_MAX_ENTRIES: Final = 64
_MAX_LINKS: Final = 40

_ETC: Final = {
    "passwd": "root:x:0:0:root:/home:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost kavach\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",
}


@frozen(kw_only=True)
class Bind:
    """A directory or file of the host that appears in the box, read-only."""

    source: Path
    target: str


@frozen(kw_only=True)
class RootLayout:
    """A root that is ready to be booted.

    Attributes:
        path: directory that the runtime takes as root.
        binds: what is bound into it.
        writable: directories that get a private tmpfs each.
    """

    path: Path
    binds: tuple[Bind, ...]
    writable: tuple[str, ...]


def prepare_root(source: RootSource, *, compose: bool = False) -> RootLayout:
    """Make the root of a box out of what the caller asked for.

    Args:
        source: what the caller asked for.
        compose: compose the root even where the directory has the common mount points.

    Raises:
        ConfigError: when the caller's directory cannot be a safe root.
    """
    return _host_toolchain() if isinstance(source, HostToolchain) else _from_directory(source.path, compose=compose)


@functools.cache
def _host_toolchain() -> RootLayout:
    skeleton = _make_skeleton("host-root")
    binds = [bind for name in _HOST_PROGRAMS for bind in _adopt(Path("/") / name, skeleton)]
    etc = skeleton / "etc"
    for name, text in _ETC.items():
        (etc / name).write_text(text)
        (etc / name).chmod(0o644)
    for name in _HOST_SETTINGS:
        if (Path("/etc") / name).is_file():
            shutil.copyfile(Path("/etc") / name, etc / name)
            (etc / name).chmod(0o644)
    for name in _HOST_SETTING_DIRECTORIES:
        if (Path("/etc") / name).is_dir():
            _make_directory(etc / name)
            binds.append(Bind(source=Path("/etc") / name, target=f"/etc/{name}"))
    return RootLayout(path=skeleton, binds=tuple(binds), writable=WRITABLE_DIRECTORIES)


def _from_directory(path: Path, *, compose: bool) -> RootLayout:
    for name in ("dev", "proc", "sys", "tmp", "etc"):
        # A runtime that mounts onto a link can be led out of the root: CVE-2021-30465, CVE-2026-41579, CVE-2026-47766.
        if (path / name).is_symlink():
            raise ConfigError([FieldProblem("rootfs", f"/{name} in it is a symbolic link", "make it a directory")])
    if not compose and all((path / name).is_dir() for name in ("dev", "proc", "tmp")):
        return RootLayout(path=path, binds=(), writable=("/tmp",))  # noqa: S108 - inside the box
    return _compose(path)


def _compose(path: Path) -> RootLayout:
    entries = sorted(entry.name for entry in path.iterdir())
    if len(entries) > _MAX_ENTRIES:
        raise ConfigError([FieldProblem("rootfs", f"has {len(entries)} entries", "create /dev, /proc and /tmp in it")])
    status = path.stat()
    skeleton = _make_skeleton(f"root-{status.st_dev:x}-{status.st_ino:x}", fresh=True)
    wanted = [name for name in entries if name not in {"dev", "proc", "sys", *_writable_names()}]
    binds = tuple(bind for name in wanted for bind in _adopt(path / name, skeleton))
    return RootLayout(path=skeleton, binds=binds, writable=WRITABLE_DIRECTORIES)


def _writable_names() -> set[str]:
    return {directory.removeprefix("/") for directory in WRITABLE_DIRECTORIES}


def _make_skeleton(name: str, *, fresh: bool = False) -> Path:
    skeleton = workspace().path / name
    if fresh and skeleton.exists():
        shutil.rmtree(skeleton)
    _make_directory(skeleton)
    for directory in ("dev", "proc", "etc", "run", "root", "var", *_writable_names()):
        _make_directory(skeleton / directory)
    for directory in _writable_names():
        # runc copies the mode of the mount point over the mode that the tmpfs is mounted with.
        (skeleton / directory).chmod(0o1777)
    agent = skeleton / AGENT_PATH.removeprefix("/")
    agent.touch(mode=0o644)
    (skeleton / "var" / "tmp").symlink_to("/tmp")  # noqa: S108 - inside the box
    return skeleton


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)


def _adopt(source: Path, skeleton: Path) -> list[Bind]:
    """Let the skeleton show ``source`` under its own name: a link is copied, anything else bound."""
    target = skeleton / source.name
    try:
        mode = source.lstat().st_mode
    except FileNotFoundError:
        return []
    if stat.S_ISLNK(mode):
        if not target.is_dir():
            target.symlink_to(source.readlink())
        return []
    if stat.S_ISDIR(mode):
        _make_directory(target)
    elif stat.S_ISREG(mode):
        target.touch(mode=0o644)
    else:
        return []  # devices, sockets and fifos of the host are not shown
    return [Bind(source=source, target=f"/{source.name}")]


def check_directory(layout: RootLayout, directory: str) -> None:
    """Check that the root has ``directory`` before anything is started.

    Raises:
        ConfigError: when it has not.
    """
    if directory in (*layout.writable, "/", "/dev", "/dev/shm"):  # noqa: S108 - inside the box
        return
    if not _resolves(layout, directory):
        raise ConfigError(
            [FieldProblem("cwd", f"no directory {directory!r} in the box", "name one that exists at start")]
        )


def _resolves(layout: RootLayout, directory: str) -> bool:
    """Follow ``directory`` as the box would, with every link read inside the root."""
    todo = [part for part in reversed(directory.split("/")) if part]
    done = PurePosixPath("/")
    links = 0
    while todo:
        part = todo.pop()
        done = done.parent if part == ".." else done / part
        host = _on_host(layout, done)
        try:
            mode = host.lstat().st_mode
        except OSError:
            return False
        if stat.S_ISLNK(mode):
            links += 1
            target = PurePosixPath(host.readlink())
            todo.extend(p for p in reversed(target.parts) if p != "/")
            done = PurePosixPath("/") if target.is_absolute() else done.parent
        elif not stat.S_ISDIR(mode):
            return False
        if links > _MAX_LINKS or str(done) in layout.writable:
            return links <= _MAX_LINKS and not todo
    return True


def _on_host(layout: RootLayout, path: PurePosixPath) -> Path:
    for bind in layout.binds:
        target = PurePosixPath(bind.target)
        if path.is_relative_to(target):
            return bind.source / path.relative_to(target)
    return layout.path / path.relative_to("/")
