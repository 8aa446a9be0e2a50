"""The boxes of this trio run that ``kavach cp`` can reach.

The first one has a server started, which is a system task of trio: it belongs to nobody's nursery, and ends with the
run. It waits for one descriptor and costs nothing until somebody connects.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from kavach_core.control.listening import listen
from kavach_core.control.server import Server
from kavach_core.oci.workspace import workspace

if TYPE_CHECKING:
    from kavach_core.control.attending import Reachable

_log = logging.getLogger(__name__)


# A box that its caller forgets is forgotten here, too.
_Boxes = WeakValueDictionary[str, "Reachable"]

_boxes: trio.lowlevel.RunVar[_Boxes | None] = trio.lowlevel.RunVar("kavach_control")
_listening: set[Server] = set()


def register(box: Reachable) -> None:
    """Let a box be reached until it is unregistered. Without it the box is as good, so nothing is raised.

    A process without an instance has none of the boxes that ``kavach ps`` shows, so there is nothing to reach.
    """
    place = workspace()
    if place is None:
        return
    boxes = _boxes.get(None)
    if boxes is None:
        boxes = WeakValueDictionary()
        _boxes.set(boxes)
        _begin(str(place.path), boxes)
    boxes[box.id] = box


def unregister(box: Reachable) -> None:
    """Let a box be reached no more; what is being copied goes on, and finds the box gone when it is."""
    boxes = _boxes.get(None)
    if boxes is not None:
        boxes.pop(box.id, None)


def _begin(directory: str, boxes: _Boxes) -> None:
    try:
        descriptor, path = listen(directory)
    except OSError as error:
        _log.warning("kavach cp cannot reach the boxes of this process: %s", error)
        return
    server = Server(descriptor, path, boxes.get)
    _listening.add(server)
    try:
        trio.lowlevel.spawn_system_task(_serve, server)
    except RuntimeError:  # trio.run is about to return
        server.stop()
        _listening.discard(server)


async def _serve(server: Server) -> None:
    try:
        await server.serve()
    finally:
        _listening.discard(server)


def _forget() -> None:
    """A forked child must not hold the socket open: who connects to it would never be heard."""
    while _listening:
        _listening.pop().abandon()


os.register_at_fork(after_in_child=_forget)
