"""The loop in a thread, without boxes: its life, and what it hands over."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from faces import Face, Odd

from kavach_core.aio import calls as aio_calls
from kavach_core.blocking import calls as blocking_calls
from kavach_core.errors import WrongLoop
from kavach_core.portal import Portal
from kavach_core.portal import loop as loop_module

pytestmark = pytest.mark.usefixtures("no_loop_left")


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- the loop's life --------------------------------------------------------------------------------


def test_the_loop_lives_as_long_as_somebody_uses_it(face: Face) -> None:
    before, opened = threads(), descriptors()

    def body(portal: Portal) -> bool:
        assert threads() == sorted([*before, "kavach"])
        return portal is loop_module._shared.portal

    assert face.lease(body)
    assert threads() == before
    assert descriptors() == opened


def test_a_hundred_lives_leave_no_thread_and_no_descriptor(face: Face) -> None:
    face.lease(lambda _: None)
    before = descriptors()
    for _ in range(100):
        face.lease(lambda portal: face.call(portal, trio.lowlevel.checkpoint))
    assert descriptors() == before


def test_everybody_shares_one_loop() -> None:
    """Fifty threads take a lease, wait for each other, and give it back in whatever order."""
    seen: set[Portal] = set()
    gate = threading.Barrier(50)

    def use() -> None:
        with blocking_calls.lease() as portal:
            gate.wait()
            blocking_calls.call(portal, trio.lowlevel.checkpoint)
            seen.add(portal)
            gate.wait()

    workers = [threading.Thread(target=use) for _ in range(50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(seen) == 1


def test_leases_that_come_and_go_at_once_never_meet_a_loop_that_ends() -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(50):
                with blocking_calls.lease() as portal:
                    assert blocking_calls.call(portal, answer) == 42
        except BaseException as error:
            failures.append(error)
            raise

    async def answer() -> int:
        await trio.lowlevel.checkpoint()
        return 42

    workers = [threading.Thread(target=use) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_a_loop_that_does_not_start_says_why_and_the_next_one_does(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trio, "run", lambda _: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        with pytest.raises(OSError, match="Too many open files"):
            face.lease(lambda _: None)
    assert face.lease(lambda _: "well") == "well"


def test_a_system_without_threads_says_so(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Portal, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            face.lease(lambda _: None)
    assert face.lease(lambda _: "well") == "well"


def test_where_there_was_no_thread_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one asks before the first has given its lease back."""
    first, second = loop_module.Lease(), loop_module.Lease()
    with monkeypatch.context() as patch:
        patch.setattr(Portal, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            first.take()
    asking = threading.Thread(target=second.take, daemon=True)
    asking.start()
    asking.join(30)
    waits = asking.is_alive()
    for lease in (second, first):
        portal = lease.give_back()
        if portal is not None:
            portal.end()
            portal.join()
    assert not waits


# --- values, errors, context ------------------------------------------------------------------------


def test_an_error_is_the_same_object_with_the_way_it_came(face: Face) -> None:
    raised = Odd("once")

    async def deep_in_the_loop() -> None:
        await trio.lowlevel.checkpoint()
        raise raised

    with pytest.raises(Odd) as caught:
        face.lease(lambda portal: face.call(portal, deep_in_the_loop))
    assert caught.value is raised
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names.index("test_an_error_is_the_same_object_with_the_way_it_came") < names.index("deep_in_the_loop")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_whatever_the_work_raises_is_the_callers_and_the_loop_goes_on(kind: type[BaseException]) -> None:
    async def work() -> None:
        raise kind

    with blocking_calls.lease() as portal:
        with pytest.raises(kind):
            blocking_calls.call(portal, work)
        blocking_calls.call(portal, trio.lowlevel.checkpoint)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only what nothing refers to goes; no cycle does."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def fail() -> None:
    raise Odd


@pytest.mark.usefixtures("no_collection")
def test_an_error_is_not_kept_alive() -> None:
    """No cycle of error, traceback and job: what it refers to can be large."""
    with blocking_calls.lease() as portal:
        seen: list[weakref.ref[Odd]] = []
        try:
            blocking_calls.call(portal, fail)
        except Odd as error:
            seen.append(weakref.ref(error))
        blocking_calls.call(portal, trio.lowlevel.checkpoint)  # by then the work's own task has ended
        assert seen[0]() is None


@pytest.mark.usefixtures("no_collection")
def test_an_error_is_not_kept_alive_in_asyncio() -> None:
    async def main() -> None:
        async with aio_calls.lease() as portal:
            seen: list[weakref.ref[Odd]] = []
            try:
                await aio_calls.call(portal, fail)
            except Odd as error:
                seen.append(weakref.ref(error))
            await aio_calls.call(portal, trio.lowlevel.checkpoint)  # by then the work's own task has ended
            assert seen[0]() is None

    asyncio.run(main())


def test_the_work_has_the_callers_context(face: Face) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("mine")

    async def look() -> str:
        await trio.lowlevel.checkpoint()
        return variable.get()

    assert face.lease(lambda portal: face.call(portal, look)) == "mine"


def test_after_the_block_a_call_says_so(face: Face) -> None:
    portal = face.lease(lambda portal: portal)
    with pytest.raises(WrongLoop, match="closed"):
        face.lease(lambda _: face.call(portal, trio.lowlevel.checkpoint))


async def test_inside_trio_the_blocking_face_refuses() -> None:
    with pytest.raises(WrongLoop, match="to_thread"), blocking_calls.lease():
        pass
    with pytest.raises(WrongLoop, match="asyncio"):
        async with aio_calls.lease():
            pass

    async def work() -> int:
        return 42

    def allowed() -> int:
        with blocking_calls.lease() as portal:
            return blocking_calls.call(portal, work)

    assert await trio.to_thread.run_sync(allowed) == 42


def test_outside_asyncio_the_other_refuses() -> None:
    manager = aio_calls.lease()
    with pytest.raises(WrongLoop, match=r"kavach_core\.blocking in plain code"):
        manager.__aenter__().send(None)


def test_inside_asyncio_the_blocking_face_works() -> None:
    async def main() -> int:
        with blocking_calls.lease() as portal:
            return blocking_calls.call(portal, work)

    async def work() -> int:
        await trio.lowlevel.checkpoint()
        return 42

    assert asyncio.run(main()) == 42
