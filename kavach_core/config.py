"""The configuration of one sandbox, as the caller writes it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from kavach_core.errors import FieldProblem
from kavach_core.policy import PRESETS, Limits, SandboxPolicy, check_limits
from kavach_core.types import User
from kavach_core.validation import (
    MAX_ID,
    check_absolute_path,
    check_all,
    check_environment,
    check_text,
    checked,
    number,
    optional,
    show,
)

NOBODY = User(uid=65534, gid=65534)
"""Who commands run as unless the caller says otherwise."""

_MAX_GROUPS = 64
_AGENT_IDS = range(64_512, 65_521)
"""The agent's own user and the groups by which it knows the processes of each command."""

_timeout = optional(number(minimum=0.001, maximum=31_536_000, unit="seconds"))


def _check_rootfs(name: str, value: object) -> Iterator[FieldProblem]:
    if not isinstance(value, (str, Path)):
        yield FieldProblem(name, f"{type(value).__name__} is not a path")
        return
    found = list(check_absolute_path(name, str(value)))
    yield from found
    if not found:
        yield from _check_directory(name, str(value))


def _check_directory(name: str, path: str) -> Iterator[FieldProblem]:
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        yield FieldProblem(name, f"{path!r}: {error.strerror}", "name an existing directory")
        return
    if stat.S_ISLNK(mode):
        yield FieldProblem(name, f"{path!r} is a symbolic link", f"write {os.path.realpath(path)!r}")
    elif not stat.S_ISDIR(mode):
        yield FieldProblem(name, f"{path!r} is not a directory")
    elif os.path.samestat(os.lstat(path), os.lstat("/")):
        yield FieldProblem(name, "is the host's own root", "leave it out to see the host's programs, and only those")


def _check_policy(name: str, value: object) -> Iterator[FieldProblem]:
    if not isinstance(value, SandboxPolicy) and not (isinstance(value, str) and value in PRESETS):
        yield FieldProblem(name, f"no preset {show(value)}", f"one of {', '.join(PRESETS)}")


def _check_network(name: str, value: object) -> Iterator[FieldProblem]:
    if value != "none":
        yield FieldProblem(name, f"{show(value)} is not supported", "the only network is 'none'")


def parse_user(text: str) -> User:
    """Parse ``UID``, ``UID:GID``, ``root`` or ``nobody``. The group defaults to the user's number.

    Raises:
        ValueError: when it is none of these, or a number is out of range; the text says which.
    """
    names = {"root": User(uid=0, gid=0), "nobody": NOBODY}
    if text in names:
        return names[text]
    uid, separator, gid = text.partition(":")
    return User(uid=_parse_id(uid), gid=_parse_id(gid if separator else uid))


def _parse_id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a user or group number; write UID, UID:GID, root or nobody")
    if int(text) > MAX_ID:
        raise ValueError(f"{text} is not an id of the box; ids go from 0 to {MAX_ID}")
    return int(text)


def check_user(name: str, value: object) -> Iterator[FieldProblem]:
    """Check a user: numbers that are ids of the box."""
    if not isinstance(value, User):
        yield FieldProblem(name, f"{show(value)} is not a user", "write UID, UID:GID, root or nobody")
        return
    if not isinstance(value.groups, (tuple, list)):
        yield FieldProblem(f"{name}.groups", f"{type(value.groups).__name__} is not a list of ids")
        return
    if len(value.groups) > _MAX_GROUPS:
        yield FieldProblem(f"{name}.groups", f"{len(value.groups)} groups", f"at most {_MAX_GROUPS}")
    wrong = [id_ for id_ in (value.uid, value.gid, *value.groups) if type(id_) is not int or not 0 <= id_ <= MAX_ID]
    for text in dict.fromkeys(map(show, wrong)):
        yield FieldProblem(name, f"{text} is not an id of the box", f"0 to {MAX_ID}")
    taken = [id_ for id_ in (value.uid, value.gid, *value.groups) if id_ not in wrong and id_ in _AGENT_IDS]
    for id_ in dict.fromkeys(taken):
        yield FieldProblem(name, f"{id_} is an id of the agent's", "0 to 64511, or 65521 and above")


def to_user(value: object) -> object:
    """Turn what callers may write for a user into a ``User``; leave what is none for the check to refuse."""
    if isinstance(value, int) and not isinstance(value, bool):
        return User(uid=value, gid=value)
    if isinstance(value, str):
        try:
            return parse_user(value)
        except ValueError:
            return value
    return value


def _check_labels(name: str, value: object) -> Iterator[FieldProblem]:
    if not isinstance(value, Mapping):
        yield FieldProblem(name, f"{type(value).__name__} is not a mapping")
        return
    for key, text in value.items():
        yield from check_text(f"{name}[{show(key)}]", key)
        yield from check_text(f"{name}[{show(key)}]", text)


@frozen(kw_only=True)
class SandboxConfig:
    """What the caller wants of a sandbox. Checked on construction; every bad field is reported at once.

    Attributes:
        backend: name of a backend, or ``auto`` for the strongest that can start a box here.
        rootfs: directory to use as the root file system; None shows the host's own programs, read-only.
        image: reference of an image to use as the root file system; needs an image provider.
        policy: name of a preset, or a policy.
        env: environment of the commands, over the few variables every box sets (PATH, HOME, LANG).
        cwd: working directory of the commands; None = ``/work``, or ``/`` where the root has none.
        user: who the commands run as: ``UID``, ``UID:GID``, ``root``, ``nobody``, or a ``User``; None = the image's
            user, or nobody.
        network: ``none``.
        limits: bounds; each one that is given replaces that of the policy.
        timeout: seconds of wall clock that a command may take unless the call says otherwise; None = no bound.
        labels: the caller's own words about the sandbox; they go to telemetry, never into the box.

    Raises:
        ConfigError: on construction, with every field that was refused.
    """

    backend: str = checked(check_text, default="auto")
    rootfs: Path | None = checked(
        optional(_check_rootfs),
        default=None,
        converter=lambda v: Path(v) if isinstance(v, str) else v,
    )
    image: str | None = checked(optional(check_text), default=None)
    policy: str | SandboxPolicy = checked(_check_policy, default="basic")
    env: Mapping[str, str] = checked(check_environment, factory=dict)
    cwd: str | None = checked(optional(check_absolute_path), default=None)
    user: User | None = checked(optional(check_user), default=None, converter=to_user)
    network: str = checked(_check_network, default="none")
    limits: Limits = checked(check_limits, factory=Limits)
    timeout: float | None = checked(_timeout, default=None)
    labels: Mapping[str, str] = checked(_check_labels, factory=dict)

    def __attrs_post_init__(self) -> None:
        check_all(self, *_one_root(self.rootfs, self.image))


def _one_root(rootfs: object, image: object) -> Iterator[FieldProblem]:
    if rootfs is not None and isinstance(image, str):
        yield FieldProblem("image", "is given beside rootfs", "a sandbox has one root")
