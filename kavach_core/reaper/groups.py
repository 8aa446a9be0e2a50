"""Cgroups by their directories: who is in them, killing those, removing them. In every hierarchy, whatever is below."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DEEPEST = 8
_READ_BYTES = 16_384


def members(directory: str) -> list[int]:
    """Return the host's ids of the processes that are in one group itself."""
    try:
        file = os.open(f"{directory}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    text = b""
    try:
        while part := os.read(file, _READ_BYTES):
            text += part
    except OSError:  # it has just been removed, and nobody is in it
        return []
    finally:
        os.close(file)
    # 0 stands for a process of another pid namespace, which cannot be ours.
    return [int(word) for word in text.split() if word != b"0"]


def kill_member(pid: int, name: str) -> None:
    """Kill ``pid`` if it is in the group ``name`` or below it."""
    handle = open_member(pid, name)
    if handle is None:
        return
    kill(handle)
    os.close(handle)


def kill(handle: int) -> None:
    """Send SIGKILL to the process of a pidfd; that it has ended meanwhile is what was wanted."""
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return


def open_member(pid: int, name: str) -> int | None:
    """Return a pidfd of ``pid`` if it is in the group ``name`` or below it; the caller closes it.

    The number alone may have gone to another process.
    """
    try:
        handle = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as membership:
            if any(f"/{name}/" in f"{line}/" for line in membership.read().splitlines()):
                return handle
    except (FileNotFoundError, ProcessLookupError):
        os.close(handle)  # it ended meanwhile
        return None
    os.close(handle)
    return None


def end_group(roots: Sequence[str], name: str) -> list[str]:
    """Kill all that is in the group ``name`` or below, and remove what is empty. Return the directories still there.

    One round: the kernel takes a moment to let go of a process, so it is to be repeated until nothing is left.
    """
    for root in roots:
        for directory in _bottom_up(f"{root}/{name}", 0):
            for pid in members(directory):
                kill_member(pid, name)
            _thaw(directory)
    return remove_group(roots, name)


def remove_group(roots: Sequence[str], name: str) -> list[str]:
    """Remove the group ``name``, with what is below, where nobody is in it. Return the directories still there."""
    left = []
    for root in roots:
        if not remove_directory(f"{root}/{name}"):
            left += [path for path in _bottom_up(f"{root}/{name}", 0) if not remove_directory(path)]
    return left


def _bottom_up(directory: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for path in below if depth < _DEEPEST else ():
        yield from _bottom_up(path, depth + 1)
    yield directory


def _thaw(directory: str) -> None:
    """Let who is frozen take the signal that ends him, which version 1 holds back."""
    try:
        state = os.open(f"{directory}/freezer.state", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # another hierarchy, or gone
    try:
        os.write(state, b"THAWED")
    except OSError:
        return
    finally:
        os.close(state)


def remove_directory(path: str) -> bool:
    """Remove one empty directory; True when it is not there any more."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
