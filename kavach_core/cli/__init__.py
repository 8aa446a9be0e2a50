"""The command ``kavach``.

Nothing heavy is imported here: ``--help`` and ``--version`` answer at once, and each command imports what it needs.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from kavach_core.cli.arguments import parse
from kavach_core.cli.summary import print_summary
from kavach_core.exit_status import EXIT_FAILED, SIGNAL_EXIT_BASE

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[argparse.Namespace], int]


def main() -> None:
    """Run the command line and exit with its status."""
    _open_standard_descriptors()
    sys.exit(run(sys.argv[1:]))


def _open_standard_descriptors() -> None:
    """Put /dev/null where our caller has closed a standard stream, or the next pipe we make would take its place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def run(argv: list[str]) -> int:
    """Run one command line and return its exit status.

    Errors of kavach's own go to standard error as one line each, with the hint, and give status 125.
    """
    options = parse(argv)
    status = _run_as_before(options) if options.command == "run" else None
    return status if status is not None else _run_the_long_way(options)


def _run_as_before(options: argparse.Namespace) -> int | None:
    """Run as an earlier run with the same options did; None when there was none, or things have changed."""
    from kavach_core.cli import kept_plans  # noqa: PLC0415 - not needed for --help

    started = time.monotonic()
    kept = kept_plans.find(options) if kept_plans.is_plain(options) else None
    launch = kept_plans.launcher(kept) if kept is not None else None
    if kept is None or launch is None:
        return None
    result = launch(kept["plan"], kept["request"], options.argv)
    if result is None:
        return None
    status, complaint = result
    if complaint:
        _complain(complaint)
    if options.summary:
        print_summary(kept["backend"], kept["score"], time.monotonic() - started, status)
    return status


def _run_the_long_way(options: argparse.Namespace) -> int:
    from kavach_core.errors import ConfigError, KavachError  # noqa: PLC0415 - not needed for --help

    try:
        return _dispatch(options.command)(options)
    except ConfigError as error:
        for problem in error.problems:
            _complain(str(problem))
    except KavachError as error:
        _complain(str(error))
    except BaseExceptionGroup as group:
        ours, rest = group.split(KavachError)
        if rest is not None or ours is None:
            raise
        for problem_ in ours.exceptions:
            _complain(str(problem_))
    except KeyboardInterrupt:
        return SIGNAL_EXIT_BASE + signal.SIGINT
    return EXIT_FAILED


def _complain(text: str) -> None:
    print(f"kavach: {text}", file=sys.stderr)


def _dispatch(command: str) -> Command:
    if command == "run":
        from kavach_core.cli.run import run_command_line as chosen  # noqa: PLC0415 - only what is asked for is imported
    elif command == "backends":
        from kavach_core.cli.backends import show_backends as chosen  # noqa: PLC0415
    else:
        from kavach_core.cli.doctor import show_doctor as chosen  # noqa: PLC0415
    return chosen
