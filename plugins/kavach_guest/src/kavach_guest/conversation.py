"""A command's frames on one side, our standard streams on the other: the talking part of ``express``."""

from __future__ import annotations

import os
import signal
import stat
import time

from kavach_core.cli.foreground import NAP_SECONDS, in_background
from kavach_core.exit_status import (
    EXIT_FAILED,
    EXIT_TIMEOUT,
    SIGNAL_EXIT_BASE,
    status_of_end,
    status_of_failed_start,
)
from kavach_guest import protocol
from kavach_guest.command import Command, apply
from kavach_guest.waiting import ready, wait_for_room

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from typing import Any

    from kavach_guest.express import Box

_BOOT_SECONDS = 30.0
_DRAIN_GRACE_SECONDS = 0.25
_LATE_OUTPUT_BYTES = 4 * 1024 * 1024
_KILL_SECONDS = 0.5
_CHUNK_BYTES = 65_536
_NAP_SECONDS = 3600.0
_NEVER = float("inf")
_ALARM_REPEAT_SECONDS = 0.1  # the first may come between two writes


class _DeadlineReached(BaseException):
    pass


class _Request:
    """What ``protocol.encode_start`` wants of a request; stands for ExecRequest, and is its own user."""

    def __init__(self, data: dict[str, Any], argv: list[str]) -> None:
        self.argv = tuple(os.fsencode(argument) for argument in argv)
        self.env = tuple(os.fsencode(variable) for variable in data["env"])
        self.cwd = os.fsencode(data["cwd"])
        self.user = self
        self.uid = data["uid"]
        self.gid = data["gid"]
        self.groups = tuple(data["groups"])
        self.stdin = True
        self.terminal = None
        self.exec_id = 1


