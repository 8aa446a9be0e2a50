"""A third party's backend, really built and installed: it works by name, beside one whose module ends the program."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
SAMPLE = PLUGINS / "kavach_backend_sample"

pytestmark = [pytest.mark.needs_runc, pytest.mark.needs_root]

Kavach = Callable[..., "subprocess.CompletedProcess[str]"]


def installer(python: Path) -> list[str]:
    """Return a command that installs into an environment without pip of its own: our pip, or uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q"]
    return ["uv", "pip", "install", "-q", "--python", str(python)]


@pytest.fixture(scope="module")
def kavach_there(tmp_path_factory: pytest.TempPathFactory) -> Kavach:
    """``kavach`` of a throw-away environment that has ours, and the two plugins on top."""
    folder = tmp_path_factory.mktemp("third-party")
    venv.create(folder / "env", symlinks=True, with_pip=False)
    python = folder / "env/bin/python"
    plugins = [str(SAMPLE), str(PLUGINS / "kavach_backend_quits")]
    subprocess.run([*installer(python), "--no-deps", *plugins], check=True, timeout=120)
    ours = sysconfig.get_path("purelib")
    inner = sysconfig.get_path("purelib", vars={"base": str(folder / "env"), "platbase": str(folder / "env")})
    (Path(inner) / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "kavach_core.cli", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)

    return run


def test_a_third_party_s_backend_runs_a_command(kavach_there: Kavach) -> None:
    for _ in range(2):
        done = kavach_there("run", "-b", "sample", "--", "echo", "hi")
        assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


def test_it_is_held_to_the_policy_and_named_in_the_result(kavach_there: Kavach) -> None:
    done = kavach_there(
        "run", "-b", "sample", "--policy", "strict", "--timeout", "5", "--json", "--", "sh", "-c", "id -u; exit 3"
    )
    assert done.returncode == 3
    result = json.loads(done.stdout)
    assert (result["backend"], result["stdout"], result["exit_code"]) == ("sample", "65534\n", 3)
    assert result["score"] == {"declared": 60, "band": "standard"}


def test_the_broken_one_is_listed_with_its_reason(kavach_there: Kavach) -> None:
    done = kavach_there("backends", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    sample, quits = rows["sample"], rows["quits"]
    assert (sample["usable"], sample["distribution"], sample["distribution_version"]) == (
        True,
        "kavach-backend-sample",
        "1.2.3",
    )
    assert sample["base_score"] == 50
    assert not quits["usable"]
    assert quits["distribution"] == "kavach-backend-quits"
    (reason,) = quits["reasons"]
    assert "SystemExit: no licence for this machine" in reason["text"]
    assert reason["remedy"] == "reinstall or remove kavach-backend-quits"
    assert rows["runc"]["usable"]


def test_asking_for_the_broken_one_fails_with_its_reason(kavach_there: Kavach) -> None:
    done = kavach_there("run", "-b", "quits", "--", "echo", "hi")
    assert (done.returncode, done.stdout) == (125, "")
    assert "no licence for this machine" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_is_not_held_up_by_the_broken_one(kavach_there: Kavach) -> None:
    done = kavach_there("run", "--", "echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n")


def test_a_backend_takes_less_than_150_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in SAMPLE.rglob("*.py")) < 150
