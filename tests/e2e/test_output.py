"""Streams of any size: bounded on the host, exact to the byte, and never in the way of anything else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

import kavach_core as kavach_api

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Runner

MIB = 1024**2
# The Sentry moves some 30 MB/s through a pipe here; a quarter is as far beyond every bound.
FLOOD_BYTES = {"runc": 1024 * MIB, "crun": 1024 * MIB, "gvisor": 256 * MIB}

# Runs in a process of its own: peak memory is never given back, so ours would tell nothing.
FLOOD = """
import resource, sys
import trio
import kavach_core

async def main():
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with kavach_core.open_sandbox(backend=sys.argv[1]) as sandbox:
        await sandbox.exec("true", check=True)
        before = peak()
        result = await sandbox.exec("head", "-c", sys.argv[2], "/dev/zero", check=True)
        print(peak() - before, result.stdout_total_bytes, len(result.stdout_bytes), result.truncated)

trio.run(main)
"""


def test_flood_does_not_grow_the_host(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FLOOD, backend, str(FLOOD_BYTES[backend])],
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown_kib, total, kept, truncated = done.stdout.split()
    assert int(total) == FLOOD_BYTES[backend]
    assert (int(kept), truncated) == (8 * MIB, b"True")
    assert int(grown_kib) < 100 * 1024


def test_flood_through_the_command_line_is_exact(kavach: Path, backend: str) -> None:
    command = [str(kavach), "run", "-b", backend, "--", "head", "-c", str(FLOOD_BYTES[backend]), "/dev/zero"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        counted = subprocess.run(["wc", "-c"], stdin=process.stdout, capture_output=True, timeout=90, check=True)
    assert process.returncode == 0
    assert int(counted.stdout) == FLOOD_BYTES[backend]


def test_large_input_is_exact(run_kavach: Runner, backend: str) -> None:
    data = bytes(range(256)) * (32 * 4096)
    done = run_kavach("run", "-b", backend, "--", "sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_cap_keeps_the_first_bytes_and_counts_all(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.shell("printf abcdef; printf 123456 >&2", max_output=3)
        assert (result.stdout, result.stderr) == ("abc", "123")
        assert (result.stdout_total_bytes, result.stderr_total_bytes) == (6, 6)
        assert result.truncated
        nothing = await sandbox.shell("printf abc", max_output=0)
        assert (nothing.stdout, nothing.stdout_total_bytes, nothing.stdout_truncated) == ("", 3, True)
        exact = await sandbox.shell("printf abc", max_output=3)
        assert (exact.stdout, exact.truncated) == ("abc", False)


async def test_process_left_behind_does_not_delay_the_result(backend: str) -> None:
    """It holds the streams open for 1000 s. The result comes with the command's end, and without its later words."""
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        with trio.fail_after(20):
            result = await sandbox.shell("sleep 1000 & echo done")
        assert (result.ok, result.stdout) == (True, "done\n")


async def test_process_left_behind_that_goes_on_talking_does_not_delay_the_result(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        with trio.fail_after(3):
            result = await sandbox.shell("(while sleep 0.01; do echo more || exit; done) & echo done; exit 3")
    assert result.exit_code == 3
    assert "done\n" in result.stdout


async def test_input_that_is_not_read_does_not_hang(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        with trio.fail_after(30):
            some = await sandbox.exec("head", "-c", "3", input=bytes(50 * MIB))
            assert (some.ok, some.stdout_bytes) == (True, bytes(3))
            none = await sandbox.exec("true", input=bytes(50 * MIB))
            assert none.ok
            closed = await sandbox.shell("exec <&-; sleep 0.2; echo on", input=bytes(50 * MIB))
            assert (closed.ok, closed.stdout) == (True, "on\n")


async def test_input_as_it_comes(backend: str) -> None:
    """A conversation: the next piece of input is made of what the command answered."""
    send, receive = trio.open_memory_channel[bytes](1)
    heard: list[bytes] = []

    async def on_output(data: bytes) -> None:
        heard.append(data)
        if len(heard) < 5:
            await send.send(data.strip() + b"+\n")
        else:
            await send.aclose()

    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        await send.send(b"a\n")
        with trio.fail_after(20):
            result = await sandbox.shell("while read -r x; do echo $x; done", input=receive, on_stdout=on_output)
    assert result.stdout == "a\na+\na++\na+++\na++++\n"


async def test_many_commands_at_once(backend: str) -> None:
    count = 50 if backend == "gvisor" else 100
    results: dict[int, kavach_api.ExecResult] = {}
    async with kavach_api.open_sandbox(backend=backend) as sandbox:

        async def run(number: int) -> None:
            script = 'cat; echo "$0" >&2; exit $(($0 % 100))'
            results[number] = await sandbox.exec("sh", "-c", script, str(number), input=f"in {number}")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(run, number)
    assert [results[n].stdout for n in range(count)] == [f"in {n}" for n in range(count)]
    assert [results[n].stderr for n in range(count)] == [f"{n}\n" for n in range(count)]
    assert [results[n].exit_code for n in range(count)] == [n % 100 for n in range(count)]


async def test_command_that_nobody_reads_stops_only_itself(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        silent = await sandbox.spawn("yes")
        with trio.fail_after(20):
            for _ in range(3):
                result = await sandbox.exec("head", "-c", "1000000", "/dev/zero")
                assert result.stdout_total_bytes == 1_000_000
            assert await silent.stdout.receive_some()
            await silent.kill()


ODD = ["", "a b", "new\nline", "\\", "'\"$`", "-", "--", "*", "\t", "\x7f\x1b", "ü", "\udcff\udc80", "x" * 100_000]


async def test_arguments_arrive_unchanged(backend: str) -> None:
    """Whatever bytes they are: what is no UTF-8 comes as Python's file names do."""
    script = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        result = await sandbox.exec("python3", "-c", script, *ODD, check=True)
    assert result.stdout_bytes == b"\0".join(word.encode(errors="surrogateescape") for word in ODD)


async def test_argument_beyond_what_the_kernel_takes(backend: str) -> None:
    async with kavach_api.open_sandbox(backend=backend) as sandbox:
        with pytest.raises(kavach_api.ConfigError) as caught:
            await sandbox.exec("echo", "x" * 200_000)
        assert [problem.field for problem in caught.value.problems] == ["argv[1]"]
        assert (await sandbox.exec("true")).ok


def test_arguments_of_the_command_line_arrive_unchanged(run_kavach: Runner, backend: str) -> None:
    words = [b"", b"a b", b"new\nline", b"\xff\xfe", b"--json", b"-b"]
    done = run_kavach("run", "-b", backend, "--", "printf", "<%s>", *words)
    assert done.stdout == b"".join(b"<" + word + b">" for word in words)
