"""Going on the long way with a command that ``express`` has started, because somebody asks for its box.

The state of the channel, the pipes, and what has come and is not yet written change hands between two steps of the
work, so that no byte is lost or doubled. The box itself stays with ``express``, which ends it after the command.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from kavach_core.cli.streams import our_input, writer
from kavach_core.control.server import Server
from kavach_core.errors import GuestProtocolError, KavachError, SandboxError
from kavach_core.execution import run_command
from kavach_core.exit_status import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_TIMEOUT
from kavach_core.files import SandboxFiles
from kavach_core.runs import Command, Run
from kavach_core.types import ExecRequest, LimitEvents, Usage, User
from kavach_guest.channel import GuestChannel
from kavach_guest.process import AgentProcess
from kavach_guest.session import AgentSession

if TYPE_CHECKING:
    from kavach_guest.conversation import Conversation
    from kavach_guest.express import Box, Signals


def adopt(conversation: Conversation, box: Box, signals: Signals) -> tuple[int, str]:
    """Go on with a conversation until its command has ended, and let others copy files meanwhile.

    Returns:
        The status to exit with and what to say, as ``Conversation.hold`` does; of no meaning after a signal.
    """
    signals.heed(lambda: None)  # trio must not be interrupted; what has come is looked up once it runs
    return trio.run(_go_on, conversation, box, signals)


async def _go_on(conversation: Conversation, box: Box, signals: Signals) -> tuple[int, str]:
    receive_fd, send_fd, knock_fd, knock_path = box.hand_over()
    channel = GuestChannel(receive_fd=receive_fd, send_fd=send_fd, sandbox_id=box.id, on_violation=box.kill)
    channel.go_on(conversation.parser, conversation.command, minor=conversation.minor)
    session = _Session(channel, _Holder(box), conversation)
    guest = _Guest(id=box.id, files=_files(session, box.id, conversation))
    server = Server(knock_fd, knock_path, {guest.id: guest}.get)
    status = EXIT_FAILED, "ended by a signal"
    async with trio.open_nursery() as nursery:
        _heed(signals, nursery.cancel_scope)
        nursery.start_soon(server.serve)
        try:
            status = await _carry(session, conversation)
        finally:
            channel.close()
            nursery.cancel_scope.cancel()
    signals.heed(lambda: None)
    return status


def _heed(signals: Signals, scope: trio.CancelScope) -> None:
    """Have the scope cancelled by the signals that end us, and by one that has come already."""
    token = trio.lowlevel.current_trio_token()

    def notify() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(scope.cancel)

    signals.heed(notify)
    if signals.received is not None:
        scope.cancel()


async def _carry(session: _Session, conversation: Conversation) -> tuple[int, str]:
    """Carry bytes between our standard streams and the command until it has ended, or its deadline has come."""
    with trio.CancelScope() as scope:
        command = Command(
            argv=(),
            request=session.request,
            input=our_input() if conversation.input_open else None,
            timeout=_remaining(conversation.deadline),
            max_output=0,
            on_stdout=writer(1, scope),
            on_stderr=writer(2, scope),
        )
        try:
            return _status(await run_command(session, command))
        except KavachError as error:
            return EXIT_FAILED, str(error)
    return EXIT_BROKEN_PIPE, ""


def _remaining(deadline: float) -> float | None:
    return None if deadline == float("inf") else max(0.0, deadline - time.monotonic())


def _status(run: Run) -> tuple[int, str]:
    if run.stopped_by is not None:
        return EXIT_TIMEOUT, ""
    if run.exit is not None:
        return run.exit.status, ""
    return EXIT_FAILED, f"the box ended: {_reason(run.gone)}"


def _reason(gone: SandboxError | None) -> str:
    if isinstance(gone, GuestProtocolError):
        return gone.message
    return "the agent has gone"


def _files(session: AgentSession, box_id: str, conversation: Conversation) -> SandboxFiles:
    request = conversation.request
    return SandboxFiles(
        session.files,
        cwd=request.cwd.decode(errors="surrogateescape"),
        user=User(uid=request.uid, gid=request.gid, groups=request.groups),
        sandbox_id=box_id,
        require_running=lambda: None,
    )


@frozen(kw_only=True)
class _Guest:
    """What others see of the box."""

    id: str
    files: SandboxFiles


class _Holder:
    """The box, as the session needs it. ``express`` has it, and neither counts nor pauses."""

    def __init__(self, box: Box) -> None:
        self._box = box

    async def usage(self) -> Usage:
        """Return nothing: nobody counts here."""
        await trio.lowlevel.checkpoint()
        return Usage()

    def limit_events(self) -> LimitEvents:
        """Return nothing: nobody counts here."""
        return LimitEvents()

    async def pause(self) -> None:
        """Refuse it.

        Raises:
            SandboxError: always.
        """
        await trio.lowlevel.checkpoint()
        raise SandboxError("a box of kavach run cannot be paused", sandbox_id=self._box.id, stage="pause")

    async def resume(self) -> None:
        """Do nothing: it has not been paused."""
        await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        """Kill it; ``express`` waits for it and removes it."""
        self._box.kill()
        await trio.lowlevel.checkpoint()


class _Session(AgentSession):
    """The session of a box with a command in it that runs: to start that is to get hold of it.

    Attributes:
        request: what was asked for when it was started.
    """

    def __init__(self, channel: GuestChannel, holder: _Holder, conversation: Conversation) -> None:
        super().__init__(channel, holder)
        asked = conversation.request
        self.request = ExecRequest(
            argv=asked.argv,
            env=asked.env,
            cwd=asked.cwd,
            user=User(uid=asked.uid, gid=asked.gid, groups=asked.groups),
            stdin=conversation.input_open,
        )
        self._running = self._process(conversation.command, self.request)

    async def start(self, request: ExecRequest) -> AgentProcess:
        """Return the command that runs."""
        return self._running if request is self.request else await super().start(request)
