"""Making directories and removing files of our own: never through a link, and never what is mounted there."""

from __future__ import annotations

import os

_MOUNTS = "/proc/self/mountinfo"
_MOUNT_POINT_FIELD = 4


def make_directory(path: str, mode: int) -> None:
    """Make a directory with this very mode, whatever our caller's umask takes away.

    Raises:
        OSError: when it cannot be made, or is there.
    """
    os.mkdir(path, mode)
    os.chmod(path, mode)


def remove_path(path: str) -> bool:
    """Remove a file, or a directory with all that is in it; True when it is not there any more.

    Nothing may be mounted below it: see ``mounts_below``.
    """
    try:
        os.unlink(path)
    except IsADirectoryError:
        return _remove_directory(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove_directory(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                remove_path(entry.path)
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def mounts_below(path: str) -> list[str]:
    """Return what is mounted at or below ``path``, as this process sees it."""
    with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[_MOUNT_POINT_FIELD] for line in file]
    return [point for point in points if f"{point}/".startswith(f"{path}/")]
