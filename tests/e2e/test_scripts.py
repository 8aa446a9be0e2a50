"""The set-up scripts, run for real on copies of the checkout.

What would cost minutes or the network is left out: the copies' set-up makes a true virtual
environment, but instead of asking pip it notes that it would have.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ("runc", "crun", "runsc")
SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
NOBODY = 65534
NO_RUNTIMES = {"KAVACH_RUNTIME_PATH": "/nonexistent"}

# Sourced after lib.sh: no pip, no network; each installation leaves a line in installed.txt.
STAND_INS = r"""
is_root() { false; }
has_ensurepip() { false; }
find_installer() { :; }
install_part() {
    echo "$1" >>"$ROOT/installed.txt"
    sleep "${SLOW:-0}"
    printf '#!/bin/sh\n' >"$VENV/bin/kavach"
    chmod +x "$VENV/bin/kavach"
    mkdir -p "$ROOT/plugins/kavach_guest/src/kavach_guest/_bin"
    : >"$ROOT/plugins/kavach_guest/src/kavach_guest/_bin/agent"
}
"""


def run(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    as_nobody: bool = False,
) -> subprocess.CompletedProcess[str]:
    if as_nobody and os.getuid() == 0:
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        argv = ("setpriv", *ids, *argv)
    return subprocess.run(
        [str(part) for part in argv],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Checkout:
    """A copy of what the scripts read, in a folder that anybody may enter."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lib(self, code: str, *, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run shell code with lib.sh and the stand-ins sourced."""
        text = f'source "$1/scripts/lib.sh"\n{STAND_INS}\n{code}'
        return run("bash", "-euo", "pipefail", "-c", text, "bash", self.root, env=env)

    def ensure_ready(self, *groups: str) -> subprocess.CompletedProcess[str]:
        """Set up, as every script does first; it must succeed and keep off stdout."""
        result = self.lib(f"ensure_ready {' '.join(groups)}")
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        return result

    @property
    def installed(self) -> list[str]:
        """Every installation so far, in order."""
        note = self.root / "installed.txt"
        return note.read_text().split() if note.exists() else []

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file with its size and time, to compare before and after."""
        found = {}
        for path in self.root.rglob("*"):
            info = path.lstat()
            found[str(path)] = (info.st_size, info.st_mtime_ns)
        return found


def copy_checkout(to: Path) -> Checkout:
    shutil.copytree(ROOT / "scripts", to / "scripts")
    shutil.copy2(ROOT / "pyproject.toml", to)
    for project in (ROOT / "plugins").glob("*/pyproject.toml"):
        (to / "plugins" / project.parent.name).mkdir(parents=True)
        shutil.copy2(project, to / "plugins" / project.parent.name)
    (to / "plugins/kavach_guest/agent").mkdir()
    (to / "plugins/kavach_guest/agent/agent.c").write_text("int main(void) { return 0; }\n")
    return Checkout(to)


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    # Not tmp_path: pytest keeps that closed to other users.
    with tempfile.TemporaryDirectory(prefix="kavach scripts ") as name:
        Path(name).chmod(0o755)
        yield copy_checkout(Path(name) / "my checkout")


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    checkout.ensure_ready("test")
    return checkout


def best_of(times: int, *argv: str | Path) -> float:
    """The least of several durations: another program's work must not fail a test."""
    durations = []
    for _ in range(times):
        start = time.monotonic()
        result = run(*argv)
        durations.append(time.monotonic() - start)
        assert result.returncode == 0, result.stderr
    return min(durations)


# --- install-runtimes -------------------------------------------------------------------------


def test_check_tells_the_truth() -> None:
    result = run(ROOT / "scripts/install-runtimes", "--check")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    all_there = "cgroups" not in rows
    for name in RUNTIMES:
        path = shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")
        if path is None:
            assert "missing" in rows[name]
            all_there = False
            continue
        assert rows[name].endswith(f" {path}")
        version = run(path, "--version").stdout.splitlines()[0].removeprefix(f"{name} version ")
        assert version in rows[name]
        all_there = all_there and "unfit" not in rows[name]
    assert result.returncode == (0 if all_there else 1)
    assert result.stderr == ""


