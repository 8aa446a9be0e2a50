"""What a killed process leaves of its instance is swept; what a living one has, or one just being made, is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kavach_core.oci.instance import make_instance, remove_instance, sweep

LONG_AGO = 1_000_000_000


def left(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


def test_an_instance_is_made_and_removed(tmp_path: Path) -> None:
    path, lock = make_instance(str(tmp_path))
    assert left(Path(path)) == {"owner", "bundles", "state"}
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {Path(path).name}
    remove_instance(path, lock)
    assert not left(tmp_path)


@pytest.mark.parametrize("parts", [["owner", "bundles", "state"], ["owner", "state"], ["owner", "bundles/kavach"]])
def test_what_has_no_living_owner_is_swept(tmp_path: Path, parts: list[str]) -> None:
    """At whatever moment of its end he was killed."""
    instance = tmp_path / "instance-0"
    for part in parts:
        (instance / part).mkdir(parents=True) if part != "owner" else None
    instance.mkdir(exist_ok=True)
    (instance / "owner").touch()
    sweep(str(tmp_path), [])
    assert not left(tmp_path)


@pytest.mark.parametrize("name", [".instance-0", "instance-0"])
def test_what_never_had_an_owner_is_swept_when_it_is_old(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "state").mkdir(parents=True)
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {name}
    os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    sweep(str(tmp_path), [])
    assert not left(tmp_path)


def test_other_things_are_not_touched(tmp_path: Path) -> None:
    for name in ("ids", "plans", "shared", "instances"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    sweep(str(tmp_path), [])
    assert left(tmp_path) == {"ids", "plans", "shared", "instances"}
