"""The command ``kavach``.

Nothing heavy is imported here: ``--help`` and ``--version`` answer at once, and each command imports what it needs.
"""

from __future__ import annotations

import sys

from kavach_core.cli.arguments import EXIT_FAILED, parse

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[argparse.Namespace], int]


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit status.

    Errors of kavach's own go to standard error as one line each, with the hint, and give status 125.
    """
    options = parse(argv)
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
        return 130
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