def test_check_changes_nothing_and_reports_what_is_missing(checkout: Checkout) -> None:
    before = checkout.listing()
    script = checkout.root / "scripts/install-runtimes"
    result = run(script, "--check", "--for-tests", env=NO_RUNTIMES)
    assert result.returncode == 1
    for name in (*RUNTIMES, "cc-static"):
        assert any(row.split()[:2] == [name, "missing"] for row in result.stdout.splitlines())
    assert checkout.listing() == before


def test_plain_user_is_told_and_nothing_changes(checkout: Checkout, tmp_path: Path) -> None:
    # One runtime there, two not: only those two are named.
    tools = checkout.root.parent / "tools"
    tools.mkdir()
    (tools / "crun").symlink_to("/bin/true")
    before = checkout.listing()
    result = run(
        checkout.root / "scripts/install-runtimes",
        "--for-tests",
        env={"KAVACH_RUNTIME_PATH": str(tools), "KAVACH_CGROUP_ROOT": str(tmp_path / "none")},
        as_nobody=True,
    )
    assert result.returncode == 0
    assert result.stdout == ""
    assert "missing: runc runsc cc-static busybox\n" in result.stderr
    assert "run as root: scripts/install-runtimes --for-tests" in result.stderr
    assert checkout.listing() == before


def test_an_old_runsc_does_not_count(checkout: Checkout) -> None:
    tools = checkout.root.parent / "tools"
    tools.mkdir()
    for name in RUNTIMES:
        (tools / name).write_text(f"#!/bin/sh\necho '{name} version 0.0~20221219.0'\n")
        (tools / name).chmod(0o755)
    env = {"KAVACH_RUNTIME_PATH": str(tools), "KAVACH_CGROUP_ROOT": "/nonexistent"}
    result = run(checkout.root / "scripts/install-runtimes", "--check", env=env)
    assert result.returncode == 1
    verdicts = {row.split()[0]: "unfit" in row for row in result.stdout.splitlines()}
    assert verdicts == {"runc": False, "crun": False, "runsc": True}


@pytest.mark.parametrize(("controllers", "complains"), [("", False), ("misc\n", False), ("hugetlb misc\n", True)])
def test_hybrid_cgroups_are_seen(checkout: Checkout, controllers: str, *, complains: bool) -> None:
    tree = checkout.root.parent / "cgroup"
    (tree / "unified").mkdir(parents=True)
    (tree / "unified/cgroup.controllers").write_text(controllers)
    script = checkout.root / "scripts/install-runtimes"
    env = {"KAVACH_CGROUP_ROOT": str(tree)}
    assert ("cgroups" in run(script, "--check", env=env).stdout) is complains
    told = run(script, env=env, as_nobody=True).stderr
    assert ("hugetlb" in told) is complains
    assert not (tree / "hugetlb").exists()


def hugetlb_is_v1() -> bool:
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()]
    return any(row[0] == "hugetlb" and row[1] != "0" for row in rows)


@pytest.mark.needs_root
@pytest.mark.skipif(
    os.getuid() != 0 or not hugetlb_is_v1() or not all(map(shutil.which, RUNTIMES)),
    reason="needs root, all runtimes, and hugetlb on cgroup v1",
)
def test_hybrid_cgroups_are_mended(checkout: Checkout) -> None:
    """For real, but on a tree of its own and in a mount namespace that ends with the test."""
    tree = checkout.root.parent / "cgroup"
    (tree / "unified").mkdir(parents=True)
    (tree / "unified/cgroup.controllers").write_text("hugetlb\n")
    code = '"$1/scripts/install-runtimes" && findmnt -no FSTYPE,OPTIONS "$2/hugetlb"'
    result = run(
        *("unshare", "--mount", "bash", "-euc", code, "bash", checkout.root, tree),
        env={"KAVACH_CGROUP_ROOT": str(tree)},
    )
    assert result.returncode == 0, result.stderr
    kind, options = result.stdout.split()
    assert kind == "cgroup"
    assert "hugetlb" in options.split(",")


