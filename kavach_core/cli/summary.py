"""The line that ``kavach run --summary`` ends with."""

import sys


def print_summary(backend: str, score: str, seconds: float, status: int) -> None:
    """Print which backend ran the command, its score, how long it took with everything, and the status."""
    line = f"kavach: backend {backend} · score {score} · {seconds * 1000:.0f} ms · exit {status}"
    print(line, file=sys.stderr)
