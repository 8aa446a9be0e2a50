"""Whether our terminal is ours at the moment. Imports nothing, because a run with a kept plan asks as well."""

from __future__ import annotations

import os

NAP_SECONDS = 0.25
"""How often to look whether that has changed: a shell that brings a running job to the foreground tells it nothing."""


def in_background(descriptor: int) -> bool:
    """Say whether a terminal is another job's now: the kernel stops who reads from it, or sets it, all the same.

    False for what is not our controlling terminal, and where no shell is left to bring us to the foreground: there the
    kernel stops nobody, and a read ends with an error.
    """
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp() and os.getsid(os.getppid()) == os.getsid(0)
    except OSError:
        return False
