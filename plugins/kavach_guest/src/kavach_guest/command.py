"""The state of one channel, and the rules about the order of its frames. No input or output, like ``protocol``."""

from __future__ import annotations

from collections import deque

from kavach_guest import protocol

_LARGEST_WINDOW = 1_048_576


class Inbound:
    """One output stream of a command: what has come and has not been taken, and what more the agent may send."""

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.ended = False
        self.drained = False
        self._credit = protocol.INITIAL_CREDIT
        self._window = protocol.INITIAL_CREDIT
        self._owed = 0

    @property
    def complete(self) -> bool:
        """True when all has come that was written before the end of the command's first process."""
        return self.ended or self.drained

    def add(self, data: bytes) -> None:
        """Take one DATA frame.

        Raises:
            ProtocolViolation: when the agent had no credit for it, or the stream has ended.
        """
        if self.ended or len(data) > self._credit:
            raise protocol.ProtocolViolation("output beyond its credit or its end")
        self._credit -= len(data)
        self.chunks.append(data)

    def take(self, max_bytes: int | None = None) -> bytes:
        """Take the first piece, or so much of it. There has to be one."""
        chunk = self.chunks.popleft()
        if max_bytes is not None and len(chunk) > max_bytes:
            self.chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._owed += len(chunk)
        return chunk

    def put_back(self, data: bytes) -> None:
        """Put back the rest of what was taken last, before ``due`` is asked."""
        if data:
            self.chunks.appendleft(data)
            self._owed -= len(data)

    def due(self) -> int:
        """Return the credit to grant now for what was taken, in few large grants, and count it as granted.

        A stream that is read as it comes gets a larger window, so that it is granted, and stopped, less often. What is
        not read holds no more than the window it has come to.
        """
        if self.ended or self._owed < self._window // 2:
            return 0
        larger = min(self._window * 2, _LARGEST_WINDOW)
        grant = self._owed + larger - self._window
        self._owed, self._window = 0, larger
        self._credit += grant
        return grant


class Command:
    """What the host knows of one channel."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid: int | None = None
        self.failure: protocol.Failed | None = None
        self.exit: protocol.Exited | None = None
        self.outputs = {protocol.STDOUT: Inbound(), protocol.STDERR: Inbound()}
        self.stdin_credit = protocol.INITIAL_CREDIT
        self.closing = False
        self.ended = False
        self.kills_answered = 0
        self.kills_sent = 0
        self.cpu_us = 0
        self.cpu_asked = 0
        self.cpu_answered = 0
        self.survivors = 0

    @property
    def complete(self) -> bool:
        """True when its first process has ended, and all has come that was written before."""
        return self.exit is not None and all(output.complete for output in self.outputs.values())


def apply(frame: protocol.Frame, command: Command) -> None:
    """Change the state of ``command`` by one frame.

    Raises:
        ProtocolViolation: when the frame may not come now.
    """
    running = command.pid is not None
    match frame.type:
        case protocol.GUEST_STARTED if not running and command.failure is None:
            command.pid = protocol.decode_number(frame.payload)
        case protocol.GUEST_FAILED if not running and command.failure is None:
            command.failure = protocol.decode_failed(frame.payload)
        case protocol.GUEST_DATA if running and not command.closing:
            command.outputs[frame.stream].add(frame.payload)
        case protocol.GUEST_DATA if running:
            pass  # it crossed our CLOSE on the way
        case protocol.GUEST_EOF | protocol.GUEST_DRAINED if running:
            _take_end(frame, command)
        case protocol.GUEST_CREDIT if running:
            _add_stdin_credit(command, protocol.decode_number(frame.payload))
        case protocol.GUEST_EXITED if running and command.exit is None:
            command.exit = protocol.decode_exited(frame.payload)
        case protocol.GUEST_KILLED | protocol.GUEST_CPU:
            _take_answer(frame, command)
        case protocol.GUEST_END if command.failure is not None or command.exit is not None:
            _check_complete(command)
            command.ended = True
        case _:
            raise _untimely(frame)


def _take_end(frame: protocol.Frame, command: Command) -> None:
    """Take the end of a stream, or of what is the command's own in it."""
    output = command.outputs[frame.stream]
    is_drained = frame.type == protocol.GUEST_DRAINED
    if output.ended or (is_drained and (output.drained or command.exit is None)):
        raise _untimely(frame)
    if is_drained:
        output.drained = True
    else:
        output.ended = True


def _take_answer(frame: protocol.Frame, command: Command) -> None:
    """Take what the host has asked for, once for each time it has."""
    if frame.type == protocol.GUEST_KILLED and command.kills_answered < command.kills_sent:
        command.kills_answered += 1
        command.survivors = protocol.decode_number(frame.payload)
    elif frame.type == protocol.GUEST_CPU and command.cpu_answered < command.cpu_asked:
        command.cpu_answered += 1
        command.cpu_us = protocol.decode_cpu(frame.payload)
    else:
        raise _untimely(frame)


def _untimely(frame: protocol.Frame) -> protocol.ProtocolViolation:
    return protocol.ProtocolViolation(f"a frame of type 0x{frame.type:02x} at the wrong time")


def _add_stdin_credit(command: Command, amount: int) -> None:
    if amount == 0 or command.stdin_credit + amount > protocol.MAX_CREDIT:
        raise protocol.ProtocolViolation("an impossible amount of credit")
    command.stdin_credit += amount


def _check_complete(command: Command) -> None:
    complete = all(output.ended for output in command.outputs.values())
    if command.failure is None and not complete and not command.closing:
        raise protocol.ProtocolViolation("the end of a channel before the end of its output")
