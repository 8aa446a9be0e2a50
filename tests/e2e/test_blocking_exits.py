"""Interrupts, exits, forks and kills of plain code that has boxes: nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Host

pytestmark = pytest.mark.usefixtures("no_thread_left")

WAIT_SECONDS = 30
PRELUDE = """
import contextlib, os, signal, sys, threading
from kavach_core import blocking
BACKEND = sys.argv[1]
"""


@pytest.fixture
def start_script() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(code: str, backend: str) -> subprocess.Popen[str]:
        quiet = "ignore:This process"  # is multi-threaded: what Python from 3.12 on says of a fork, and we know
        command = [sys.executable, "-W", quiet, "-c", PRELUDE + textwrap.dedent(code), backend]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


WAITING = {
    "exec": "sandbox.exec('sh', '-c', 'trap : INT TERM; sleep 1000; sleep 1000', on_stdout=None)",
    "wait": "sandbox.spawn('sleep', '1000').wait()",
    "receive": "sandbox.spawn('sleep', '1000').stdout.receive_some()",
    "callback": "sandbox.shell('echo; sleep 1000', on_stdout=lambda _: threading.Event().wait())",
    "body": "threading.Event().wait()",
}


@pytest.mark.parametrize("what", WAITING)
def test_an_interrupt_leaves_nothing(
    start_script: Callable[..., subprocess.Popen[str]], backend: str, host: Host, what: str
) -> None:
    code = f"""
    with blocking.open_sandbox(backend=BACKEND) as sandbox:
        print(sandbox.id, flush=True)
        {WAITING[what]}
    """
    process = start_script(code, backend)
    assert process.stdout is not None
    box_id = process.stdout.readline().strip()
    assert host.members(box_id)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not host.members(box_id)
    assert host.until(lambda: not host.cgroups(box_id))


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.3])
def test_an_interrupt_while_it_starts_leaves_nothing(
    start_script: Callable[..., subprocess.Popen[str]], backend: str, delay: float
) -> None:
    """At whatever moment it comes; the fixture that looks for what is left has the say."""
    code = f"""
    threading.Timer({delay}, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    blocking.run("sleep", "1000", backend=BACKEND)
    """
    process = start_script(code, backend)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == -signal.SIGINT, errors


def test_a_block_that_nobody_leaves_ends_with_the_interpreter(
    start_script: Callable[..., subprocess.Popen[str]], backend: str, host: Host
) -> None:
    code = """
    stack = contextlib.ExitStack()
    sandbox = stack.enter_context(blocking.open_sandbox(backend=BACKEND))
    print(sandbox.id)
    """
    process = start_script(code, backend)
    output, errors = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert not host.members(output.strip())


def test_a_forked_child_has_boxes_of_its_own(
    start_script: Callable[..., subprocess.Popen[str]], backend: str, host: Host
) -> None:
    code = """
    with blocking.open_sandbox(backend=BACKEND) as sandbox:
        child = os.fork()
        if not child:
            try:
                sandbox.exec("true")
            except blocking.WrongLoop as error:
                pass
            assert blocking.run("echo", "child", backend=BACKEND).stdout == "child\\n"
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert sandbox.exec("echo", "parent").stdout == "parent\\n"
        print(sandbox.id)
    """.replace("blocking.WrongLoop", "RuntimeError")
    process = start_script(code, backend)
    output, errors = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert not host.members(output.strip())


def test_a_killed_caller_takes_its_boxes_along(
    start_script: Callable[..., subprocess.Popen[str]], backend: str, host: Host, sweep: set[str]
) -> None:
    code = """
    with blocking.open_sandbox(backend=BACKEND) as sandbox:
        print(sandbox.id, flush=True)
        sandbox.exec("sleep", "1000")
    """
    process = start_script(code, backend)
    assert process.stdout is not None
    box_id = process.stdout.readline().strip()
    sweep.add(box_id)
    os.kill(process.pid, signal.SIGKILL)
    assert host.until(lambda: not host.members(box_id), seconds=5)
