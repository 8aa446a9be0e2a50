"""Forks and exits of a process that has a loop in a thread, without boxes."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.usefixtures("no_loop_left")

SCRIPT_SECONDS = 30
QUIET = "ignore:This process"  # is multi-threaded: what Python from 3.12 on says of a fork, and we know
PRELUDE = """
import contextlib, os, sys, threading, trio
from contextlib import asynccontextmanager, contextmanager
from kavach_core.blocking import calls
from kavach_core.errors import WrongLoop
from kavach_core.portal import loop

@asynccontextmanager
async def box(name="box"):
    try:
        yield name
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
            os.write(1, f"{name} closed\\n".encode())

@contextmanager
def opened(name="box"):
    with calls.lease() as portal, calls.hold(portal, box(name)):
        yield portal
"""


def run_script(code: str, *, seconds: float = SCRIPT_SECONDS) -> str:
    done = subprocess.run(
        [sys.executable, "-W", QUIET, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


FORGOTTEN = """
stack = contextlib.ExitStack()
stack.enter_context(opened())
print("main ends", flush=True)
"""


def test_a_block_that_nobody_leaves_does_not_keep_the_interpreter_from_ending() -> None:
    assert run_script(FORGOTTEN) == "main ends\nbox closed\n"


def test_without_looking_the_exit_would_wait_for_ever() -> None:
    """The breach that the look at the main thread closes."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_script("loop._EXIT_POLL_SECONDS = 1000\n" + FORGOTTEN, seconds=3)


def test_a_block_left_by_an_exit_handler_is_closed_already_and_says_nothing() -> None:
    code = "import atexit\n" + FORGOTTEN + "atexit.register(stack.close)\n"
    assert run_script(code) == "main ends\nbox closed\n"


def test_a_daemon_thread_with_a_block_does_not_keep_the_interpreter_from_ending() -> None:
    code = """
    inside = threading.Event()
    def use():
        with opened():
            inside.set()
            threading.Event().wait()
    threading.Thread(target=use, daemon=True).start()
    inside.wait()
    """
    assert run_script(code) == "box closed\n"


def test_a_thread_that_outlives_the_main_thread_goes_on() -> None:
    code = """
    async def work():
        await trio.sleep(0.01)
        return "worked"
    def use():
        threading.main_thread().join()
        with opened() as portal:
            for _ in range(200):
                result = calls.call(portal, work)
            print(result, flush=True)
    stack = contextlib.ExitStack()
    stack.enter_context(opened("forgotten"))
    threading.Thread(target=use).start()
    """
    assert run_script(code).splitlines()[:2] == ["worked", "box closed"]


def test_what_closing_at_the_exit_raises_is_told() -> None:
    code = """
    @asynccontextmanager
    async def leaking():
        try:
            yield
        finally:
            raise OSError("left on the host")
    def main():
        portal = stack.enter_context(calls.lease())
        stack.enter_context(calls.hold(portal, leaking()))
    stack = contextlib.ExitStack()
    main()
    """
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "left on the host" in done.stderr


def test_a_forked_child_has_its_own_loop_and_leaves_its_parents_alone() -> None:
    code = """
    def wait_for(child):
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    async def work():
        return os.getpid()
    with opened("parent's") as portal:
        child = os.fork()
        if not child:
            try:
                calls.call(portal, work)
            except WrongLoop as error:
                os.write(1, f"{error}\\n".encode())
            with opened("child's") as own:
                assert calls.call(own, work) == os.getpid()
        else:
            wait_for(child)
            assert calls.call(portal, work) == os.getpid()
    if not child:
        os.write(1, b"the child is outside\\n")
    """
    assert run_script(code).splitlines() == [
        "this belongs to the process that was forked (open a sandbox after the fork)",
        "child's closed",
        "the child is outside",
        "parent's closed",
    ]
