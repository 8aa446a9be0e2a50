"""The set-up that every script begins with, run for real on copies of the checkout."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
from checkouts import STAND_INS, Checkout, run


def test_first_set_up_installs_and_later_ones_are_silent(checkout: Checkout) -> None:
    assert "making .venv" in checkout.ensure_ready().stderr
    assert checkout.installed == ["base"]
    assert checkout.ensure_ready().stderr == ""
    checkout.ensure_ready("test", "lint")
    assert checkout.installed == ["base", "test", "lint"]
    assert checkout.ensure_ready("lint").stderr == ""
    assert checkout.ensure_ready("test").stderr == ""


@pytest.mark.parametrize(
    "name",
    ["pyproject.toml", "plugins/kavach_oci/pyproject.toml", "plugins/kavach_guest/agent/agent.c"],
)
def test_a_changed_source_installs_again_into_the_same_venv(ready: Checkout, name: str) -> None:
    with (ready.root / name).open("a") as file:
        file.write("\n")
    assert "making .venv" not in ready.ensure_ready("test").stderr
    assert ready.installed == ["base", "test"] * 2


@pytest.mark.parametrize("lost", [".venv/bin/kavach", ".venv/.kavach-stamp-base", "_bin"])
def test_a_lost_piece_is_installed_again(ready: Checkout, lost: str) -> None:
    if lost == "_bin":
        shutil.rmtree(ready.root / "plugins/kavach_guest/src/kavach_guest/_bin")
    else:
        (ready.root / lost).unlink()
    assert "making .venv" not in ready.ensure_ready().stderr
    assert ready.installed[2:] == ["base"]


def test_a_moved_checkout_gets_a_new_venv(ready: Checkout) -> None:
    (ready.root / ".venv/old").touch()
    moved = Checkout(ready.root.rename(ready.root.parent / "elsewhere"))
    assert "making .venv" in moved.ensure_ready().stderr
    assert not (moved.root / ".venv/old").exists()


def test_a_half_made_venv_is_made_new(checkout: Checkout) -> None:
    killed = checkout.lib("install_part() { kill -KILL $BASHPID; }; ensure_ready")
    assert killed.returncode == -signal.SIGKILL
    (checkout.root / ".venv/old").touch()
    assert "making .venv" in checkout.ensure_ready().stderr
    assert not (checkout.root / ".venv/old").exists()


def test_a_venv_whose_interpreter_is_gone_is_made_new(ready: Checkout) -> None:
    python = ready.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nonexistent/python3")
    assert "making .venv" in ready.ensure_ready().stderr


def test_a_failed_installation_leaves_no_stamp(checkout: Checkout) -> None:
    code = 'install_part() { step pip "installing" bash -c "echo no such thing; exit 9"; }'
    result = checkout.lib(f"{code}; ensure_ready")
    assert result.returncode == 9
    assert "no such thing" in result.stderr
    assert not list((checkout.root / ".venv").glob(".kavach-stamp-*"))


def test_two_set_ups_at_once_install_once(checkout: Checkout) -> None:
    code = f'source "$1/scripts/lib.sh"\n{STAND_INS}\nensure_ready'
    argv = ["bash", "-euo", "pipefail", "-c", code, "bash", str(checkout.root)]
    env = {**os.environ, "SLOW": "1"}
    both = [subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert checkout.installed == ["base"]
    assert sum("waiting for another set-up" in text for text in told) == 1


def test_a_checkout_one_may_not_write_says_so(checkout: Checkout) -> None:
    code = f'source "$1/scripts/lib.sh"\n{STAND_INS}\nensure_ready'
    if os.getuid() != 0:
        checkout.root.chmod(0o555)
    result = run("bash", "-euc", code, "bash", checkout.root, as_nobody=True)
    checkout.root.chmod(0o755)
    assert result.returncode == 1
    assert "cannot write" in result.stderr


def test_an_old_python3_is_passed_over(checkout: Checkout) -> None:
    tools = checkout.root.parent / "tools"
    tools.mkdir()
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    (tools / "python3.12").symlink_to(sys.executable)
    (tools / "dirname").symlink_to(shutil.which("dirname") or "")
    shell = shutil.which("bash") or ""
    code = 'source "$1/scripts/lib.sh"; find_python'
    argv = (shell, "-euc", code, "bash", checkout.root)
    found = run(*argv, env={"PATH": str(tools)})
    assert found.stdout == f"{tools}/python3.12\n", found.stderr
    (tools / "python3.12").unlink()
    none = run(*argv, env={"PATH": str(tools)})
    assert none.returncode == 1
    assert "Python 3.11 or newer" in none.stderr


def test_dependency_groups_may_include_one_another(ready: Checkout) -> None:
    (ready.root / "pyproject.toml").write_text(
        '[dependency-groups]\na = ["one>=1,<2"]\nb = [{ include-group = "a" }, "two [x]>=2"]\n'
    )
    assert ready.lib("group_requirements b").stdout == "one>=1,<2\ntwo [x]>=2\n"


def test_progress_on_a_terminal_is_one_line_rewritten(checkout: Checkout) -> None:
    ours, theirs = pty.openpty()
    code = 'source "$1/scripts/lib.sh"; step pause "taking a nap" sleep 1.2'
    subprocess.run(["bash", "-euc", code, "bash", str(checkout.root)], stderr=theirs, timeout=30, check=True)
    os.close(theirs)
    told = os.read(ours, 65536).decode()
    os.close(ours)
    assert "taking a nap ... 1 s" in told
    assert "\n" not in told
    assert told.endswith("\r\x1b[K")
