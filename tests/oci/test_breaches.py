"""Each protection that the spec asks for is taken away, and the same look from inside that finds it finds it gone.

So each of the checks can fail. They run on runc and crun where the host's kernel is what protects.
"""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from kavach_guest import oci_boot

import kavach_core as kavach_api

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Host

Spec = dict[str, Any]
Change = Callable[[Spec], None]


def without_namespace(name: str) -> Change:
    """Let the box have the host's namespace."""

    def change(spec: Spec) -> None:
        spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space["type"] != name]

    return change


def with_writable_root(spec: Spec) -> None:
    """Let the box write to its root."""
    spec["root"]["readonly"] = False


def with_writable_binds(spec: Spec) -> None:
    """Let the box write to what is bound into it."""
    for mount in spec["mounts"]:
        mount["options"] = [option for option in mount["options"] if option != "ro"]


def without_masks(spec: Spec) -> None:
    """Show all of /proc."""
    spec["linux"]["maskedPaths"] = []


def without_rlimits(spec: Spec) -> None:
    """Let the box have the host's limits."""
    spec["process"]["rlimits"] = []


def without_hostname(spec: Spec) -> None:
    """Let the box be called what runtimes call it."""
    spec["hostname"] = "other"


def with_large_tmp(spec: Spec) -> None:
    """Let the writable directories be of any size."""
    for mount in spec["mounts"]:
        mount["options"] = [option for option in mount["options"] if not option.startswith("size=")]


def with_device(spec: Spec) -> None:
    """Give the box a device of the host, and the right to open it."""
    spec["linux"]["resources"]["devices"].append({"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rwm"})
    spec["mounts"].append(
        {"destination": "/dev/kmsg", "type": "bind", "source": "/dev/kmsg", "options": ["bind", "rw"]}
    )


CASES: list[tuple[str, Change, str, str]] = [
    # what is taken away, how, a script, and what the script prints while it is there
    (
        "mount namespace's read-only root",
        with_writable_root,
        "cat /proc/self/mounts | grep -c '^[^ ]* / [^ ]* ro,'",
        "1",
    ),
    ("network namespace", without_namespace("network"), "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' \\n'", "lo"),
    ("uts namespace's name", without_hostname, "hostname", "kavach"),
    ("masked paths", without_masks, "wc -c </proc/timer_list", "0"),
    ("open files", without_rlimits, "ulimit -Hn; ulimit -n", "1024\n1024"),
    ("size of tmp", with_large_tmp, "df -k /tmp | tail -1 | awk '{print $2}'", str(256 * 1024)),
    ("devices", with_device, "ls /dev/kmsg 2>/dev/null || echo none", "none"),
]


def booted_with(monkeypatch: pytest.MonkeyPatch, change: Change | None) -> None:
    """Let every spec be changed before it is written."""
    build = oci_boot.build_spec
    # The seal is a second lock before what is bound in; here it is the spec's own that is looked at.
    monkeypatch.setattr(oci_boot, "_run_command", lambda runtime, _: runtime.run_command)

    def changed(*arguments: Any, **options: Any) -> Spec:  # noqa: ANN401 - whatever it takes
        spec = copy.deepcopy(build(*arguments, **options))
        if change is not None:
            change(spec)
        return spec

    monkeypatch.setattr(oci_boot, "build_spec", changed)


async def look(backend: str, script: str) -> str:
    """Run a script in a fresh box and return what it printed."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("bash", "-c", script, timeout=20)
    assert not result.timed_out
    return result.stdout.strip()


@pytest.fixture(
    params=[pytest.param("runc", marks=pytest.mark.needs_runc), pytest.param("crun", marks=pytest.mark.needs_crun)]
)
def runtime(request: pytest.FixtureRequest) -> str:
    """Each runtime that leaves the protecting to the host's kernel."""
    name: str = request.param
    return name


@pytest.mark.parametrize(("what", "change", "script", "protected"), CASES, ids=[case[0] for case in CASES])
async def test_without_it_the_same_look_sees_the_difference(  # noqa: PLR0913, PLR0917 - a row of the table
    monkeypatch: pytest.MonkeyPatch, runtime: str, what: str, change: Change, script: str, protected: str
) -> None:
    assert await look(runtime, script) == protected, what
    booted_with(monkeypatch, change)
    assert await look(runtime, script) != protected, what


