"""Plans of earlier ``kavach run`` calls, kept so that the next like it needs to parse, import and probe nothing.

A plan is kept below kavach's own directory, which only root can write, for the very options it was made for. Another
user may have been quicker to make a directory of that name, so each time it is checked whose that is. A plan is used
only while everything it was made from is unchanged: the programs and modules it came from, the directories in which a
newly installed plugin or runtime would appear, the boot of the host. Whatever is in doubt, the run goes the long way.
The kept file names no code to run: it names an entry point, and that is looked up in the installed distribution. Values
of ``--env`` are not kept; they come from the command line every time.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from binascii import crc32

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Launcher = Callable[[dict[str, Any], dict[str, Any], list[str]], tuple[int, str] | None]

GROUP = "kavach_core.launchers"
SWITCH = "KAVACH_KEPT_PLANS"
"""Set to 0 in the environment, no plan is kept or used."""

_BASES = ("/run/kavach", "/dev/shm/kavach", "/var/lib/kavach")  # noqa: S108 - as in oci.workspace
_PROGRAM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MAX_BYTES = 1024 * 1024
_MAX_ARGUMENT_BYTES = 65_536
_MARK = 4
_PLANS = "plans"
_WRITABLE_BY_OTHERS = 0o022
_STICKY = 0o1000
_PARTS = {"launcher", "plan", "request", "backend", "score", "summary", "watched"}
_END_OF_OPTIONS = "--"
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE)  # a spec is made within the caller's
_MOST_PLANS = 256
_ENV = "--env"


def find(argv: list[str]) -> dict[str, Any] | None:
    """Return what was kept for a command line with these options, if it still holds.

    The ``request`` in it has the variables that this command line sets.
    """
    if not _is_plain(argv):
        return None
    options, env = _without_values(argv)
    key = _key(options)
    for base in _BASES:
        kept = _read(base, _name(key))
        if kept is not None and _holds(kept, key):
            return _with_environment(kept, env)
    return None


def command_of(argv: list[str]) -> list[str]:
    """Return the command of a command line that ``find`` has found something for."""
    return argv[argv.index(_END_OF_OPTIONS) + 1 :]


def is_whole_command(argv: list[str], command: list[str]) -> bool:
    """Say whether a command is what stands after ``--``, and no word of it before: only then are its options apart."""
    return _END_OF_OPTIONS in argv and command_of(argv) == command


def _is_plain(argv: list[str]) -> bool:
    """Say whether a command line is one that plans are kept for, as far as can be told without parsing it."""
    if argv[:1] != ["run"] or _END_OF_OPTIONS not in argv or os.environ.get(SWITCH) == "0" or os.geteuid() != 0:
        return False
    command = command_of(argv)
    return bool(command and command[0]) and sum(map(len, argv)) * 4 <= _MAX_ARGUMENT_BYTES


def _without_values(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the options of a command line into what a plan is kept for and the variables it sets."""
    options: list[str] = []
    env: list[str] = []
    rest = iter(argv[: argv.index(_END_OF_OPTIONS)])
    for word in rest:
        if word == _ENV:
            assignment = next(rest, "")
        elif word.startswith(f"{_ENV}="):
            assignment = word.removeprefix(f"{_ENV}=")
        else:
            options.append(word)
            continue
        options += [_ENV, assignment.partition("=")[0]]
        env.append(assignment)
    return options, env


def _with_environment(kept: dict[str, Any], env: list[str]) -> dict[str, Any] | None:
    """Put the variables of this command line over those of every box; None when one of them is wrong."""
    if any(assignment.find("=") < 1 for assignment in env):
        return None
    variables = dict(assignment.split("=", 1) for assignment in [*kept["request"]["env"], *env])
    kept["request"]["env"] = [f"{name}={value}" for name, value in variables.items()]
    return kept


def _holds(kept: dict[str, Any], key: list[Any]) -> bool:
    if kept.get("key") != key or not kept.keys() >= _PARTS:
        return False
    watched = dict(kept["watched"])
    return watched.keys() >= _always_watched() and all(stamp(path) == was for path, was in watched.items())


def _always_watched() -> set[str]:
    """Return the directories in which a newly installed plugin or runtime would appear."""
    return {*sys.path, *_PROGRAM_DIRECTORIES}


def keep(argv: list[str], base: str, entry: dict[str, Any], watched: list[str]) -> None:
    """Keep what another run with these options can use, if it is one of those that plans are kept for.

    Args:
        argv: the command line of this run.
        base: kavach's own directory.
        entry: ``launcher`` (name and metadata file of the entry point), ``plan``, ``request`` (without the variables of
            ``--env``), ``backend``, ``score``, ``summary``.
        watched: paths that have to stay as they are.
    """
    if not _is_plain(argv):
        return
    key = _key(_without_values(argv)[0])
    directory = f"{base}/{_PLANS}"
    if not os.path.isdir(directory):
        os.makedirs(directory, 0o700, exist_ok=True)  # another run may make it, too
    path = f"{directory}/{_name(key)}"
    stamps = [[name, stamp(name)] for name in sorted({*watched, *_always_watched()})]
    fresh = f"{path}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump({**entry, "key": key, "watched": stamps}, file)
    os.rename(fresh, path)
    _forget_the_oldest(directory)


def _forget_the_oldest(directory: str) -> None:
    """Keep the number of plans bounded, whatever options are used."""
    with os.scandir(directory) as entries:
        plans = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries)
    for _, path in plans[:-_MOST_PLANS]:
        os.unlink(path)


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


def _key(options: list[str]) -> list[Any]:
    with open(_BOOT_ID, encoding="ascii") as file:
        boot = file.read().strip()
    limits = [resource.getrlimit(kind)[1] for kind in _LIMITS]
    return [_MARK, __file__, sys.version, sys.path, boot, limits, options]


def _name(key: list[Any]) -> str:
    return f"{crc32(json.dumps(key).encode()):08x}.json"


def _read(base: str, name: str) -> dict[str, Any] | None:
    """Read a kept file that root alone can have written and put there; None when there is none."""
    try:
        descriptor = _open_kept(base, name)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > _MAX_BYTES:
            return None
        try:
            kept = json.loads(file.read())
        except (ValueError, RecursionError):
            return None
    return kept if isinstance(kept, dict) else None


def _open_kept(base: str, name: str) -> int:
    """Open a kept file, one directory after the other: a check of the file alone says nothing of how it came there.

    Raises:
        OSError: when it is not there, or somebody else could have had a hand in it.
    """
    above = os.stat(os.path.dirname(base))
    if above.st_uid != 0 or (above.st_mode & _WRITABLE_BY_OTHERS and not above.st_mode & _STICKY):
        raise PermissionError
    own = _open_own(base, os.O_DIRECTORY)
    try:
        plans = _open_own(_PLANS, os.O_DIRECTORY, own)
    finally:
        os.close(own)
    try:
        return _open_own(name, os.O_NONBLOCK, plans)
    finally:
        os.close(plans)


def _open_own(path: str, flags: int, directory: int | None = None) -> int:
    """Open what root has made and no one else can write to; no link is followed.

    Raises:
        OSError: when it is no such thing.
    """
    descriptor = os.open(path, flags | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    status = os.fstat(descriptor)
    if status.st_uid != 0 or status.st_mode & _WRITABLE_BY_OTHERS:
        os.close(descriptor)
        raise PermissionError
    return descriptor
