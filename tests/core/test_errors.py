"""The error tree: one root, stable codes, hints, fields that a program can read."""

from __future__ import annotations

import builtins

import pytest

from kavach_core import errors
from kavach_core.errors import (
    CleanupError,
    ConfigError,
    CreateError,
    DiscoveryError,
    DuplicatePlugin,
    ExecError,
    ExecTimeout,
    FieldProblem,
    FileOperationFailed,
    FileTimeout,
    FileTooLarge,
    GuestProtocolError,
    IncompatiblePlugin,
    InvalidTransition,
    KavachError,
    LimitExceeded,
    NoBackendAvailable,
    NonzeroExit,
    NotRegularFile,
    PluginLoadError,
    PoolClosed,
    SandboxError,
    SandboxGone,
    StartFailed,
    UnknownPlugin,
    UnsupportedPolicy,
    WrongLoop,
)
from kavach_core.types import ExecResult, Outcome

# Codes reach dashboards and alerts: one that changes breaks somebody. Adding is fine, changing is not.
CODES = {
    KavachError: "kavach_error",
    ConfigError: "invalid_config",
    UnsupportedPolicy: "unsupported_policy",
    DiscoveryError: "discovery_failed",
    UnknownPlugin: "unknown_plugin",
    DuplicatePlugin: "duplicate_plugin",
    PluginLoadError: "plugin_load_failed",
    IncompatiblePlugin: "incompatible_plugin",
    NoBackendAvailable: "no_backend_available",
    SandboxError: "sandbox_error",
    CreateError: "create_failed",
    SandboxGone: "sandbox_gone",
    GuestProtocolError: "guest_protocol",
    InvalidTransition: "invalid_transition",
    CleanupError: "cleanup_failed",
    PoolClosed: "pool_closed",
    FileOperationFailed: "file_operation_failed",
    FileTimeout: "file_timeout",
    FileTooLarge: "file_too_large",
    NotRegularFile: "not_regular_file",
    ExecError: "exec_failed",
    NonzeroExit: "nonzero_exit",
    LimitExceeded: "limit_exceeded",
    ExecTimeout: "timeout",
    StartFailed: "start_failed",
    WrongLoop: "wrong_loop",
}

PARENTS = {
    ConfigError: KavachError,
    UnsupportedPolicy: ConfigError,
    DiscoveryError: KavachError,
    UnknownPlugin: DiscoveryError,
    DuplicatePlugin: DiscoveryError,
    PluginLoadError: DiscoveryError,
    IncompatiblePlugin: DiscoveryError,
    NoBackendAvailable: DiscoveryError,
    SandboxError: KavachError,
    CreateError: SandboxError,
    SandboxGone: SandboxError,
    GuestProtocolError: SandboxError,
    InvalidTransition: SandboxError,
    CleanupError: SandboxError,
    ExecError: KavachError,
    NonzeroExit: ExecError,
    ExecTimeout: ExecError,
    StartFailed: ExecError,
}


def all_subclasses(cls: type[KavachError]) -> set[type[KavachError]]:
    """Every class below ``cls`` that core itself defines."""
    below = set(cls.__subclasses__())
    found = below.union(*(all_subclasses(child) for child in below))
    return {child for child in found if child.__module__ == errors.__name__}


def test_every_error_has_the_code_it_always_had() -> None:
    assert {cls: cls.code for cls in {KavachError, *all_subclasses(KavachError)}} == CODES


def test_codes_are_unique_and_each_class_has_its_own() -> None:
    assert len(set(CODES.values())) == len(CODES)
    for cls in CODES:
        assert "code" in vars(cls)


def test_the_tree_is_as_promised() -> None:
    for cls, parent in PARENTS.items():
        assert cls.__mro__[1] is parent


def test_errors_are_caught_where_the_builtin_is_expected() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ExecTimeout, TimeoutError)


def test_no_error_hides_a_builtin() -> None:
    assert not {cls.__name__ for cls in CODES} & set(dir(builtins))


@pytest.mark.parametrize(("hint", "text"), [(None, "it broke"), ("mend it", "it broke (mend it)")])
def test_the_hint_is_part_of_the_text(hint: str | None, text: str) -> None:
    error = KavachError("it broke", hint=hint)
    assert (str(error), error.message, error.hint) == (text, "it broke", hint)


def test_a_field_problem_reads_as_one_line() -> None:
    problem = FieldProblem("limits.memory", "is too small", "at least 1M")
    assert str(problem) == "limits.memory: is too small (at least 1M)"
    assert repr(problem) == "FieldProblem('limits.memory: is too small (at least 1M)')"
    assert str(FieldProblem("cwd", "is missing")) == "cwd: is missing"


@pytest.mark.parametrize(
    ("field", "path"), [("memory", "limits.memory"), ("[2]", "limits[2]"), ("", "limits"), ("a.b", "limits.a.b")]
)
def test_a_problem_moves_below_its_parent(field: str, path: str) -> None:
    moved = FieldProblem(field, "is wrong", "mend it").under("limits")
    assert (moved.field, moved.reason, moved.hint) == (path, "is wrong", "mend it")


def test_a_config_error_holds_and_tells_every_problem() -> None:
    problems = [FieldProblem("a", "is wrong"), FieldProblem("b", "is missing", "write b")]
    error = ConfigError(problems)
    assert error.problems == tuple(problems)
    assert str(error) == "a: is wrong; b: is missing (write b)"


def test_a_discovery_error_names_the_plugin() -> None:
    error = UnknownPlugin("no backend 'x' is installed", name="x", hint="pip install x")
    assert (error.name, str(error)) == ("x", "no backend 'x' is installed (pip install x)")


def test_a_sandbox_error_says_where() -> None:
    error = CreateError("no", sandbox_id="00ff", backend="runc", stage="boot", hint="kavach doctor")
    assert (error.sandbox_id, error.backend, error.stage) == ("00ff", "runc", "boot")
    bare = SandboxGone("gone")
    assert (bare.sandbox_id, bare.backend, bare.stage, bare.hint) == (None, None, None, None)


@pytest.mark.parametrize("cls", [ExecError, NonzeroExit, ExecTimeout, StartFailed])
def test_an_exec_error_carries_the_result(cls: type[ExecError]) -> None:
    result = ExecResult(argv=("x",), outcome=Outcome.NONZERO_EXIT, exit_code=3)
    error = cls("x failed", result=result, hint="look at it")
    assert error.result is result
    assert str(error) == "x failed (look at it)"
