"""The error tree: one root, typed fields, a stable ``code``, and a hint that says what to do.

``code`` is part of the public contract: it never changes once released and is what telemetry
reports as ``error.type``. The text of a message is not.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False  # typing's own constant costs the import of typing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar

    from kavach_core.types import ExecResult


class FieldProblem:
    """One field that was refused: which, why, and what to write instead.

    Attributes:
        field: path of the field, for example ``limits.memory`` or ``argv[2]``.
        reason: what is wrong with it.
        hint: what would be right, or None where the reason says it.
    """

    __slots__ = ("field", "hint", "reason")

    def __init__(self, field: str, reason: str, hint: str | None = None) -> None:
        self.field = field
        self.reason = reason
        self.hint = hint

    def under(self, prefix: str) -> FieldProblem:
        """Return the same problem with its path moved below ``prefix``."""
        joiner = "" if not self.field or self.field.startswith("[") else "."
        return FieldProblem(f"{prefix}{joiner}{self.field}", self.reason, self.hint)

    def __str__(self) -> str:
        text = f"{self.field}: {self.reason}"
        return f"{text} ({self.hint})" if self.hint else text

    def __repr__(self) -> str:
        return f"FieldProblem({str(self)!r})"


class KavachError(Exception):
    """Root of every error that kavach raises on purpose.

    Attributes:
        code: stable identifier of the class of error.
        hint: what the caller can do about it, or None.
    """

    code: ClassVar[str] = "kavach_error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(KavachError, ValueError):
    """Input that was refused before anything was started.

    Attributes:
        problems: every field that was refused, not just the first.
    """

    code = "invalid_config"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class UnsupportedPolicy(ConfigError):  # noqa: N818 - named for what it says, as the builtin StopIteration is
    """The policy asks for what this backend cannot enforce on this host. Nothing was started."""

    code = "unsupported_policy"


class WrongLoop(KavachError, RuntimeError):  # noqa: N818 - as above
    """The call cannot be made from here: inside of trio, after the block has ended, or in a forked child."""

    code = "wrong_loop"


class DiscoveryError(KavachError):
    """A plugin could not be found or used.

    Attributes:
        name: the plugin that was asked for.
    """

    code = "discovery_failed"

    def __init__(self, message: str, *, name: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class UnknownPlugin(DiscoveryError):  # noqa: N818 - reads better at the raise and in a log
    """No installed distribution provides a plugin of this name."""

    code = "unknown_plugin"


class DuplicatePlugin(DiscoveryError):  # noqa: N818 - as above
    """Two installed distributions provide a plugin of the same name; neither was imported."""

    code = "duplicate_plugin"


class PluginLoadError(DiscoveryError):
    """The plugin is installed but could not be imported."""

    code = "plugin_load_failed"


class IncompatiblePlugin(DiscoveryError):  # noqa: N818 - as above
    """The plugin was written for another version of the contract, or lacks a part of it."""

    code = "incompatible_plugin"


class NoBackendAvailable(DiscoveryError):  # noqa: N818 - as above
    """No installed backend can start a box on this host. There is no fake one to fall back to."""

    code = "no_backend_available"


class SandboxError(KavachError):
    """Something went wrong with one sandbox.

    Attributes:
        sandbox_id: the sandbox, or None when it has none yet.
        backend: name of its backend, or None.
        stage: what was being done, for example ``boot`` or ``exec``.
        result: what is known of the command that was running, with the output read so far, or None.
    """

    code = "sandbox_error"

    def __init__(
        self,
        message: str,
        *,
        sandbox_id: str | None = None,
        backend: str | None = None,
        stage: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.sandbox_id = sandbox_id
        self.backend = backend
        self.stage = stage
        self.result: ExecResult | None = None


class CreateError(SandboxError):
    """The box could not be started. Nothing of it is left."""

    code = "create_failed"


class SandboxGone(SandboxError):  # noqa: N818 - as above
    """The box ended while it was needed: it died, or was closed."""

    code = "sandbox_gone"


class GuestProtocolError(SandboxError):
    """The agent's side of the channel broke the protocol. The box has been ended."""

    code = "guest_protocol"


class InvalidTransition(SandboxError):  # noqa: N818 - as above
    """The sandbox is not in a state that allows this call."""

    code = "invalid_transition"


class CleanupError(SandboxError):
    """The box may have left something on the host that could not be removed in time."""

    code = "cleanup_failed"


class PoolClosed(KavachError):  # noqa: N818 - as above
    """The pool of boxes has been closed, and gives none out any more."""

    code = "pool_closed"


class ExecError(KavachError):
    """A command did not do what ``check=True`` demands.

    Attributes:
        result: what is known of the command, with the output read so far.
    """

    code = "exec_failed"

    def __init__(self, message: str, *, result: ExecResult, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


class NonzeroExit(ExecError):  # noqa: N818 - as above
    """The command ended by itself, with a status other than 0 or by a signal."""

    code = "nonzero_exit"


class ExecTimeout(ExecError, TimeoutError):  # noqa: N818 - as above
    """The command was killed at its deadline."""

    code = "timeout"


class LimitExceeded(ExecError):  # noqa: N818 - as above
    """The command met a limit: it was killed for want of memory or for what it wrote, or could start no process."""

    code = "limit_exceeded"


class StartFailed(ExecError):  # noqa: N818 - as above
    """The command could not be started in the box: no such program, not executable, no such directory."""

    code = "start_failed"


class FileOperationFailed(SandboxError):  # noqa: N818 - as above
    """A call on the files of a box did not come to its end: who does it there was killed, or makes no sense."""

    code = "file_operation_failed"


class FileTimeout(SandboxError, TimeoutError):  # noqa: N818 - as above
    """A call on the files of a box was ended at its deadline."""

    code = "file_timeout"


class FileTooLarge(KavachError, OSError):  # noqa: N818 - as above
    """A file, directory or tree is larger than the caller allows."""

    code = "file_too_large"

    def __init__(self, message: str, *, filename: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno.EFBIG
        self.strerror = message
        self.filename = filename


class NotRegularFile(KavachError, OSError):  # noqa: N818 - as above
    """What was to be read or written is a device, a FIFO or a socket."""

    code = "not_regular_file"

    def __init__(self, message: str, *, filename: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno.EINVAL
        self.strerror = message
        self.filename = filename
