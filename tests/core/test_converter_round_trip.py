"""Configuration to plain data and back unchanged; any plain data is a configuration or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from kavach_core.config import SandboxConfig
from kavach_core.converter import structure, unstructure
from kavach_core.errors import ConfigError
from kavach_core.policy import PRESETS, ByteSize, Limits, SandboxPolicy
from kavach_core.types import ExecResult, Outcome, StartFailure, User

MIB = 1024**2

names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=8)
keys = st.text(st.characters(blacklist_characters="\0=", blacklist_categories=["Cs"]), min_size=1, max_size=8)
sizes = st.none() | st.integers(MIB, 1024**4).map(ByteSize)
counts = st.none() | st.integers(1, 1_000_000)
ids = st.integers(0, 64_511) | st.integers(65_521, 65_535)
limits = st.builds(
    Limits, memory=sizes, tmp=sizes, pids=counts, open_files=counts, cpus=st.none() | st.floats(0.01, 4096)
)
roots = st.sampled_from([{}, {"rootfs": Path("/usr")}, {"rootfs": Path("/tmp")}]) | st.fixed_dictionaries(
    {"image": names}
)
configs = st.builds(
    lambda root, **fields: SandboxConfig(**root, **fields),
    root=roots,
    backend=names,
    policy=st.sampled_from(list(PRESETS)) | st.builds(SandboxPolicy, name=names, limits=limits),
    env=st.dictionaries(keys, names),
    cwd=st.sampled_from([None, "/", "/work", "/a b"]),
    user=st.none() | st.builds(User, uid=ids, gid=ids, groups=st.lists(ids, max_size=3).map(tuple)),
    limits=limits,
    timeout=st.none() | st.floats(0.001, 31_536_000),
    labels=st.dictionaries(names, names),
)


@given(configs)
def test_a_configuration_goes_there_and_back(config: SandboxConfig) -> None:
    data = unstructure(config)
    assert structure(data, SandboxConfig) == config
    assert structure(json.loads(json.dumps(data)), SandboxConfig) == config


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
near_misses = st.dictionaries(
    st.sampled_from([field.name for field in attrs.fields(SandboxConfig)]) | st.text(max_size=6),
    plain | st.dictionaries(st.sampled_from(["uid", "gid", "groups", "memory", "pids", "name", "limits"]), plain),
    max_size=6,
)


@given(near_misses)
def test_any_plain_data_gives_a_configuration_or_a_config_error(data: dict[str, Any]) -> None:
    try:
        structure(data, SandboxConfig)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either end is right


def test_a_result_can_be_written_as_json() -> None:
    result = ExecResult(
        argv=("x",),
        outcome=Outcome.START_FAILED,
        exit_code=127,
        stdout_bytes=b"\xff",
        start_failure=StartFailure(stage="program", errno=2),
    )
    data = json.loads(json.dumps(unstructure(result)))
    assert data["outcome"] == "start_failed"
    assert data["stdout_bytes"] == "\ufffd"
    assert data["start_failure"] == {"stage": "program", "errno": 2}