# --- the set-up --------------------------------------------------------------------------------


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


# --- run and test -------------------------------------------------------------------------------


@pytest.fixture
def recorded(ready: Checkout) -> Checkout:
    """A set-up that stands, with programs in it that show how they were called."""
    show = '#!/bin/sh\npwd\nprintf "[%s]" "$@"\nexit 7\n'
    (ready.root / ".venv/bin/kavach").write_text(show)
    (ready.root / ".venv/bin/python").unlink()
    (ready.root / ".venv/bin/python").write_text(show)
    for name in ("kavach", "python"):
        (ready.root / ".venv/bin" / name).chmod(0o755)
    code = """
    for part in base test; do fingerprint >"$VENV/.kavach-stamp-$part"; done
    # What is missing on this machine is not these tests' business.
    for option in "" --for-tests; do
        runtime_state $option >"$SETUP_DIR/runtimes$option"
    done
    """
    noted = ready.lib(code, env=NO_RUNTIMES)
    assert noted.returncode == 0, noted.stderr
    return ready


def call(*argv: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Not as root: whatever goes wrong here, nothing is installed on this machine.
    return run(*argv, env=NO_RUNTIMES, cwd=cwd, as_nobody=True)


def test_run_passes_its_arguments_and_the_exit_code(recorded: Checkout) -> None:
    elsewhere = recorded.root.parent
    link = elsewhere / "link"
    link.symlink_to(recorded.root / "scripts/run")
    result = call(link, "-b", "runc", "--", "ls", "a  b", "", cwd=elsewhere)
    assert result.stdout == f"{elsewhere}\n[run][--summary][-b][runc][--][ls][a  b][]"
    assert result.stderr == ""
    assert result.returncode == 7


def test_run_without_arguments_runs_a_snippet(recorded: Checkout) -> None:
    result = call(recorded.root / "scripts/run")
    assert "[run][--summary][--][python3][-c][" in result.stdout
    snippet = result.stdout.partition("[-c][")[2].removesuffix("]")
    shown = run(sys.executable, "-c", snippet)
    assert shown.returncode == 0, shown.stderr
    assert f"uid {os.getuid()}" in shown.stdout


def test_test_passes_its_arguments_and_the_exit_code(recorded: Checkout) -> None:
    result = call(recorded.root / "scripts/test", "-k", "a b", cwd=Path("/"))
    assert result.stdout == f"{recorded.root}\n[-m][pytest][-k][a b]"
    assert result.returncode == 7


def test_what_is_missing_is_told_once(recorded: Checkout) -> None:
    setup = recorded.root / ".kavach-setup"
    (setup / "runtimes").unlink()
    setup.chmod(0o777)
    first, second = (call(recorded.root / "scripts/run").stderr for _ in range(2))
    assert "missing: runc crun runsc" in first
    assert second == ""


def test_the_set_up_check_is_quick(ready: Checkout) -> None:
    code = 'source "$1/scripts/lib.sh"; ensure_ready test'
    assert best_of(5, "bash", "-euc", code, "bash", ready.root) < 0.3


@pytest.mark.needs_root
@pytest.mark.skipif(os.getuid() != 0, reason="the boxes need root")
@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv/.kavach-stamp-base").exists(),
    reason="this checkout was not set up by scripts/run or scripts/test",
)
def test_a_second_run_takes_less_than_three_seconds() -> None:
    first = run(ROOT / "scripts/run")
    assert first.returncode == 0, first.stderr
    assert "Hello from the box" in first.stdout
    assert best_of(3, ROOT / "scripts/run", "--", "true") < 3
