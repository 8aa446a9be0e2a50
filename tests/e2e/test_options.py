"""What ``kavach run`` can be told: environment, directory, user, configuration file, answers for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import kavach_core as kavach_api

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Runner

IDS = 'echo "$(id -u):$(id -g)"'


def test_environment_and_directory(run_kavach: Runner, backend: str) -> None:
    options = ["--env", "A=1", "--env", "B=x=y z", "--env", "EMPTY=", "--env", "HOME=/tmp", "--cwd", "/tmp"]
    done = run_kavach("run", "-b", backend, *options, "--", "sh", "-c", "pwd; env | sort")
    assert done.returncode == 0, done.stderr
    where, *variables = done.stdout.decode().splitlines()
    assert where == "/tmp"
    expected = {"A=1", "B=x=y z", "EMPTY=", "HOME=/tmp", "LANG=C.UTF-8", "PWD=/tmp"}
    assert {line for line in variables if not line.startswith(("PATH=", "_=", "OLDPWD="))} == expected


async def test_users(backend: str) -> None:
    """Files that one user makes are that user's, in the box's own numbers."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        for user, shown in (
            (1000, "1000:1000"),
            ("1000:1001", "1000:1001"),
            ("root", "0:0"),
            ("nobody", "65534:65534"),
        ):
            result = await sandbox.shell(f"{IDS}; f=/tmp/$$; >$f; stat -c %u:%g $f", user=user, check=True)
            assert result.stdout.split() == [shown, shown]
        groups = await sandbox.exec("id", "-G", user=kavach_api.User(uid=7, gid=8, groups=(9, 10)), check=True)
        assert {8, 9, 10} <= set(map(int, groups.stdout.split()))


@pytest.mark.parametrize(("user", "shown"), [("1000", "1000:1000"), ("1000:1001", "1000:1001"), ("0", "0:0")])
def test_user_of_the_command_line(run_kavach: Runner, backend: str, user: str, shown: str) -> None:
    done = run_kavach("run", "-b", backend, "--user", user, "--", "sh", "-c", IDS)
    assert done.stdout.decode().split() == [shown]


async def test_options_of_a_call_go_over_those_of_the_sandbox(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend, env={"A": "1", "B": "2"}, cwd="/tmp", user=5) as sandbox:
        own = await sandbox.shell("echo $A $B $(pwd) $(id -u)")
        assert own.stdout == "1 2 /tmp 5\n"
        other = await sandbox.shell("echo $A $B $(pwd) $(id -u)", env={"B": "3"}, cwd="/home", user="6:6")
        assert other.stdout == "1 3 /home 6\n"


async def test_files_stay_between_commands_and_not_between_boxes(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        await sandbox.shell("echo kept >/work/file", check=True)
        assert (await sandbox.exec("cat", "/work/file")).stdout == "kept\n"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        assert (await sandbox.exec("ls", "/work")).stdout == ""


def test_configuration_file(run_kavach: Runner, backend: str, tmp_path: Path) -> None:
    """The command line goes over the file, field by field."""
    file = tmp_path / "box.toml"
    file.write_text(
        f'backend = "{backend}"\ncwd = "/tmp"\nuser = "7:8"\n[env]\nA = "file"\nB = "file"\n[limits]\npids = 33\n'
    )
    script = "echo $A $B $(pwd) $(id -u):$(id -g); ulimit -n; ulimit -u"
    done = run_kavach("run", "--config", file, "--env", "B=option", "--cwd", "/home", "--", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    *others, processes = done.stdout.decode().split()
    assert others == ["file", "option", "/home", "7:8", "1024"]
    assert backend != "gvisor" or processes == "33", "elsewhere the cgroup has the bound"


def test_json_result(run_kavach: Runner, backend: str) -> None:
    script = "echo out; echo error >&2; cat; exit 3"
    done = run_kavach("run", "-b", backend, "--json", "--", "sh", "-c", script, stdin=b"in\xff")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 3
    assert (answer["stdout"], answer["stderr"]) == ("out\nin\ufffd", "error\n")
    assert (answer["stdout_total_bytes"], answer["stderr_total_bytes"]) == (7, 6)
    assert (answer["outcome"], answer["truncated"], answer["timed_out"], answer["signal"]) == (
        "nonzero_exit",
        False,
        False,
        None,
    )
    assert answer["argv"] == ["sh", "-c", script]
    assert answer["backend"] == backend
    assert len(answer["sandbox_id"]) == 16
    assert 0 < answer["duration_seconds"] < 60
    assert answer["score"]["declared"] >= 50
    assert answer["score"]["band"] in {"standard", "hardened", "fortress"}


def test_json_of_a_command_that_cannot_be_started(run_kavach: Runner, backend: str) -> None:
    done = run_kavach("run", "-b", backend, "--json", "--", "/no/such")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 127
    assert answer["outcome"] == "start_failed"
    assert answer["start_failure"] == {"stage": "program", "errno": 2}


def test_summary_is_on_standard_error(run_kavach: Runner, backend: str) -> None:
    done = run_kavach("run", "-b", backend, "--summary", "--", "echo", "out")
    assert done.stdout == b"out\n"
    assert backend.encode() in done.stderr
    assert b"exit 0" in done.stderr
