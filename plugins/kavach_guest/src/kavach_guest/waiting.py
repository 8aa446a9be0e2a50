"""Waiting for descriptors without an event loop. By poll, because select knows none above 1023."""

from __future__ import annotations

import select

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence


def ready(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Wait until some of ``descriptors`` can be read, or have ended; return which, none when the time is over."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]


def wait_for_room(descriptor: int, other: int = -1) -> bool:
    """Wait until ``descriptor`` can be written to; False when ``other`` can be read before that.

    Args:
        descriptor: what is to be written to.
        other: what to look at meanwhile, unless it is -1.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if other >= 0:
        poll.register(other, select.POLLIN)
    return descriptor in dict(poll.poll())
