"""``kavach run``: a command's status and streams are those it would have without us."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

EVERY_BYTE = bytes(range(256)) * 400  # more than one pipe buffer, with NUL, newlines and what is no UTF-8


def test_output_and_success(run_kavach: Runner, backend: str) -> None:
    done = run_kavach("run", "-b", backend, "--", "python3", "-c", "print(6*7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"42\n", b"")


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)])
def test_status_is_the_commands(run_kavach: Runner, backend: str, script: str, status: int) -> None:
    done = run_kavach("run", "-b", backend, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


@pytest.mark.parametrize(("program", "status"), [("/no/such", 127), ("no-such-program", 127), ("/etc/passwd", 126)])
def test_status_of_what_cannot_be_started(run_kavach: Runner, backend: str, program: str, status: int) -> None:
    done = run_kavach("run", "-b", backend, "--", program)
    assert done.returncode == status
    assert program.encode() in done.stderr
    assert not done.stdout


def test_streams(run_kavach: Runner, backend: str) -> None:
    """Every byte of input arrives, output and error stay apart, and fork works more than once."""
    script = "cat; echo error >&2; /bin/echo one; /bin/echo two"
    done = run_kavach("run", "-b", backend, "--", "sh", "-c", script, stdin=EVERY_BYTE)
    assert done.returncode == 0
    assert done.stdout == EVERY_BYTE + b"one\ntwo\n"
    assert done.stderr == b"error\n"


def test_closed_input(kavach: Path, backend: str) -> None:
    """Our own descriptor 0 may be closed: then the command reads nothing, and no other file takes its place."""
    shell = ["sh", "-c", 'exec "$0" "$@" <&-', str(kavach), "run", "-b", backend, "--", "sh", "-c", "cat; echo done"]
    done = subprocess.run(shell, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


@pytest.mark.parametrize("script", ["exec yes", "while echo a; do sleep 0.05; done; exec sleep 1000"])
def test_output_that_nobody_reads_ends_the_command(kavach: Path, backend: str, script: str) -> None:
    """As in a pipeline: ``kavach run ... | head -c1``. The command is ended by what it writes, not by the deadline."""
    command = [str(kavach), "run", "-b", backend, "--timeout", "50", "--", "sh", "-c", script]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        assert os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.wait(timeout=30) == 141
