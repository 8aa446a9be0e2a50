"""kavach: run commands nobody trusts and get back what they did, contained, measured and accounted for.

The names below are imported when they are first used, so that ``import kavach_core`` costs next to nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing's own constant costs the import of typing

if TYPE_CHECKING:
    from kavach_core.config import SandboxConfig as SandboxConfig
    from kavach_core.converter import load_config as load_config
    from kavach_core.errors import CleanupError as CleanupError
    from kavach_core.errors import ConfigError as ConfigError
    from kavach_core.errors import CreateError as CreateError
    from kavach_core.errors import DiscoveryError as DiscoveryError
    from kavach_core.errors import ExecError as ExecError
    from kavach_core.errors import ExecTimeout as ExecTimeout
    from kavach_core.errors import FieldProblem as FieldProblem
    from kavach_core.errors import FileOperationFailed as FileOperationFailed
    from kavach_core.errors import FileTimeout as FileTimeout
    from kavach_core.errors import FileTooLarge as FileTooLarge
    from kavach_core.errors import KavachError as KavachError
    from kavach_core.errors import LimitExceeded as LimitExceeded
    from kavach_core.errors import NoBackendAvailable as NoBackendAvailable
    from kavach_core.errors import NonzeroExit as NonzeroExit
    from kavach_core.errors import NotRegularFile as NotRegularFile
    from kavach_core.errors import PoolClosed as PoolClosed
    from kavach_core.errors import SandboxError as SandboxError
    from kavach_core.errors import SandboxGone as SandboxGone
    from kavach_core.errors import StartFailed as StartFailed
    from kavach_core.errors import UnsupportedPolicy as UnsupportedPolicy
    from kavach_core.errors import WrongLoop as WrongLoop
    from kavach_core.files import SandboxFiles as SandboxFiles
    from kavach_core.files import Transferred as Transferred
    from kavach_core.guest_files import FileKind as FileKind
    from kavach_core.guest_files import FileStat as FileStat
    from kavach_core.lifecycle import State as State
    from kavach_core.policy import Limits as Limits
    from kavach_core.policy import SandboxPolicy as SandboxPolicy
    from kavach_core.pool import Pool as Pool
    from kavach_core.pool import PoolStats as PoolStats
    from kavach_core.pool import open_pool as open_pool
    from kavach_core.process import Process as Process
    from kavach_core.sandbox import Sandbox as Sandbox
    from kavach_core.sandbox import create_sandbox as create_sandbox
    from kavach_core.sandbox import open_sandbox as open_sandbox
    from kavach_core.scoring import Score as Score
    from kavach_core.types import Bound as Bound
    from kavach_core.types import ExecResult as ExecResult
    from kavach_core.types import GuestExit as GuestExit
    from kavach_core.types import Outcome as Outcome
    from kavach_core.types import Output as Output
    from kavach_core.types import ProcessInfo as ProcessInfo
    from kavach_core.types import Stream as Stream
    from kavach_core.types import TerminalSize as TerminalSize
    from kavach_core.types import Usage as Usage
    from kavach_core.types import User as User

__version__ = "0.1.0"

_HOMES = {
    "config": ("SandboxConfig",),
    "converter": ("load_config",),
    "errors": (
        "CleanupError",
        "ConfigError",
        "CreateError",
        "DiscoveryError",
        "ExecError",
        "ExecTimeout",
        "FieldProblem",
        "FileOperationFailed",
        "FileTimeout",
        "FileTooLarge",
        "KavachError",
        "LimitExceeded",
        "NoBackendAvailable",
        "NonzeroExit",
        "NotRegularFile",
        "PoolClosed",
        "SandboxError",
        "SandboxGone",
        "StartFailed",
        "UnsupportedPolicy",
        "WrongLoop",
    ),
    "files": ("SandboxFiles", "Transferred"),
    "guest_files": ("FileKind", "FileStat"),
    "lifecycle": ("State",),
    "policy": ("Limits", "SandboxPolicy"),
    "pool": ("Pool", "PoolStats", "open_pool"),
    "process": ("Process",),
    "sandbox": ("Sandbox", "create_sandbox", "open_sandbox"),
    "scoring": ("Score",),
    "types": (
        "Bound",
        "ExecResult",
        "GuestExit",
        "Outcome",
        "Output",
        "ProcessInfo",
        "Stream",
        "TerminalSize",
        "Usage",
        "User",
    ),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)  # noqa: PLE0605 - the same names as above, which type checkers read there


if not TYPE_CHECKING:  # or type checkers would believe in every name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
