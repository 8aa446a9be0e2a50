"""Text from a box or a runtime, made safe to show to a person."""

from __future__ import annotations


def printable(raw: bytes) -> str:
    """Return text without control characters, which could steer a terminal or forge a line of a log."""
    text = raw.decode(errors="replace")
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in text
    )
