"""The grammar of the command line. Values are taken as text here; what they mean is checked with the configuration."""

from __future__ import annotations

import argparse
import os
import sys

from kavach_core import __version__
from kavach_core.exit_status import EXIT_FAILED

_EPILOG = """\
exit status of run: the command's own; 124 at the deadline; 125 when kavach failed; 126 when the
command cannot be executed, 127 when it is not there; 128+N when signal N ended it."""


_NARROWEST = 40
_WIDTH_ELSEWHERE = 100


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # exits all the same
        self.print_usage(sys.stderr)
        self.exit(EXIT_FAILED, f"kavach: {message}\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """As argparse's own, which would import shutil, and with it all compressors, to know the width of the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_terminal_width())


def _terminal_width() -> int:
    try:
        return max(os.get_terminal_size(1).columns - 2, _NARROWEST)
    except OSError:
        return _WIDTH_ELSEWHERE


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command line. Exits with 0 after help and version, with 125 on bad usage."""
    return _build().parse_args(argv)


def _build() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kavach", description="Run commands nobody trusts.", allow_abbrev=False, formatter_class=_Formatter
    )
    parser.add_argument("--version", action="version", version=f"kavach {__version__}")
    # With prog given, argparse need not format a usage line to know it.
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="kavach")
    _add_run(commands)
    for name, text in (
        ("backends", "list the installed backends and whether they work here"),
        ("doctor", "say what is missing on this host and how to mend it"),
        ("ps", "list the live sandboxes of this user"),
        ("gc", "remove what processes that were killed have left on this host"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=_Formatter)
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "gc":
            command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    _add_cp(commands)
    return parser


def _add_cp(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = "copy files between the host and a live sandbox"
    cp = commands.add_parser(
        "cp",
        help=text,
        description=f"{text}. One side is ID:PATH, with an ID that kavach ps shows, or at least 4 digits of it.",
        usage="kavach cp [OPTIONS] SOURCE [SOURCE ...] TARGET",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    cp.add_argument("--user", metavar="UID[:GID]", help="who reads or writes in the sandbox (default: its user)")
    cp.add_argument("--json", action="store_true", help="print what was copied as JSON")
    cp.add_argument("paths", nargs="+", metavar="PATH", help="what to copy, then where to")


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a command in a sandbox",
        description="Run a command in a fresh sandbox, with its input and output connected to yours.",
        usage="kavach run [OPTIONS] -- COMMAND [ARGUMENT ...]",
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    run.add_argument("-b", "--backend", help="backend, or auto for the strongest that works here (default)")
    run.add_argument(
        "--config",
        metavar="FILE",
        help="read the configuration from a TOML or JSON file; options go over it",
    )
    root = run.add_mutually_exclusive_group()
    root.add_argument(
        "--rootfs",
        metavar="DIR",
        help="directory to use as root; default: the host's programs, read-only",
    )
    root.add_argument("--image", metavar="REF", help="image to use as root")
    run.add_argument("--policy", help="minimal, basic (default) or strict")
    run.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a variable; repeatable",
    )
    run.add_argument("--cwd", metavar="DIR", help="working directory in the sandbox")
    run.add_argument("--user", metavar="UID[:GID]", help="user in the sandbox (default: nobody)")
    run.add_argument("--timeout", metavar="SECONDS", help="kill the command after this time")
    run.add_argument("--cpu-timeout", metavar="SECONDS", help="kill the command when it has used this much CPU time")
    run.add_argument("--output-limit", metavar="SIZE", help="kill the command when it has written more than this")
    run.add_argument(
        "-t",
        "--tty",
        action="store_true",
        help="give the command a terminal: yours, raw while it runs",
    )
    run.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="connect standard input, which is always done",
    )
    run.add_argument("--memory", metavar="SIZE", help="bound on memory, for example 512M")
    run.add_argument("--cpus", metavar="N", help="bound on CPUs, for example 1.5")
    run.add_argument("--pids", metavar="N", help="bound on processes")
    run.add_argument("--network", metavar="MODE", help="none (default)")
    run.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON instead of passing output through",
    )
    run.add_argument(
        "--summary",
        action="store_true",
        help="say on standard error which backend ran it, its score, the time",
    )
    run.add_argument("argv", nargs="*", metavar="COMMAND", help="the command and its arguments, after --")
