"""Cancellation through both faces, and blocks that are held open, without boxes."""

from __future__ import annotations

import asyncio
import signal
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import pytest
import trio
from faces import Cleaning, Face, Odd, interrupt_main, interrupted_when, until_cancelled

from kavach_core.aio import calls as aio_calls
from kavach_core.blocking import calls as blocking_calls
from kavach_core.portal import Portal

pytestmark = pytest.mark.usefixtures("no_loop_left")

SCRIPT_SECONDS = 30


# --- cancellation -------------------------------------------------------------------------------------


def test_an_interrupt_cancels_and_waits_for_the_clean_up() -> None:
    cleaning = Cleaning()
    with blocking_calls.lease() as portal, interrupted_when(cleaning.begun):
        with pytest.raises(KeyboardInterrupt):
            blocking_calls.call(portal, cleaning.work)
        assert cleaning.cleaned


def test_without_waiting_the_clean_up_would_still_be_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The breach that the wait closes."""
    monkeypatch.setattr(blocking_calls, "_give_up", lambda *_: None)
    cleaning = Cleaning()
    with blocking_calls.lease() as portal, interrupted_when(cleaning.begun):
        with pytest.raises(KeyboardInterrupt):
            blocking_calls.call(portal, cleaning.work)
        assert not cleaning.cleaned


def test_a_second_interrupt_does_not_cut_the_clean_up_short() -> None:
    cleaning = Cleaning(while_cleaning=interrupt_main)
    with blocking_calls.lease() as portal, interrupted_when(cleaning.begun):
        with pytest.raises(KeyboardInterrupt):
            blocking_calls.call(portal, cleaning.work)
        assert cleaning.cleaned


def test_callbacks_that_clean_up_asks_for_keep_nobody_waiting() -> None:
    """As when the output of a command that is being killed is drained: the thread makes no calls any more."""
    begun = threading.Event()
    made: list[bytes] = []

    async def work() -> None:
        try:
            begun.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await ask(b"late")

    with blocking_calls.lease() as portal, interrupted_when(begun):
        caller = blocking_calls.Caller(portal)
        ask = caller.asking(made.append)
        with pytest.raises(KeyboardInterrupt):
            blocking_calls.call(portal, work, caller=caller)
    assert not made


def test_an_exception_of_any_signal_handler_cancels_likewise() -> None:
    def handle(number: int, _: object) -> None:
        raise Odd(number)

    cleaning = Cleaning()
    before = signal.signal(signal.SIGINT, handle)
    try:
        with blocking_calls.lease() as portal, interrupted_when(cleaning.begun):
            with pytest.raises(Odd):
                blocking_calls.call(portal, cleaning.work)
            assert cleaning.cleaned
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_clean_up_raises_does_not_hide_an_interrupt() -> None:
    def fail() -> None:
        raise Odd

    cleaning = Cleaning(while_cleaning=fail)
    with blocking_calls.lease() as portal, interrupted_when(cleaning.begun):
        with pytest.raises(KeyboardInterrupt) as caught:
            blocking_calls.call(portal, cleaning.work)
        assert isinstance(caught.value.__context__, Odd)


def test_a_value_that_comes_just_when_interrupted_is_undone() -> None:
    undone: list[str] = []
    begun = threading.Event()

    async def work() -> str:
        begun.set()
        await until_cancelled()
        return "value"

    async def undo(value: str) -> None:
        undone.append(value)

    with blocking_calls.lease() as portal, interrupted_when(begun), pytest.raises(KeyboardInterrupt):
        blocking_calls.call(portal, work, undo=undo)
    assert undone == ["value"]


def test_cancelling_a_task_waits_for_the_clean_up() -> None:
    cleaning = Cleaning()

    async def main() -> None:
        async with aio_calls.lease() as portal:
            task = asyncio.create_task(aio_calls.call(portal, cleaning.work))
            await asyncio.to_thread(cleaning.begun.wait)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # a second time, in the midst of it
            with pytest.raises(asyncio.CancelledError):
                await task
            assert cleaning.cleaned

    asyncio.run(main())


def test_a_timeout_of_asyncio_is_one() -> None:
    cleaning = Cleaning()

    async def main() -> None:
        async with aio_calls.lease() as portal:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await aio_calls.call(portal, cleaning.work)
            assert cleaning.cleaned or not cleaning.begun.is_set()

    asyncio.run(main())


def test_an_event_loop_that_goes_without_a_word_cancels_what_it_waited_for() -> None:
    cleaning = Cleaning()
    loop = asyncio.new_event_loop()

    async def main(portal: Portal) -> None:
        await aio_calls.call(portal, cleaning.work)

    with blocking_calls.lease() as portal:
        waiting = main(portal)
        task = loop.create_task(waiting)
        stopper = threading.Thread(target=lambda: cleaning.begun.wait() and loop.call_soon_threadsafe(loop.stop))
        stopper.start()
        loop.run_forever()
        stopper.join()
        waiting.close()
        loop.close()
        del task

        async def until_cleaned() -> None:
            while not cleaning.cleaned:  # noqa: ASYNC110 - the test's own time limit bounds it
                await trio.sleep(0.001)

        blocking_calls.call(portal, until_cleaned)


def test_what_clean_up_raises_comes_instead_of_the_cancellation() -> None:
    def fail() -> None:
        raise Odd

    async def main() -> None:
        cleaning = Cleaning(while_cleaning=fail)
        async with aio_calls.lease() as portal:
            task = asyncio.create_task(aio_calls.call(portal, cleaning.work))
            await asyncio.to_thread(cleaning.begun.wait)
            task.cancel()
            with pytest.raises(Odd):
                await task

    asyncio.run(main())


def test_a_value_that_comes_just_when_cancelled_is_undone() -> None:
    undone: list[str] = []
    begun = threading.Event()

    async def work() -> str:
        begun.set()
        await until_cancelled()
        return "value"

    async def undo(value: str) -> None:
        undone.append(value)

    async def main() -> None:
        async with aio_calls.lease() as portal:
            task = asyncio.create_task(aio_calls.call(portal, work, undo=undo))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert undone == ["value"]


# --- context managers ----------------------------------------------------------------------------------


class Witness:
    """A context manager of trio with a nursery inside, and what it has seen."""

    def __init__(self, *, fails_to_enter: bool = False, fails_to_leave: bool = False) -> None:
        self.seen: BaseException | None = None
        self.left = threading.Event()
        self._fails_to_enter = fails_to_enter
        self._fails_to_leave = fails_to_leave

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                if self._fails_to_enter:
                    failure = Odd("entering")
                else:
                    try:
                        yield "value"
                    except BaseException as error:  # noqa: BLE001 - as pools do
                        failure = self.seen = error
                nursery.cancel_scope.cancel()
        finally:
            self.left.set()
        if self._fails_to_leave:
            raise Odd("leaving")
        if failure is not None:
            raise failure


def test_a_block_is_entered_and_left(face: Face) -> None:
    witness = Witness()
    assert face.hold(witness.open(), lambda value: (value, witness.left.is_set())) == ("value", False)
    assert witness.left.is_set()
    assert witness.seen is None


def test_an_error_of_the_block_is_seen_inside_and_keeps_its_own_traceback(face: Face) -> None:
    witness = Witness()
    raised = Odd("body")

    def body(_: str) -> None:
        raise raised

    with pytest.raises(Odd) as caught:
        face.hold(witness.open(), body)
    assert caught.value is raised
    assert witness.seen is raised
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "body" in names
    assert "_keep" not in names


def test_what_is_no_error_cancels_the_block(face: Face) -> None:
    witness = Witness()

    def body(_: str) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        face.hold(witness.open(), body)
    assert caught.value.code == 3
    assert isinstance(witness.seen, trio.Cancelled)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_the_end_of_an_iteration_leaves_the_block_as_it_is(kind: type[Exception]) -> None:
    with pytest.raises(kind), blocking_calls.lease() as portal, blocking_calls.hold(portal, Witness().open()):
        raise kind


def test_an_error_of_leaving_comes_out_with_that_of_the_block(face: Face) -> None:
    def body(_: str) -> None:
        raise KeyError("body")

    with pytest.raises(Odd, match="leaving") as caught:
        face.hold(Witness(fails_to_leave=True).open(), body)
    assert isinstance(caught.value.__context__, KeyError)
    with pytest.raises(Odd, match="leaving"):
        face.hold(Witness(fails_to_leave=True).open(), lambda _: None)


def test_an_error_of_entering_comes_out_bare(face: Face) -> None:
    witness = Witness(fails_to_enter=True)
    with pytest.raises(Odd, match="entering"):
        face.hold(witness.open(), lambda _: None)
    assert witness.left.is_set()


def test_an_interrupt_while_entering_leaves_nothing_open() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await cleaning.work()
        yield

    cleaning = Cleaning()
    with interrupted_when(cleaning.begun), pytest.raises(KeyboardInterrupt):  # noqa: SIM117 - the line would be long
        with blocking_calls.lease() as portal, blocking_calls.hold(portal, slow()):
            pytest.fail("entered")
    assert cleaning.cleaned


def test_an_interrupt_just_when_entered_leaves_it_again() -> None:
    witness = Witness()
    begun = threading.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        begun.set()
        await until_cancelled()
        async with witness.open():
            yield

    with interrupted_when(begun), pytest.raises(KeyboardInterrupt):  # noqa: SIM117 - the line would be long
        with blocking_calls.lease() as portal, blocking_calls.hold(portal, slow()):
            pytest.fail("entered")
    assert witness.left.is_set()


def test_a_block_that_the_garbage_collection_closes_in_the_loops_own_thread() -> None:
    """There it must not wait for itself; it is closed all the same."""
    witness = Witness()

    @contextmanager
    def block() -> Iterator[None]:
        with blocking_calls.lease() as own, blocking_calls.hold(own, witness.open()):
            yield

    with blocking_calls.lease() as portal:
        forgotten: list[AbstractContextManager[None]] = [block()]
        forgotten[0].__enter__()

        async def drop() -> None:
            forgotten.clear()

        blocking_calls.call(portal, drop)
        assert witness.left.wait(SCRIPT_SECONDS)
