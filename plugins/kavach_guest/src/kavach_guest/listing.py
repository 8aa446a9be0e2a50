"""A listing of the processes of a box, as the agent tells it: no input or output, like ``command``."""

from __future__ import annotations

from typing import Final

from kavach_core.printable import printable
from kavach_core.types import ProcessInfo
from kavach_guest import protocol

_MOST_PROCESSES: Final = 65_536


class Listing:
    """What has been told so far of one listing.

    Attributes:
        complete: True when all of it has been told.
    """

    def __init__(self) -> None:
        self.complete = False
        self._processes: list[ProcessInfo] = []

    def apply(self, frame: protocol.Frame) -> None:
        """Take a PROCESS or LISTED frame.

        Raises:
            ProtocolViolation: when there are more processes than can be.
        """
        if frame.type == protocol.GUEST_LISTED:
            self.complete = True
        elif len(self._processes) == _MOST_PROCESSES:
            raise protocol.ProtocolViolation("a listing without an end")
        else:
            self._processes.append(_info(protocol.decode_process(frame.payload)))

    @property
    def processes(self) -> tuple[ProcessInfo, ...]:
        """The processes, in the agent's order."""
        return tuple(self._processes)


def _info(process: protocol.Process) -> ProcessInfo:
    return ProcessInfo(
        pid=process.pid,
        parent_pid=process.parent,
        exec_id=process.label or None,
        uid=process.uid,
        state=process.state,
        threads=process.threads,
        cpu_seconds=process.cpu_us / 1e6,
        rss_bytes=process.rss_bytes,
        name=printable(process.name),
    )
