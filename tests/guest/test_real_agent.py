"""The channel and the real agent, as an ordinary process: what one end sends is what the other understands.

In plain mode the agent needs no box and no root, and contains nothing; whether it kills for good inside a box is shown
by the agent's own tests.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from kavach_guest.agent import agent_program
from kavach_guest.channel import GuestChannel
from kavach_guest.session import AgentSession

from kavach_core.abc import GuestStartError
from kavach_core.errors import SandboxGone
from kavach_core.execution import run_command
from kavach_core.runs import Command, Run
from kavach_core.types import Bound, ExecRequest, LimitEvents, Outcome, Usage, User

OURSELVES = User(uid=os.getuid(), gid=os.getgid())
ENV = (b"PATH=/usr/bin:/bin", b"LANG=C.UTF-8")


class PlainBox:
    """The agent as a subprocess."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def usage(self) -> Usage:
        """Return nothing known."""
        return Usage()

    def limit_events(self) -> LimitEvents:
        """Return nothing known."""
        return LimitEvents()

    async def pause(self) -> None:
        """Go on: nothing here can be frozen."""

    async def resume(self) -> None:
        """Go on."""

    async def end(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        self._process.wait()


def start_agent() -> tuple[GuestChannel, PlainBox]:
    """Start an agent in plain mode."""
    from_agent, agent_out = os.pipe()
    agent_in, to_agent = os.pipe()
    process = subprocess.Popen([agent_program(), "--plain"], stdin=agent_in, stdout=agent_out, env={})
    os.close(agent_out)
    os.close(agent_in)
    return GuestChannel(receive_fd=from_agent, send_fd=to_agent, sandbox_id="00ff"), PlainBox(process)


@contextlib.asynccontextmanager
async def plain_session() -> AsyncIterator[AgentSession]:
    """Give a session with an agent in plain mode."""
    channel, box = start_agent()
    session = AgentSession(channel, box)
    try:
        with trio.fail_after(60):
            await channel.open()
            yield session
    finally:
        await session.aclose()


def request(*argv: str | bytes, **fields: Any) -> ExecRequest:  # noqa: ANN401 - any field
    words = tuple(word if isinstance(word, bytes) else word.encode() for word in argv)
    return ExecRequest(**{"argv": words, "env": ENV, "cwd": b"/", "user": OURSELVES, **fields})


async def execute(session: AgentSession, *argv: str | bytes, **fields: Any) -> Run:  # noqa: ANN401 - any field
    """Run a command to its end, as core does."""
    options = {"input": None, "timeout": None, "max_output": 64 * 1024 * 1024}
    options |= {name: fields.pop(name) for name in list(fields) if name in options}
    stdin = options["input"] is not None
    command = Command(argv=("x",), request=request(*argv, stdin=stdin, **fields), **options)  # type: ignore[arg-type]
    return await run_command(session, command)


def alive(marker: str) -> list[int]:
    """Return the processes that have ``marker`` in their arguments and are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if marker.encode() in (path / "cmdline").read_bytes() and state not in "ZX":
                found.append(int(path.name))
    return found


async def test_output_status_and_usage() -> None:
    async with plain_session() as session:
        run = await execute(session, "sh", "-c", "echo out; echo err >&2; exit 3")
        assert (run.stdout.data, run.stderr.data) == (b"out\n", b"err\n")
        assert run.exit is not None
        assert (run.exit.exit_code, run.exit.signal) == (3, None)
        assert run.exit.max_rss_bytes > 100_000


async def test_argv_env_cwd_are_exactly_what_was_asked_for(tmp_path: Path) -> None:
    script = 'printf "[%s]" "$@"; pwd; env | sort'
    odd = [b"a b", b"", b"\xff\xfe", "ü".encode(), b"'\"$(id)`id`\n"]
    async with plain_session() as session:
        fields = {"env": (b"B=2 3", b"PATH=/usr/bin:/bin", b"ODD=\xff"), "cwd": str(tmp_path).encode()}
        run = await execute(session, "sh", "-c", script, "sh", *odd, **fields)
    arguments, _, rest = run.stdout.data.partition(str(tmp_path).encode())
    assert arguments == b"".join(b"[%s]" % word for word in odd)
    variables = {
        line for line in rest.strip().split(b"\n") if not line.startswith((b"PWD=", b"_=", b"OLDPWD=", b"SHLVL="))
    }
    assert variables == {b"B=2 3", b"PATH=/usr/bin:/bin", b"ODD=\xff"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
async def test_the_end_by_a_signal(number: int) -> None:
    async with plain_session() as session:
        run = await execute(session, "sh", "-c", f"kill -{int(number)} $$")
        assert run.exit is not None
        assert (run.exit.exit_code, run.exit.signal) == (None, number)


@pytest.mark.parametrize(
    ("argv", "fields", "stage", "errno"),
    [
        (["/nonexistent"], {}, "program", 2),
        (["no-such-program"], {}, "program", 2),
        (["/etc/passwd"], {}, "program", 13),
        (["true"], {"cwd": b"/nonexistent"}, "cwd", 2),
        (["true"], {"cwd": b"/etc/passwd"}, "cwd", 20),
        (["true"], {"cwd": b"relative"}, "request", 22),
        (["true"], {"env": (b"=x",)}, "request", 22),
        (["true"], {"user": User(uid=os.getuid() + 1, gid=os.getgid())}, "identity", 1),
        (["true"], {"user": User(uid=os.getuid(), gid=os.getgid(), groups=(5,))}, "identity", 1),
        (["tr\0ue"], {}, "request", 22),
    ],
)
async def test_a_start_that_fails(argv: list[str], fields: dict[str, Any], stage: str, errno: int) -> None:
    async with plain_session() as session:
        with pytest.raises(GuestStartError) as caught:
            await session.start(request(*argv, **fields))
        assert (caught.value.failure.stage, caught.value.failure.errno) == (stage, errno)
        assert (await execute(session, "true")).exit is not None


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 262_144, 262_145, 3_000_000])
async def test_any_bytes_go_through_and_back_unchanged(size: int) -> None:
    blob = random.Random(size).randbytes(size)
    async with plain_session() as session:
        run = await execute(session, "cat", input=blob)
    assert run.stdout.data == blob
    assert run.stdout.total == size


async def test_both_streams_at_once_are_kept_apart() -> None:
    script = "head -c 2000000 /dev/zero & head -c 1500000 /dev/zero >&2; wait"
    async with plain_session() as session:
        run = await execute(session, "sh", "-c", script)
    assert (run.stdout.total, run.stderr.total) == (2_000_000, 1_500_000)


async def test_much_output_is_counted_to_the_byte() -> None:
    async with plain_session() as session:
        run = await execute(session, "head", "-c", "50000001", "/dev/zero", max_output=10)
    assert (run.stdout.total, run.stdout.data) == (50_000_001, bytes(10))


async def test_a_command_that_does_not_read_its_input() -> None:
    async with plain_session() as session:
        run = await execute(session, "true", input=bytes(5_000_000))
        assert run.exit is not None
        assert run.exit.exit_code == 0


async def test_input_is_interactive() -> None:
    async with plain_session() as session:
        process = await session.start(request("cat", stdin=True))
        assert process.stdin is not None
        for number in range(5):
            await process.stdin.send_all(b"line %d\n" % number)
            assert await process.stdout.receive_some() == b"line %d\n" % number
        await process.stdin.aclose()
        assert (await process.wait()).exit_code == 0
        await process.aclose()


async def test_a_hundred_commands_at_once() -> None:
    outputs: dict[int, bytes] = {}
    async with plain_session() as session:

        async def one(number: int) -> None:
            text = b"%d\n" % number * 2000
            run = await execute(session, "sh", "-c", f"cat; exit {number}", input=text)
            assert run.exit is not None
            assert run.exit.exit_code == number
            assert run.stdout.data == text
            outputs[number] = run.stdout.data

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
    assert len(outputs) == 100


async def test_a_reader_that_stalls_holds_up_nobody_else() -> None:
    async with plain_session() as session:
        stalled = await session.start(request("cat", "/dev/zero"))
        for _ in range(20):
            run = await execute(session, "head", "-c", "300000", "/dev/zero")
            assert run.stdout.total == 300_000
        held = sum(len(chunk) for output in stalled._command.outputs.values() for chunk in output.chunks)
        assert held <= 262_144
        await stalled.kill()
        await stalled.aclose()


async def test_kill_takes_the_whole_tree() -> None:
    marker = f"kavach-plain-{os.getpid()}-{random.randrange(10**9)}"
    script = f"""
        sh -c 'sleep 1000; : {marker} child' &
        (setsid sh -c 'sleep 1000; : {marker} session' &)
        trap '' TERM
        echo ready; sleep 1000; : {marker} parent
    """
    async with plain_session() as session:
        process = await session.start(request("sh", "-c", script))
        assert await process.stdout.receive_some() == b"ready\n"
        assert alive(marker)
        await process.kill()
        assert alive(marker) == []
        assert (await process.wait()).signal == signal.SIGKILL


async def test_a_deadline_kills_and_keeps_what_was_written() -> None:
    marker = f"kavach-plain-{os.getpid()}-{random.randrange(10**9)}"
    async with plain_session() as session:
        run = await execute(session, "sh", "-c", f"echo partial; sleep 1000; : {marker}", timeout=0.3)
        assert run.stopped_by is Bound.TIMEOUT
        assert run.stdout.data == b"partial\n"
        assert alive(marker) == []
        assert (await execute(session, "true")).exit is not None


async def test_a_signal_goes_to_the_command() -> None:
    async with plain_session() as session:
        process = await session.start(
            request("sh", "-c", "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
        )
        assert await process.stdout.receive_some() == b"ready\n"
        await process.send_signal(signal.SIGTERM)
        assert (await process.wait()).exit_code == 7
        assert await process.stdout.receive_some() == b"got\n"
        await process.send_signal(signal.SIGTERM)


async def test_cancelled_starts_leave_no_command() -> None:
    marker = f"kavach-plain-{os.getpid()}-{random.randrange(10**9)}"
    async with plain_session() as session:
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await session.start(request("sh", "-c", f"sleep 1000; : {marker}"))
        assert alive(marker) == []
        assert (await execute(session, "true")).exit is not None


async def test_a_background_process_does_not_hold_up_the_result() -> None:
    async with plain_session() as session:
        run = await execute(session, "sh", "-c", "sleep 5 & echo done")
        assert run.stdout.data == b"done\n"
        assert run.exit is not None


async def test_the_end_of_the_agent_is_the_end_of_all() -> None:
    async with plain_session() as session:
        process = await session.start(request("sleep", "1000"))
        session._box._process.kill()  # type: ignore[attr-defined]
        with pytest.raises(SandboxGone):
            await process.wait()
        with pytest.raises(SandboxGone):
            await session.start(request("true"))


async def test_closing_the_session_ends_every_command() -> None:
    marker = f"kavach-plain-{os.getpid()}-{random.randrange(10**9)}"
    async with plain_session() as session:
        process = await session.start(request("sh", "-c", f"echo ready; sleep 1000; : {marker}"))
        assert await process.stdout.receive_some() == b"ready\n"
        agent = session._box._process  # type: ignore[attr-defined]
        session._channel.close()
        assert await trio.to_thread.run_sync(agent.wait) == 0
        assert alive(marker) == []


@pytest.mark.soak
async def test_many_commands_one_after_the_other_leave_nothing() -> None:
    """Descriptors of the agent and of ours, and the agent's memory, are the same at the end."""
    rounds = 20_000 if os.environ.get("KAVACH_SOAK") == "1" else 300
    async with plain_session() as session:
        pid = session._box._process.pid  # type: ignore[attr-defined]

        def look() -> tuple[int, int, int]:
            status = Path(f"/proc/{pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0])
            return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path("/proc/self/fd").iterdir())), resident

        for _ in range(20):
            await execute(session, "true")
        agents, ours, resident = look()
        for _ in range(rounds):
            run = await execute(session, "true")
            assert outcome(run) is Outcome.OK
        after = look()
        assert after[:2] == (agents, ours)
        assert after[2] <= resident + 1024


def outcome(run: Run) -> Outcome:
    return Outcome.OK if run.exit is not None and run.exit.exit_code == 0 else Outcome.NONZERO_EXIT
