"""What works here, told truthfully: ``kavach backends``, ``kavach doctor``, and what ``auto`` takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kavach_gvisor.backend
import kavach_oci.backend
import pytest

import kavach_core as kavach_api
from kavach_core.capabilities import ALL

if TYPE_CHECKING:
    from tests.conftest import Runner

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = {"gvisor": "runsc", "crun": "crun", "runc": "runc"}


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all runtimes away from this process."""
    monkeypatch.setattr(kavach_oci.backend, "_program", lambda _: None)
    monkeypatch.setattr(kavach_gvisor.backend, "_program", lambda: None)


@pytest.mark.needs_runc
@pytest.mark.needs_crun
@pytest.mark.needs_runsc
def test_backends(run_kavach: Runner) -> None:
    done = run_kavach("backends", "--json")
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0
    assert rows.keys() >= {"gvisor", "crun", "runc", "oci"}
    for name, program in PROGRAMS.items():
        row = rows[name]
        assert row["usable"] is True
        assert row["path"] == shutil.which(program, path=SYSTEM_PATH)
        assert row["version"]
        assert row["version"][0].isdigit()
        assert set(row["capabilities"]) <= ALL
        assert row["distribution"].startswith("kavach-")
    scores = [row["base_score"] for row in rows.values()]
    assert scores == sorted(scores, reverse=True)
    assert rows["gvisor"]["details"]["platform"] in {"systrap", "ptrace", "kvm"}


@pytest.mark.needs_runc
def test_doctor(run_kavach: Runner) -> None:
    done = run_kavach("doctor", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["usable"] is True
    findings = {finding["what"]: finding for finding in answer["findings"]}
    assert {"python", "privileges", "user namespaces", "cgroups", "backend runc"} <= findings.keys()
    assert findings["privileges"]["found"] == "root"
    assert findings["backend runc"]["ok"] is True
    assert all(finding.keys() == {"what", "ok", "found", "remedy"} for finding in findings.values())


@pytest.mark.needs_runc
def test_tables_for_people(run_kavach: Runner) -> None:
    for command in ("backends", "doctor"):
        done = run_kavach(command)
        assert done.returncode == 0
        assert b"runc" in done.stdout
        assert not done.stderr


@pytest.mark.needs_runsc
def test_auto_takes_the_strongest(run_kavach: Runner) -> None:
    done = run_kavach("run", "--json", "--", "uname", "-r")
    answer = json.loads(done.stdout)
    assert (answer["backend"], answer["exit_code"]) == ("gvisor", 0)
    explicit = run_kavach("run", "-b", "auto", "--summary", "--", "true")
    assert b"backend gvisor" in explicit.stderr


@pytest.mark.needs_runc
async def test_auto_takes_the_next_where_the_strongest_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kavach_gvisor.backend, "_program", lambda: None)
    async with kavach_api.open_sandbox() as sandbox:
        assert sandbox.backend in {"crun", "oci", "runc"}
        assert (await sandbox.exec("true")).ok


@pytest.mark.usefixtures("no_runtime")
async def test_nothing_that_works_is_an_error_and_no_fake() -> None:
    with pytest.raises(kavach_api.NoBackendAvailable) as caught:
        async with kavach_api.open_sandbox():
            pass
    for name, program in PROGRAMS.items():
        assert name in str(caught.value)
        assert f"{program} is not installed" in str(caught.value)
    assert caught.value.hint is not None
    assert "kavach doctor" in caught.value.hint


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("name", [*PROGRAMS, "oci"])
async def test_a_named_backend_without_its_runtime_is_an_error(name: str) -> None:
    with pytest.raises(kavach_api.CreateError) as caught:
        async with kavach_api.open_sandbox(backend=name):
            pass
    assert "is not installed" in str(caught.value)
    assert caught.value.hint is not None


def test_a_table_that_nobody_reads(kavach: Path) -> None:
    """``kavach doctor | true``: no traceback, and the status that a shell shows for SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([kavach, "doctor"], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
