"""The command ``kavach``.

Nothing heavy is imported here. A run like an earlier one is carried out before even its options are parsed; each other
command imports what it needs.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import NoReturn

    Command = Callable[[argparse.Namespace, list[str]], int]


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    _open_standard_descriptors()
    status = _run_as_before(sys.argv[1:])
    if status is None:
        sys.exit(carry_out(sys.argv[1:]))
    sys.stderr.flush()
    os._exit(status)  # nothing is open any more; taking the interpreter apart would cost as much as closing the box


def _open_standard_descriptors() -> None:
    """Put /dev/null where our caller has closed a standard stream, or the next pipe we make would take its place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _run_as_before(argv: list[str]) -> int | None:
    """Run as an earlier run with the same options did; None when there was none, or things have changed."""
    started = time.monotonic()
    from kavach_core.cli import kept_plans  # noqa: PLC0415 - the names before it answer without

    kept = kept_plans.find(argv)
    launch = kept_plans.launcher(kept) if kept is not None else None
    if kept is None or launch is None:
        return None
    result = launch(kept["plan"], kept["request"], kept_plans.command_of(argv))
    if result is None:
        return None
    status, complaint = result
    if complaint:
        _complain(complaint)
    if kept["summary"]:
        from kavach_core.cli.summary import print_summary  # noqa: PLC0415 - hardly ever asked for

        print_summary(kept["backend"], kept["score"], time.monotonic() - started, status)
    return status


def carry_out(argv: list[str]) -> int:
    """Carry out one command line and return its exit status.

    Errors of kavach's own go to standard error as one line each, with the hint, and give status 125.
    """
    from kavach_core.cli.arguments import parse  # noqa: PLC0415 - a run like an earlier one parses nothing

    options = parse(argv)
    from kavach_core.errors import ConfigError, KavachError  # noqa: PLC0415 - not needed for --help
    from kavach_core.exit_status import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_INTERRUPTED  # noqa: PLC0415 - as above

    try:
        return _flushed(_dispatch(options.command)(options, argv))
    except ConfigError as error:
        for problem in error.problems:
            _complain(str(problem))
    except KavachError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would complain once more as it ends
        return EXIT_BROKEN_PIPE
    return EXIT_FAILED


def _flushed(status: int) -> int:
    """Return ``status`` once all that was printed has gone out, or raise while somebody can still handle it."""
    sys.stdout.flush()
    return status


def _complain(text: str) -> None:
    print(f"kavach: {text}", file=sys.stderr)


def _dispatch(command: str) -> Command:
    """Return what carries out a command; only that is imported."""
    module, name = {
        "run": ("run", "run_command_line"),
        "backends": ("backends", "show_backends"),
        "doctor": ("doctor", "show_doctor"),
        "gc": ("gc", "collect_garbage"),
        "ps": ("ps", "show_boxes"),
        "cp": ("cp", "copy_files"),
    }[command]
    found: Command = getattr(importlib.import_module(f"kavach_core.cli.{module}"), name)
    return found
