"""Copying needs no thread that its callers may hold."""

from __future__ import annotations

import pytest
import trio

from kavach_core.files.threads import in_thread


def answer() -> int:
    return 42


def ask_the_loop() -> int:
    """Call back from a worker thread, as trio's documentation has it."""
    found: int = trio.from_thread.run(in_thread, answer)
    return found


async def test_all_threads_of_the_loop_may_be_held_by_those_who_wait() -> None:
    everybody = trio.to_thread.current_default_thread_limiter()
    found: list[int] = []

    async def call() -> None:
        found.append(await trio.to_thread.run_sync(ask_the_loop))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(int(everybody.total_tokens) + 20):
                nursery.start_soon(call)
    assert set(found) == {42}


async def test_with_the_threads_of_the_loop_it_would_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The breach that threads of their own close."""
    everybody = trio.to_thread.current_default_thread_limiter()
    monkeypatch.setattr(everybody, "total_tokens", 1)
    held = trio.Event()

    def wait() -> None:
        trio.from_thread.run_sync(held.set)
        trio.from_thread.run(trio.to_thread.run_sync, answer)

    with trio.move_on_after(0.5) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, wait)
            await held.wait()
            assert await in_thread(answer) == 42
    assert scope.cancelled_caught