class Conversation:
    """One command in a box that has just been started.

    Attributes:
        request: what was asked for.
        deadline: when the command is killed, on the monotonic clock.
        parser: splits what the agent sends.
        command: its channel; what was not written yet is in its ``outputs``.
        input_open: our standard input has not ended.
        minor: version of the protocol that the agent speaks.
    """

    def __init__(self, box: Box, request: dict[str, Any], argv: list[str]) -> None:
        self._box = box
        self.request = _Request(request, argv)
        self._timeout: float = request["timeout"] or 0.0
        self.deadline = _NEVER
        self.parser = protocol.FrameParser()
        self.command = Command(1)
        self.input_open = True
        self.minor = 0
        self._from_terminal = os.isatty(0)
        self._outlets: dict[int, int] = {}
        self._blocking = False
        self._knocked = False
        self._killing = False
        self._late = 0
        self._patience = _DRAIN_GRACE_SECONDS

    def greet(self) -> bool:
        """Exchange HELLO; False when the agent does not, as it should, or not in time."""
        try:
            self._tell(protocol.encode_hello())
            frames = list(self.parser.feed(self._box.receive(_BOOT_SECONDS) or b""))
            if [frame.type for frame in frames] != [protocol.GUEST_HELLO]:
                return False
            major, self.minor = protocol.decode_hello(frames[0].payload)
        except protocol.ProtocolViolation:
            return False
        return bool(major == protocol.MAJOR)

    def hold(self) -> tuple[int, str] | None:
        """Start the command and carry bytes until it has ended, or its deadline has come.

        Returns:
            The status to exit with and what to say; None when somebody knocks, and ``adoption`` has to go on.
        """
        request: Any = self.request  # has what encode_start needs
        self.deadline = time.monotonic() + self._timeout if self._timeout else _NEVER
        signal.signal(signal.SIGALRM, self._interrupt)
        try:
            self._tell(protocol.encode_start(self.command.number, request))
            signal.setitimer(signal.ITIMER_REAL, self._timeout, _ALARM_REPEAT_SECONDS)
            knocked = self._carry()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except _DeadlineReached:
            if self._is_complete:  # what is written by those it has left behind holds nobody up
                return self._status()
            self._kill()
            return EXIT_TIMEOUT, ""
        except BrokenPipeError:
            return SIGNAL_EXIT_BASE + signal.SIGPIPE, ""
        except OSError as error:
            return EXIT_FAILED, f"cannot pass on the output: {error.strerror}"
        except protocol.ProtocolViolation as violation:
            return EXIT_FAILED, f"the box ended: {violation}"
        return None if knocked else self._status()

    def _tell(self, frame: bytes) -> None:
        """Send a frame.

        Raises:
            ProtocolViolation: when the agent has gone.
        """
        try:
            self._box.send(frame)
        except BrokenPipeError:
            raise protocol.ProtocolViolation("the agent has gone") from None

    def _interrupt(self, _number: int, _: object) -> None:
        """Leave a read or a write that blocks when the deadline comes; anywhere else the loop sees to it by itself."""
        if self._blocking:
            raise _DeadlineReached

    def _carry(self) -> bool:
        """Carry bytes until the channel ends, or nothing of the command's own can come any more; True at a knock."""
        while not self.command.ended:
            ending = self._is_complete
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                raise _DeadlineReached
            asked = time.monotonic()
            ready = self._wait(min(remaining, self._patience if ending else _NAP_SECONDS))
            if ending:
                self._patience -= time.monotonic() - asked
                if not ready or self._patience <= 0 or self._late > _LATE_OUTPUT_BYTES:
                    return False
            self._knocked = self._box.knock_fd in ready
            if self._box.receive_fd in ready and not self._knocked:
                self._take()
            if self._knocked:
                return True
            if 0 in ready:
                self._feed()
        return False

    @property
    def _is_complete(self) -> bool:
        """True when nothing can come any more but what those write that the command has left behind."""
        told = self.minor >= protocol.MINOR_OF_DRAINED
        return self.command.complete if told else self.command.exit is not None

    def _wait(self, seconds: float) -> list[int]:
        sources = [self._box.receive_fd]
        if self.input_open and self.command.stdin_credit and self.command.exit is None:
            if self._is_held_off():
                seconds = min(seconds, NAP_SECONDS)
            else:
                sources.append(0)
        if self.command.exit is None and self._knocker() >= 0:
            sources.append(self._knocker())
        return ready(sources, seconds)

    def _knocker(self) -> int:
        """Return the descriptor at which somebody may knock now, or -1: only what has been started is handed over."""
        started = self.command.pid is not None and not self._killing
        return self._box.knock_fd if started else -1

    def _take(self) -> None:
        data = self._box.receive(_NAP_SECONDS)
        if not data:
            raise protocol.ProtocolViolation("the agent has gone")
        for frame in self.parser.feed(data):
            if frame.type == protocol.GUEST_ERROR:
                raise protocol.ProtocolViolation(repr(frame.payload.decode(errors="replace")))
            if frame.channel != self.command.number:
                raise protocol.ProtocolViolation("a frame for a channel that is not open")
            apply(frame, self.command)
            self._pass_on()

    def _pass_on(self) -> None:
        for number, output in self.command.outputs.items():
            while output.chunks and not self._knocked:
                chunk = output.take()
                output.put_back(self._write(number, chunk))
                if self._is_complete:
                    self._late += len(chunk)
                grant = output.due()
                if grant:
                    self._tell(protocol.encode_credit(self.command.number, number, grant))

    def _is_held_off(self) -> bool:
        """Say whether what is typed is for another job: to read it would have us stopped."""
        return self._from_terminal and in_background(0)

    def _feed(self) -> None:
        if self._is_held_off():
            return
        try:
            self._blocking = True  # another reader of the same terminal or pipe may have been quicker
            data = os.read(0, min(self.command.stdin_credit, _CHUNK_BYTES))
        except BlockingIOError:
            return
        except OSError:  # a directory, or a terminal that has gone
            data = b""
        finally:
            self._blocking = False
        if not data:
            self._end_input()
            return
        self.command.stdin_credit -= len(data)
        self._tell(protocol.encode(protocol.DATA, self.command.number, data))

    def _end_input(self) -> None:
        self.input_open = False
        self._tell(protocol.encode(protocol.EOF, self.command.number))

    def _kill(self) -> None:
        """Kill the command, so that what it had written still comes, for as long as a kill may take."""
        self.input_open = False
        self._killing = True
        deadline = time.monotonic() + _KILL_SECONDS
        self.command.kills_sent += 1
        try:
            self._tell(protocol.encode(protocol.KILL, self.command.number))
            while not self.command.ended and ready([self._box.receive_fd], max(0.0, deadline - time.monotonic())):
                self._take()
        except (OSError, protocol.ProtocolViolation, _DeadlineReached):  # nobody may be reading what it wrote
            return  # the box is ended next in any case

    def _status(self) -> tuple[int, str]:
        command = self.command
        if command.failure is not None:
            stage, errno = command.failure
            program = os.fsdecode(self.request.argv[0])
            text = f"cannot start {program}: {os.strerror(errno)} ({stage})"
            return EXIT_FAILED if stage == "cwd" else status_of_failed_start(errno), text
        assert command.exit is not None  # noqa: S101 - else the loop had gone on
        return status_of_end(code=command.exit.code, by_signal=command.exit.by_signal), ""

    def _write(self, descriptor: int, data: bytes) -> bytes:
        """Write to one of our streams; return what is left when somebody knocks before there is room for all."""
        if descriptor not in self._outlets:
            self._outlets[descriptor] = _outlet(descriptor)
        self._blocking = True
        try:
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[os.write(self._outlets[descriptor], rest) :]
                except BlockingIOError:
                    if not wait_for_room(self._outlets[descriptor], self._knocker()):
                        self._knocked = True
                        break
            return bytes(rest)
        finally:
            self._blocking = False


def _outlet(descriptor: int) -> int:
    """Return a descriptor by which a pipe can be written to without blocking; of anything else, its own.

    To change the pipe's own flags would change them for all who share it.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return descriptor
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return descriptor  # nobody reads it any more, as writing will tell