async def test_bound_directories_are_read_only_by_their_own_mounts(
    monkeypatch: pytest.MonkeyPatch, runtime: str, open_path: Path
) -> None:
    """With the option taken away a write to what everybody may write to comes through to the host."""
    script = "touch /open/file 2>/dev/null && echo written || echo refused"
    for name in ("usr", "open"):
        (open_path / name).mkdir()
    (open_path / "open").chmod(0o777)
    for link in ("bin", "lib", "lib64"):
        (open_path / link).symlink_to(f"usr/{link}")

    def with_the_hosts_usr(spec: Spec) -> None:
        for mount in spec["mounts"]:
            if mount["destination"] == "/usr":
                mount["source"] = "/usr"

    def and_writable(spec: Spec) -> None:
        with_the_hosts_usr(spec)
        with_writable_binds(spec)

    answers = []
    for change in (with_the_hosts_usr, and_writable):
        with monkeypatch.context() as patch:
            booted_with(patch, change)
            async with kavach_api.open_sandbox(backend=runtime, rootfs=open_path) as sandbox:
                answers.append((await sandbox.shell(script, timeout=20)).stdout.strip())
    assert answers == ["refused", "written"]
    assert (open_path / "open" / "file").exists()


async def test_host_processes_are_out_of_sight_by_the_pid_namespace(
    monkeypatch: pytest.MonkeyPatch, runtime: str, host: Host
) -> None:
    """Without it the box's first process is not process 1, and kavach does not take that for a box."""
    script = "ls /proc | grep -c '^[0-9]*$'"
    assert int(await look(runtime, script)) < 10
    booted_with(monkeypatch, without_namespace("pid"))
    with pytest.raises(kavach_api.KavachError):
        await look(runtime, script)
    assert host


async def test_ids_are_the_hosts_without_the_user_namespace(
    monkeypatch: pytest.MonkeyPatch, runtime: str, host: Host
) -> None:
    async def owner() -> int:
        async with kavach_api.open_sandbox(backend=runtime) as sandbox:
            return max(int(host.status(pid)["Uid"].split()[0]) for pid in host.members(sandbox.id))

    assert await owner() >= 0x4000_0000

    def no_user_namespace(spec: Spec) -> None:
        without_namespace("user")(spec)

    booted_with(monkeypatch, no_user_namespace)
    try:
        assert await owner() < 0x4000_0000
    except kavach_api.CreateError as error:
        assert "user namespace" in str(error) or "mapping" in str(error).lower()  # noqa: PT017 - either will do


AGENT_KEEPS = "the agent sets this for each command itself, so the box is safe without the spec's help"


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("noNewPrivileges", False, "NoNewPrivs:\t1"),
        (
            "capabilities",
            {
                kind: ["CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN"]
                for kind in ("bounding", "effective", "permitted", "inheritable")
            },
            "CapBnd:\t0000000000000000",
        ),
    ],
)
async def test_what_the_agent_sees_to_itself(
    monkeypatch: pytest.MonkeyPatch, runtime: str, field: str, value: object, line: str
) -> None:
    """Two locks on one door: without the spec's, the agent's still holds."""

    def change(spec: Spec) -> None:
        spec["process"][field] = value

    booted_with(monkeypatch, change)
    assert line in await look(runtime, "cat /proc/self/status"), AGENT_KEEPS


@pytest.mark.parametrize(("sealed", "answer"), [(True, "refused"), (False, "written")])
async def test_the_seal_holds_for_what_is_mounted_below(
    monkeypatch: pytest.MonkeyPatch, runtime: str, open_path: Path, *, sealed: bool, answer: str
) -> None:
    """The runtime makes the root read-only, and not a file system of the host that is mounted below it."""
    for name in ("usr", "below", "dev", "proc", "tmp"):
        (open_path / name).mkdir()
    (open_path / "tmp").chmod(0o1777)
    for link in ("bin", "lib", "lib64"):
        (open_path / link).symlink_to(f"usr/{link}")
    if not sealed:
        monkeypatch.setattr(oci_boot, "_run_command", lambda runtime, _: runtime.run_command)
    with ExitStack() as mounts:
        for source, target in ((["--bind", "/usr"], "usr"), (["-t", "tmpfs", "-o", "mode=1777", "tmpfs"], "below")):
            subprocess.run(["mount", *source, open_path / target], check=True)  # noqa: ASYNC221 - does not wait
            mounts.callback(subprocess.run, ["umount", open_path / target], check=True)
        async with kavach_api.open_sandbox(backend=runtime, rootfs=open_path) as sandbox:
            result = await sandbox.shell("touch /below/x 2>/dev/null && echo written || echo refused")
    assert result.stdout.strip() == answer
