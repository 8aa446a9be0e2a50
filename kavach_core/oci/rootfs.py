"""The root file system of a box: the host's own programs, or a directory of the caller's, both read-only.

Neither is ever written to, not even for a mount point: where a mount point is missing, the root is composed,
which means that a skeleton of our own holds the mount points and what the caller gave is bound into it entry
by entry.
"""

from __future__ import annotations

import functools
import hashlib
import stat
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import frozen

from kavach_core.abc import HostToolchain, RootSource
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.oci.workspace import fingerprint, shared

AGENT_PATH: Final = "/dev/.kavach-agent"
"""Where a box has its agent: below /dev, which is the box's own tmpfs, so that no root needs a mount point for it."""

WRITABLE_DIRECTORIES: Final = ("/tmp", "/home", "/work")  # noqa: S108 - paths inside the box

_HOST_PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_HOST_SETTINGS: Final = ("ld.so.cache", "localtime")
_HOST_SETTING_DIRECTORIES: Final = ("alternatives", "ssl/certs")
_MAX_ENTRIES: Final = 64
_MAX_LINKS: Final = 40
_MODE_OF_TMP: Final = 0o1777

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


def host_toolchain_sources() -> tuple[Path, ...]:
    """Return the paths of the host that decide what its toolchain's skeleton looks like."""
    return (*(Path("/") / name for name in _HOST_PROGRAMS), *(Path("/etc") / name for name in _HOST_SETTINGS))


@functools.cache
def _host_toolchain() -> RootLayout:
    programs = [Path("/") / name for name in _HOST_PROGRAMS]
    settings = [Path("/etc") / name for name in _HOST_SETTINGS]
    directories = [name for name in _HOST_SETTING_DIRECTORIES if (Path("/etc") / name).is_dir()]

    def make(skeleton: Path) -> None:
        _fill_skeleton(skeleton)
        for program in programs:
            _adopt(program, skeleton)
        for name, text in _ETC.items():
            _write_file(skeleton / "etc" / name, text.encode())
        for setting in filter(Path.is_file, settings):
            _write_file(skeleton / "etc" / setting.name, setting.read_bytes())
        for name in directories:
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                _make_directory(skeleton / "etc" / parent)
            _make_directory(skeleton / "etc" / name)
        (skeleton / "var" / "tmp").symlink_to("/tmp")  # noqa: S108 - inside the box

    skeleton = shared(f"host-root-{fingerprint(*host_toolchain_sources(), Path(__file__))}", make)
    binds = [bind for program in programs for bind in _binds(program)]
    binds += [Bind(source=Path("/etc") / name, target=f"/etc/{name}") for name in directories]
    return RootLayout(path=skeleton, binds=tuple(binds), writable=WRITABLE_DIRECTORIES)


def _write_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)


def _from_directory(path: Path, *, compose: bool) -> RootLayout:
    for directory in (path, *path.parents):
        # The box's ids are nobody's on the host, so what they may enter is what others may.
        if not directory.stat().st_mode & stat.S_IXOTH:
            hint = f"chmod o+x {directory}, or move it"
            raise ConfigError([FieldProblem("rootfs", f"{str(directory)!r} is closed to other users", hint)])
    for name in ("dev", "proc", "sys", "tmp", "etc"):
        # A runtime that mounts onto a link can be led out of the root: CVE-2021-30465, CVE-2026-41579, CVE-2026-47766.
        if (path / name).is_symlink():
            raise ConfigError([FieldProblem("rootfs", f"/{name} in it is a symbolic link", "make it a directory")])
    # runc gives the tmpfs the mode of its mount point, whatever mode the mount asks for.
    open_tmp = (path / "tmp").is_dir() and stat.S_IMODE((path / "tmp").stat().st_mode) == _MODE_OF_TMP
    if not compose and open_tmp and all((path / name).is_dir() for name in ("dev", "proc")):
        return RootLayout(path=path, binds=(), writable=("/tmp",))  # noqa: S108 - inside the box
    return _compose(path)


def _compose(path: Path) -> RootLayout:
    entries = sorted(path.iterdir())
    if len(entries) > _MAX_ENTRIES:
        raise ConfigError([FieldProblem("rootfs", f"has {len(entries)} entries", "create /dev, /proc and /tmp in it")])
    wanted = [entry for entry in entries if entry.name not in {"dev", "proc", "sys", *_writable_names()}]

    def make(skeleton: Path) -> None:
        _fill_skeleton(skeleton)
        for entry in wanted:
            _adopt(entry, skeleton)

    skeleton = shared(f"root-{fingerprint(path)}-{_digest(wanted)}", make)
    binds = tuple(bind for entry in wanted for bind in _binds(entry))
    return RootLayout(path=skeleton, binds=binds, writable=WRITABLE_DIRECTORIES)


def _digest(entries: list[Path]) -> str:
    """Return a word for what the entries are: a skeleton copies links and mirrors the kinds of the rest."""
    facts = [(entry.name, stat.S_IFMT(entry.lstat().st_mode), _link(entry)) for entry in entries]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _link(path: Path) -> str:
    return str(path.readlink()) if path.is_symlink() else ""


def _writable_names() -> set[str]:
    return {directory.removeprefix("/") for directory in WRITABLE_DIRECTORIES}


def _fill_skeleton(skeleton: Path) -> None:
    for directory in ("dev", "proc", "etc", "run", "root", "var", *_writable_names()):
        _make_directory(skeleton / directory)
    for directory in _writable_names():
        (skeleton / directory).chmod(_MODE_OF_TMP)
    _write_file(skeleton / AGENT_PATH.removeprefix("/"), b"")


def _make_directory(path: Path) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def _adopt(source: Path, skeleton: Path) -> None:
    """Give the skeleton a place for ``source`` under its own name: a link as it is, else something to bind onto."""
    target = skeleton / source.name
    if source.is_symlink():
        if target.is_dir():
            target.rmdir()
        target.symlink_to(source.readlink())
    elif source.is_dir():
        _make_directory(target)
    elif source.is_file():
        _write_file(target, b"")


def _binds(source: Path) -> list[Bind]:
    """Return the bind that shows ``source``; links are in the skeleton, and devices and sockets are not shown."""
    shown = not source.is_symlink() and (source.is_dir() or source.is_file())
    return [Bind(source=source, target=f"/{source.name}")] if shown else []


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
