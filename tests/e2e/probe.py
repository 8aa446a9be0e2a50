"""Run inside a box, by ``python3 -`` with this file as input: what a command sees and can do there, as JSON.

Each attempt has a process of its own, so that one that succeeds does not change what the next one finds.
"""

# ruff: noqa: PTH123, SIM115 - one byte of a device, opened in a process that ends
from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

PR_GET_NO_NEW_PRIVS, PR_CAPBSET_READ, PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET = 39, 23, 47, 1
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
CAPABILITIES = 41
libc = ctypes.CDLL(None, use_errno=True)


def attempt(action: Callable[[], object]) -> str:
    """Return ``done``, or the name of the error that ``action`` met."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "done"
        try:
            action()
        except OSError as error:
            text = errno.errorcode[error.errno or 0]
        except ValueError:  # what Python makes of a limit that may not be raised
            text = "EPERM"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def write(directory: str) -> Callable[[], None]:
    """Return an action that makes a file in ``directory``."""

    def action() -> None:
        path = Path(directory) / "kavach-test"
        path.write_text("x")
        path.unlink()

    return action


def call(name: str, *arguments: object) -> Callable[[], None]:
    """Return an action that makes a call of libc."""

    def action() -> None:
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), name)

    return action


def in_user_namespace(action: Callable[[], None]) -> Callable[[], None]:
    """Return ``action`` done with every capability that a user namespace of one's own gives."""

    def both() -> None:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS)()
        action()

    return both


def descriptors() -> dict[str, str]:
    """Return our open descriptors, without the one that lists them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the box may have any python3
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - likewise
        except FileNotFoundError:
            continue
    return found


status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
WRITABLE = ("/tmp", "/home", "/work", "/dev/shm")
READONLY = ("/", "/usr", "/usr/bin", "/etc", "/proc", "/sys", "/run", "/var", "/root")

facts = {
    "environment": dict(os.environ),
    "uids": os.getresuid(),
    "gids": os.getresgid(),
    "groups": os.getgroups(),
    "capabilities": {name: int(value, 16) for name, value in status.items() if name.startswith("Cap")},
    "ambient": [n for n in range(CAPABILITIES) if libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, n, 0, 0) == 1],
    "bounding": [n for n in range(CAPABILITIES) if libc.prctl(PR_CAPBSET_READ, n, 0, 0, 0) == 1],
    "no_new_privs": libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
    "interfaces": [
        line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines() if ":" in line
    ],
    "hostname": socket.gethostname(),
    "descriptors": descriptors(),
    "processes": [
        Path(f"/proc/{name}/stat").read_text().split()[1]
        for name in os.listdir("/proc")  # noqa: PTH208 - likewise
        if name.isdigit()
    ],
    "listings": {
        name: sorted(os.listdir(name))  # noqa: PTH208 - likewise
        for name in ("/", "/etc", "/home", "/root", "/tmp", "/work", "/dev", "/var", "/run")
    },
    "uid_map": Path("/proc/self/uid_map").read_text().split(),
    "limits": {
        name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_NPROC")
    },
    "writes": {directory: attempt(write(directory)) for directory in (*WRITABLE, *READONLY)},
    "attempts": {
        "signal agent": attempt(lambda: os.kill(1, 0)),
        "attach to agent": attempt(call("ptrace", PTRACE_ATTACH, 1, 0, 0)),
        "seize agent": attempt(call("ptrace", PTRACE_SEIZE, 1, 0, 0)),
        "read agent's memory": attempt(lambda: Path("/proc/1/mem").read_bytes()),
        "write agent's memory": attempt(lambda: Path("/proc/1/mem").write_bytes(b"x")),
        "open agent's input": attempt(lambda: os.open("/proc/1/fd/0", os.O_RDONLY | os.O_NONBLOCK)),
        "open agent's output": attempt(lambda: os.open("/proc/1/fd/1", os.O_WRONLY | os.O_NONBLOCK)),
        "write agent's program": attempt(lambda: os.open("/dev/.kavach-agent", os.O_WRONLY)),
        "mount": attempt(call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
        "remount root": attempt(call("mount", None, b"/", None, 32, None)),
        "unmount": attempt(call("umount2", b"/tmp", 2)),
        "write root in user namespace": attempt(in_user_namespace(write("/"))),
        "chroot": attempt(lambda: os.chroot("/tmp")),
        "set hostname": attempt(lambda: socket.sethostname("other")),
        "become root": attempt(lambda: os.setuid(0)),
        "drop groups": attempt(lambda: os.setgroups([])),
        "raw socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
        "reach a network": attempt(lambda: socket.socket().connect(("192.0.2.1", 80))),
        "raise a limit": attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1))),
        "read shadow": attempt(lambda: Path("/etc/shadow").read_bytes()),
        "read kernel memory": attempt(lambda: open("/proc/kcore", "rb").read(1)),
        "read a disk": attempt(
            lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(254, 0)) or open("/tmp/disk", "rb").read(1)
        ),
    },
}
print(json.dumps(facts))  # noqa: T201 - the answer
