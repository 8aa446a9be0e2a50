"""Plans of earlier ``kavach run`` calls, kept so that the next like it needs to import and probe nothing.

A plan is kept below kavach's own directory, which only root can write, for the very options it was made for.
It is used only while everything it was made from is unchanged: the programs and modules it came from, the
directories in which a newly installed plugin or runtime would appear, the boot of the host. Whatever is in
doubt, the run goes the long way. The kept file names no code to run: it names an entry point, and that is
looked up in the installed distribution.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from binascii import crc32

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    Launcher = Callable[[dict[str, Any], dict[str, Any], list[str]], tuple[int, str]]

GROUP = "kavach_core.launchers"
SWITCH = "KAVACH_KEPT_PLANS"
"""Set to 0 in the environment, no plan is kept or used."""

_BASES = ("/run/kavach", "/dev/shm/kavach", "/var/lib/kavach")  # noqa: S108 - as in oci.workspace
_PROGRAM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MAX_BYTES = 1024 * 1024
_MAX_ARGUMENT_BYTES = 65_536
_MARK = 2
_PARTS = {"launcher", "plan", "request", "backend", "score", "watched"}
_OPTIONS = ("backend", "policy", "env", "cwd", "user", "timeout", "memory", "cpus", "pids", "network")


def is_plain(options: argparse.Namespace) -> bool:
    """Say whether a run is one of those that plans are kept for."""
    special = options.json or options.config or options.rootfs or options.image
    short = bool(options.argv and options.argv[0]) and sum(map(len, options.argv)) * 4 <= _MAX_ARGUMENT_BYTES
    return short and not special and os.geteuid() == 0 and os.environ.get(SWITCH) != "0"


def find(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return what was kept for these options, if it still holds."""
    for base in _BASES:
        kept = _read(_path(base, options))
        if kept is not None:
            return kept if _holds(kept, options) else None
    return None


def _holds(kept: dict[str, Any], options: argparse.Namespace) -> bool:
    if kept.get("key") != _key(options) or not kept.keys() >= _PARTS:
        return False
    return all(stamp(path) == was for path, was in kept["watched"])


def keep(options: argparse.Namespace, base: str, entry: dict[str, Any], watched: list[str]) -> None:
    """Keep what another run with these options can use.

    Args:
        options: what the run was asked for.
        base: kavach's own directory.
        entry: ``launcher`` (name and metadata file of the entry point), ``plan``, ``request``, ``backend``, ``score``.
        watched: paths that have to stay as they are.
    """
    path = _path(base, options)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    stamps = [[name, stamp(name)] for name in sorted({*watched, *sys.path, *_PROGRAM_DIRECTORIES})]
    fresh = f"{path}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump({**entry, "key": _key(options), "watched": stamps}, file)
    os.rename(fresh, path)


def launcher(kept: dict[str, Any]) -> Launcher | None:
    """Return the function that carries out a kept plan, if an installed distribution declares it."""
    name, metadata = kept["launcher"]
    if os.path.dirname(os.path.dirname(metadata)) not in sys.path:
        return None
    target = _declared(metadata, name)
    if target is None:
        return None
    module, _, attribute = target.partition(":")
    found: Launcher = getattr(importlib.import_module(module), attribute)
    return found


def _declared(metadata: str, name: str) -> str | None:
    """Return what the distribution's entry_points.txt says for ``name`` in our group."""
    inside = False
    with open(metadata, encoding="utf-8") as file:
        for line in map(str.strip, file):
            if line.startswith("["):
                inside = line == f"[{GROUP}]"
            elif inside and line.partition("=")[0].strip() == name:
                return line.partition("=")[2].strip()
    return None


def stamp(path: str) -> list[int] | None:
    """Return what changes when a file is replaced or written to, or a directory's entries change; None if not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size]


def _key(options: argparse.Namespace) -> list[Any]:
    with open(_BOOT_ID, encoding="ascii") as file:
        boot = file.read().strip()
    return [_MARK, sys.prefix, sys.version, boot, *(getattr(options, name) for name in _OPTIONS)]


def _path(base: str, options: argparse.Namespace) -> str:
    return f"{base}/plans/{crc32(json.dumps(_key(options)).encode()):08x}.json"


def _read(path: str) -> dict[str, Any] | None:
    """Read a kept file that root alone can have written; None when there is none or it is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid != 0 or status.st_mode & 0o022 or status.st_size > _MAX_BYTES:
            return None
        try:
            kept = json.loads(file.read())
        except (ValueError, RecursionError):
            return None
    return kept if isinstance(kept, dict) else None
