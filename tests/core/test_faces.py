"""The three faces have the same names and signatures, so that they cannot drift apart; and the same types for mypy."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import trio

from kavach_core import aio, blocking, commands, files, pool, process, sandbox, single
from kavach_core.aio import files as aio_files
from kavach_core.blocking import files as blocking_files

# What the core has for its own use: it takes objects of trio, or belongs to what opens a block.
INTERNAL = {"Pool": {"keep_filled", "drain"}}
FACES = {"blocking": blocking, "aio": aio}
CORE: dict[str, type] = {
    "Sandbox": sandbox.Sandbox,
    "Process": process.Process,
    "Pool": pool.Pool,
    "SendStream": trio.abc.SendStream,
    "ReceiveStream": trio.abc.ReceiveStream,
    "SandboxFiles": files.SandboxFiles,
}
OWN = {
    "blocking": {**vars(blocking), "SandboxFiles": blocking_files.SandboxFiles},
    "aio": {**vars(aio), "SandboxFiles": aio_files.SandboxFiles},
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "run": single.run,
    "open_sandbox": sandbox.open_sandbox,
    "open_pool": pool.open_pool,
}
DUNDERS = {"__aenter__", "__aexit__", "__aiter__", "__anext__", "__enter__", "__exit__", "__iter__", "__next__"}

each_face = pytest.mark.parametrize("face", FACES)
each_class = pytest.mark.parametrize("name", CORE)


def plain_name(name: str) -> str:
    """Return the name that something async has in plain code."""
    return "close" if name == "aclose" else re.sub(r"^__a", "__", name)


def set_attributes(cls: type) -> set[str]:
    """Return the public attributes that the class sets when one is made."""
    made = "__init__" in vars(cls)
    return set(re.findall(r"\bself\.([a-z]\w*)(?:: [^=]+)? = ", inspect.getsource(cls.__init__))) if made else set()


def public(cls: type) -> set[str]:
    names = {name for name in dir(cls) if not name.startswith("_") or name in DUNDERS}
    return names | set_attributes(cls)


def core_names(name: str) -> set[str]:
    return public(CORE[name]) - INTERNAL.get(name, set())


@each_face
@each_class
def test_a_class_has_the_names_of_the_cores(face: str, name: str) -> None:
    expected = core_names(name)
    assert expected
    if face == "blocking":
        expected = {plain_name(each) for each in expected}
    assert public(OWN[face][name]) == expected


@each_face
def test_a_face_has_the_classes_and_functions(face: str) -> None:
    expected = {*CORE, *FUNCTIONS, "ExecOptions", "RunOptions"} - {"SandboxFiles"}  # imported when it is needed
    assert set(FACES[face].__all__) == expected


def shape(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Return what a caller writes: names, kinds, defaults and types of the parameters, and what comes back."""
    signature = inspect.signature(function)
    parameters = [
        (each.name, each.kind, each.default, str(each.annotation))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    returned = str(signature.return_annotation)
    return [
        *parameters,
        ("return", re.sub(r"\btrio\.abc\.|(?<=\b)Async(?=Iterator\b)|(?<=Abstract)Async", "", returned)),
    ]


def methods(name: str) -> list[str]:
    cls = CORE[name]
    return sorted(each for each in core_names(name) if inspect.isfunction(inspect.getattr_static(cls, each, None)))


@pytest.mark.parametrize(
    ("face", "name", "method"),
    [(face, name, method) for face in FACES for name in CORE for method in methods(name) if method not in DUNDERS],
)
def test_a_method_has_the_signature_of_the_cores(face: str, name: str, method: str) -> None:
    core = getattr(CORE[name], method)
    own = getattr(OWN[face][name], plain_name(method) if face == "blocking" else method)
    if name in {"SendStream", "ReceiveStream"}:  # trio's types are wider: bytes | bytearray
        assert [part[:3] for part in shape(own)[:-1]] == [part[:3] for part in shape(core)[:-1]]
    else:
        assert shape(own) == shape(core)
    waits = inspect.iscoroutinefunction(core)
    assert inspect.iscoroutinefunction(own) is False or (waits and face == "aio")


@each_face
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_signature_of_the_cores(face: str, name: str) -> None:
    assert shape(OWN[face][name]) == shape(FUNCTIONS[name])


@each_face
@each_class
def test_properties_are_properties(face: str, name: str) -> None:
    for each in core_names(name):
        if isinstance(inspect.getattr_static(CORE[name], each, None), property):
            assert isinstance(inspect.getattr_static(OWN[face][name], each), property)


def test_options_are_the_cores_but_for_what_is_async() -> None:
    own, core = get_type_hints(blocking.ExecOptions), get_type_hints(commands.ExecOptions)
    assert own.keys() == core.keys()
    assert {name for name in own if own[name] != core[name]} == {
        "input",
        "on_stdout",
        "on_stderr",
        "tty_sizes",
    }
    assert get_type_hints(blocking.RunOptions).keys() == get_type_hints(single.RunOptions).keys()
    assert (aio.ExecOptions, aio.RunOptions) == (commands.ExecOptions, single.RunOptions)


def test_run_takes_every_field_and_every_option() -> None:
    fields, options = get_type_hints(sandbox.SandboxFields), get_type_hints(commands.ExecOptions)
    assert get_type_hints(single.RunOptions).keys() == fields.keys() | options.keys()
    assert {name: get_type_hints(single.BoxFields)[name] for name in get_type_hints(single.BoxFields)} == {
        name: hint for name, hint in fields.items() if name not in options
    }


@each_face
@each_class
def test_everything_public_is_described(face: str, name: str) -> None:
    cls = OWN[face][name]
    for each in dir(cls):
        if not each.startswith("_"):
            assert inspect.getdoc(getattr(cls, each)), each


def test_a_difference_would_be_seen() -> None:
    """The tests above compare what they are to compare."""

    class Other:
        async def exec(self, *argv: str, check: bool = True) -> None: ...

    assert shape(Other.exec) != shape(sandbox.Sandbox.exec)
    assert public(Other) == {"exec"}
    assert "exec" in methods("Sandbox")
    assert {"poll", "kill", "resize"} <= set(methods("Process"))
    assert {"id", "score", "state"} <= core_names("Sandbox")
    assert {"config", "options"} <= core_names("Pool")


# --- as a type checker sees them --------------------------------------------------------------------------

CONSUMER = """
from typing_extensions import assert_type
import kavach_core as kavach
from kavach_core import aio, blocking
from kavach_core.types import GuestExit, Output, ProcessInfo


def plain() -> None:
    assert_type(blocking.run("true", backend="runc", timeout=5, input=[b"x"], on_stdout=print), kavach.ExecResult)
    with blocking.open_sandbox(backend="runc", limits=kavach.Limits(pids=5)) as sandbox:
        assert_type(sandbox, blocking.Sandbox)
        assert_type(sandbox.exec("true", timeout=5, check=True), kavach.ExecResult)
        assert_type(sandbox.usage(), kavach.Usage)
        assert_type(sandbox.processes(), tuple[ProcessInfo, ...])
        assert_type(sandbox.files.read("x", offset=5), bytes)
        assert_type(sandbox.files.stat("x", user="root").size, int)
        sandbox.files.write("x", [b"a", b"b"], mode=0o600)
        with sandbox.files.open_read("x") as source, sandbox.files.open_write("y") as sink:
            sink.send_all(source.receive_some())
        with sandbox.spawn("cat", stdin=True, env={"A": "b"}) as process:
            assert_type(process, blocking.Process)
            assert_type(process.stdout.receive_some(10), bytes)
            assert_type(process.poll(), GuestExit | None)
            assert_type(process.wait(), GuestExit)
            for event in process:
                assert_type(event, Output)
            for data in process.stdout:
                assert_type(data, bytes)
    with blocking.open_pool(size=2, backend="runc") as pool, pool.sandbox() as sandbox:
        assert_type(sandbox.state, kavach.State)


async def with_asyncio() -> None:
    async def see(data: bytes) -> None: ...

    assert_type(await aio.run("true", backend="runc", timeout=5, on_stdout=see), kavach.ExecResult)
    async with aio.open_sandbox(backend="runc") as sandbox:
        assert_type(sandbox, aio.Sandbox)
        assert_type(await sandbox.usage(), kavach.Usage)
        assert_type(await sandbox.files.read("x", offset=5), bytes)
        async with sandbox.files.open_read("x") as source, sandbox.files.open_write("y") as sink:
            await sink.send_all(await source.receive_some())
        async with await sandbox.spawn("cat") as process:
            assert_type(process.poll(), GuestExit | None)
            assert_type(await process.wait(), GuestExit)
            async for event in process:
                assert_type(event, Output)
            async for data in process.stdout:
                assert_type(data, bytes)
    async with aio.open_pool(size=2) as pool, pool.sandbox() as sandbox:
        assert_type(await sandbox.shell("true"), kavach.ExecResult)
"""

WRONG = """
from kavach_core import aio, blocking


def plain() -> None:
    blocking.run("true", bakend="runc")
    with blocking.open_sandbox(timeout="5") as sandbox:
        sandbox.exec(["true"])
        sandbox.exec("true", tineout=5)
        sandbox.spawn("cat", input=b"x")
        sandbox.usage(5)
        with sandbox.spawn("cat") as process:
            process.resize(rows=5)
            process.stdin.send_all(b"may be None")


async def with_asyncio(sandbox: aio.Sandbox) -> None:
    await sandbox.exec("true", on_stdout=print)
    (await sandbox.usage()).pids.real
    sandbox.usage().pids
"""


def check(code: str, folder: Path) -> list[str]:
    (folder / "consumer.py").write_text(code)
    arguments = ["--strict", "--config-file=", f"--cache-dir={folder}/cache", "--no-error-summary", "consumer.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def test_mypy_strict_accepts_callers_of_both_faces(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert check(CONSUMER, tmp_path) == []


def test_mypy_finds_their_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    found = {int(line.split(":")[1]) for line in check(WRONG, tmp_path) if ": error:" in line}
    lines = WRONG.splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.startswith("    ") and "with " not in line}
    wrong.add(next(number for number, line in enumerate(lines, 1) if 'timeout="5"' in line))
    assert found == wrong
