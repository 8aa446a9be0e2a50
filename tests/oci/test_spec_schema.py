"""Every spec that is made is one by the JSON schema of the OCI runtime specification, which is in ``schema``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from kavach_core.oci.rootfs import AGENT_PATH, Bind, RootLayout
from kavach_core.oci.spec import SpecInputs, build_spec
from kavach_core.policy import PRESETS, ByteSize, Limits

SCHEMA = Path(__file__).parent / "schema"

LAYOUTS = {
    "plain": RootLayout(path=Path("/srv/root"), binds=(), writable=("/tmp",)),
    "composed": RootLayout(
        path=Path("/run/skeleton"),
        binds=(Bind(source=Path("/usr"), target="/usr"), Bind(source=Path("/a b/ü"), target="/a b")),
        writable=("/tmp", "/home", "/work"),
    ),
}
LIMITS = {
    "none": Limits(),
    "all": Limits(memory=ByteSize(2**30), cpus=0.5, pids=7, open_files=64, tmp=ByteSize(2**20)),
    **{name: policy.limits for name, policy in PRESETS.items()},
}


def validator() -> Draft4Validator:
    """Return a validator of whole configurations, which refer to the other files by name."""
    files = {path.name: json.loads(path.read_text()) for path in SCHEMA.glob("*.json")}
    resources = [(name, Resource.from_contents(content, DRAFT4)) for name, content in files.items()]
    root = {**files["config-schema.json"], "id": "config-schema.json"}
    return Draft4Validator(root, registry=Registry().with_resources(resources))


def spec(layout: str, limits: str, *, cgroup_namespace: bool = True) -> dict[str, Any]:
    """Build a spec and add what each box has of its own."""
    inputs = SpecInputs(
        root=LAYOUTS[layout],
        agent=Path("/run/agent"),
        limits=LIMITS[limits],
        hostname="kavach",
        chooses_errno=True,
        host_counts_processes=cgroup_namespace,
        cgroup_namespace=cgroup_namespace,
    )
    built = build_spec(inputs)
    mapping = [{"containerID": 0, "hostID": 2**30, "size": 65536}]
    built["linux"] = {**built["linux"], "uidMappings": mapping, "gidMappings": mapping, "cgroupsPath": "/kavach-1/box"}
    decoded: dict[str, Any] = json.loads(json.dumps(built))
    return decoded


@pytest.mark.parametrize(("layout", "limits"), list(itertools.product(LAYOUTS, LIMITS)))
@pytest.mark.parametrize("cgroup_namespace", [True, False])
def test_spec_is_valid(layout: str, limits: str, *, cgroup_namespace: bool) -> None:
    built = spec(layout, limits, cgroup_namespace=cgroup_namespace)
    assert [error.message for error in validator().iter_errors(built)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("process", "rlimits", 0, "type"), 1),
        (("process", "noNewPrivileges"), "yes"),
        (("process", "args"), "a b"),
        (("linux", "namespaces", 0, "type"), "other"),
        (("linux", "maskedPaths"), "/proc"),
        (("linux", "uidMappings", 0, "size"), "all"),
        (("mounts", 0, "destination"), 1),
        (("root", "path"), None),
        (("ociVersion",), 1),
    ],
)
def test_the_schema_reaches_every_part(path: tuple[str | int, ...], value: object) -> None:
    """What is wrong is found, so that finding nothing means something."""
    built: Any = spec("composed", "all")
    *way, last = path
    part = built
    for step in way:
        part = part[step]
    part[last] = value
    assert list(validator().iter_errors(built))


def test_nothing_of_the_caller_is_in_it() -> None:
    """Command, environment and user go to the agent later, so a spec says nothing about them."""
    process = spec("composed", "all")["process"]
    assert process["args"] == [AGENT_PATH]
    assert process["env"] == []
    assert process["user"] == {"uid": 0, "gid": 0, "umask": 0o022}
