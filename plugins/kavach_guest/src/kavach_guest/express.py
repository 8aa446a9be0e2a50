"""One command in one box, driven by a plain loop: what ``kavach run`` uses when all it needs was worked out before.

It does what ``oci_boot`` and core's execution do, with the same plan, launch, parser and channel state, but
without trio and attrs, whose import takes longer than the box. Only plain runs come here: one command, our
own standard streams, nothing kept.
"""

from __future__ import annotations

import os
import select
import signal
import time

from kavach_core.exit_status import EXIT_FAILED, EXIT_TIMEOUT, SIGNAL_EXIT_BASE, status_of_end, status_of_failed_start
from kavach_core.oci.launch import BoxPlan, Launch
from kavach_guest import protocol
from kavach_guest.command import Command, apply

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

_BOOT_SECONDS = 30.0
_DRAIN_GRACE_SECONDS = 0.25
_LATE_OUTPUT_BYTES = 1024 * 1024
_KILL_SECONDS = 0.5
_GRACE_SECONDS = 1.0
_FORCE_SECONDS = 5.0
_POLL_SECONDS = 0.002
_CHUNK_BYTES = 65_536
_NAP_SECONDS = 3600.0
_NEVER = float("inf")
_ALARM_REPEAT_SECONDS = 0.1  # the first may come between two writes
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _DidNotBoot(Exception):  # noqa: N818 - what it says is what happened
    pass


class _EndedBySignal(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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


def run(plan: dict[str, Any], request: dict[str, Any], argv: list[str]) -> tuple[int, str] | None:
    """Run one command in a fresh box, connected to our standard streams.

    Args:
        plan: a ``BoxPlan`` as data.
        request: ``env``, ``cwd``, ``uid``, ``gid``, ``groups`` and ``timeout`` (seconds or None).
        argv: the command.

    Returns:
        The status to exit with, and what to say on standard error, if anything. None when the box did not start: then
        nothing has been read from standard input, and whoever called can find out why the long way.
    """
    result: tuple[int, str] | None = None
    left: list[str] = []
    box = _Box(BoxPlan(**plan))
    try:
        _boot(box)
        result = _Conversation(box, _Request(request, argv), request["timeout"]).hold()
    except _EndedBySignal as ended:
        result = SIGNAL_EXIT_BASE + ended.number, ""
    except _DidNotBoot:
        result = None
    finally:
        handlers = _hold_signals()
        left = box.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return (EXIT_FAILED, f"left on the host: {', '.join(left)}") if left else result


def _boot(box: _Box) -> None:
    """Catch what wants to end us, start the runtime, and wait for the agent's greeting."""
    for number in _ENDING_SIGNALS:
        signal.signal(number, _end_by_signal)
    try:
        box.start()
        box.send(protocol.encode_hello())
        if not box.wait_readable(_BOOT_SECONDS):
            raise _DidNotBoot(f"nothing within {_BOOT_SECONDS:g} seconds")
        frames = list(box.receive())
        if [frame.type for frame in frames] != [protocol.GUEST_HELLO]:
            raise _DidNotBoot("no greeting from the agent")
        if protocol.decode_hello(frames[0].payload).major != protocol.MAJOR:
            raise _DidNotBoot("the agent speaks another version")
    except (OSError, protocol.ProtocolViolation) as error:
        raise _DidNotBoot(str(error)) from error


def _end_by_signal(number: int, _: object) -> NoReturn:
    raise _EndedBySignal(number)


def _hold_signals() -> dict[int, Any]:
    """Let nothing interrupt the clean-up; return what to restore after it."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*_ENDING_SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


class _Box:
    """A launch, its runtime's process, and the two pipes to the agent."""

    def __init__(self, plan: BoxPlan) -> None:
        self._instance = f"{plan.base}/instance-{os.urandom(8).hex()}"
        self._plan = plan
        self._launch: Launch | None = None
        self._pid = 0
        self._pidfd = -1
        self._send = -1
        self._receive = -1
        self._parser = protocol.FrameParser()
        for path in (self._instance, f"{self._instance}/bundles", f"{self._instance}/state"):
            os.mkdir(path, 0o711)

    def start(self) -> None:
        """Start the runtime with our pipes as its input and output."""
        self._launch = Launch(self._plan, box_id=os.urandom(8).hex(), instance=self._instance)
        guest_in, self._send = os.pipe()
        self._receive, guest_out = os.pipe()
        actions = [
            (os.POSIX_SPAWN_DUP2, guest_in, 0),
            (os.POSIX_SPAWN_DUP2, guest_out, 1),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        command = self._launch.command
        try:
            self._pid = os.posix_spawn(command[0], command, {}, file_actions=actions, setsid=True)
        finally:
            os.close(guest_in)
            os.close(guest_out)
        self._pidfd = os.pidfd_open(self._pid)

    @property
    def receive_fd(self) -> int:
        """The pipe from the agent."""
        return self._receive

    def send(self, *frames: bytes) -> None:
        """Write frames whole. The agent always reads, so this does not wait for long."""
        for frame in frames:
            rest = memoryview(frame)
            while rest:
                rest = rest[os.write(self._send, rest) :]

    def wait_readable(self, seconds: float) -> bool:
        """Wait for something from the agent."""
        return bool(select.select([self._receive], [], [], seconds)[0])

    def receive(self) -> Iterator[protocol.Frame]:
        """Read once and yield the frames that this completes.

        Raises:
            ProtocolViolation: when the agent broke the protocol, or has ended.
        """
        data = os.read(self._receive, 4 * _CHUNK_BYTES)
        if not data:
            raise protocol.ProtocolViolation("the box has ended")
        yield from self._parser.feed(data)

    def end(self) -> list[str]:
        """Kill the box, wait for its runtime, verify and remove. Return what is left in spite of that."""
        left: list[str] = []
        if self._launch is not None:
            self._end_process(self._launch)
            left = self._remove(self._launch)
        if not left:
            _remove_tree(self._instance)
        return left

    def _end_process(self, launch: Launch) -> None:
        if not self._pid:
            return
        launch.kill()
        os.close(self._send)
        os.close(self._receive)
        if not self._wait(self._pidfd, _GRACE_SECONDS):
            self._force(launch)

    def _wait(self, pidfd: int, seconds: float) -> bool:
        if not select.select([pidfd], [], [], seconds)[0]:
            return False
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        return True

    def _force(self, launch: Launch) -> None:
        deadline = time.monotonic() + _FORCE_SECONDS
        while launch.cgroup.pids() and time.monotonic() < deadline:
            launch.cgroup.kill()
            time.sleep(_POLL_SECONDS)
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._wait(self._pidfd, _FORCE_SECONDS)

    def _remove(self, launch: Launch) -> list[str]:
        if launch.state_is_left():
            self._repair(launch)
        deadline = time.monotonic() + _FORCE_SECONDS
        while (left := launch.remove()) and time.monotonic() < deadline:
            launch.cgroup.kill()
            time.sleep(_POLL_SECONDS)
        return left

    def _repair(self, launch: Launch) -> None:
        """Let the runtime remove the state of a box that is dead by now."""
        command = launch.delete_command
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        pidfd = os.pidfd_open(os.posix_spawn(command[0], command, {}, file_actions=null, setsid=True))
        if not self._wait(pidfd, _FORCE_SECONDS):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._wait(pidfd, _FORCE_SECONDS)


def _remove_tree(path: str) -> None:
    """Remove the instance's directory: empty but for what a runtime leaves in its state root."""
    for directory in (*_below(f"{path}/state"), f"{path}/state", f"{path}/bundles", path):
        try:
            os.rmdir(directory)
        except OSError:
            import shutil  # noqa: PLC0415 - hardly ever needed

            shutil.rmtree(path, ignore_errors=True)
            return


def _below(path: str) -> list[str]:
    return [entry.path for entry in os.scandir(path)]


class _Conversation:
    """The command's frames on one side, our standard streams on the other."""

    def __init__(self, box: _Box, request: _Request, timeout: float | None) -> None:
        self._box = box
        self._request = request
        self._timeout = timeout or 0.0
        self._deadline = time.monotonic() + timeout if timeout else _NEVER
        self._writing = False
        self._command = Command(1)
        self._input_open = True
        self._late = 0

    def hold(self) -> tuple[int, str]:
        """Start the command and carry bytes until it has ended, or its deadline has come."""
        self._box.send(protocol.encode_start(self._command.number, self._request))  # type: ignore[arg-type]  # has what it needs
        signal.signal(signal.SIGALRM, self._interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, self._timeout, _ALARM_REPEAT_SECONDS)
            self._carry()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except _DeadlineReached:
            self._kill()
            return EXIT_TIMEOUT, ""
        except BrokenPipeError:
            return SIGNAL_EXIT_BASE + signal.SIGPIPE, ""
        except protocol.ProtocolViolation as violation:
            return EXIT_FAILED, f"the box ended: {violation}"
        return self._status()

    def _interrupt(self, _number: int, _: object) -> None:
        """Leave a write that nobody takes when the deadline comes; anywhere else the loop sees to it by itself."""
        if self._writing:
            raise _DeadlineReached

    def _carry(self) -> None:
        """Carry bytes until the channel ends, or nothing of the command's own can come any more."""
        while not self._command.ended:
            ending = self._command.exit is not None
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise _DeadlineReached
            ready = self._wait(min(remaining, _DRAIN_GRACE_SECONDS) if ending else min(remaining, _NAP_SECONDS))
            if ending and (not ready or self._late > _LATE_OUTPUT_BYTES):
                return
            if self._box.receive_fd in ready:
                self._take()
            if 0 in ready:
                self._feed()

    def _wait(self, seconds: float) -> list[int]:
        sources = [self._box.receive_fd]
        if self._input_open and self._command.stdin_credit and self._command.exit is None:
            sources.append(0)
        return select.select(sources, [], [], seconds)[0]

    def _take(self) -> None:
        for frame in self._box.receive():
            if frame.type == protocol.GUEST_ERROR:
                raise protocol.ProtocolViolation(repr(frame.payload.decode(errors="replace")))
            if frame.channel != self._command.number:
                raise protocol.ProtocolViolation("a frame for a channel that is not open")
            apply(frame, self._command)
            self._pass_on()

    def _pass_on(self) -> None:
        for number, output in self._command.outputs.items():
            while output.chunks:
                chunk = output.chunks.popleft()
                self._write_all(number, chunk)
                if self._command.exit is not None:
                    self._late += len(chunk)
                grant = output.taken(len(chunk))
                if grant:
                    self._box.send(protocol.encode_credit(self._command.number, number, grant))

    def _feed(self) -> None:
        try:
            data = os.read(0, min(self._command.stdin_credit, _CHUNK_BYTES))
        except OSError:  # a directory, or a terminal that has gone
            data = b""
        if not data:
            self._end_input()
            return
        self._command.stdin_credit -= len(data)
        self._box.send(protocol.encode(protocol.DATA, self._command.number, data))

    def _end_input(self) -> None:
        self._input_open = False
        self._box.send(protocol.encode(protocol.EOF, self._command.number))

    def _kill(self) -> None:
        """Kill the command, so that what it had written still comes, for as long as a kill may take."""
        self._input_open = False
        deadline = time.monotonic() + _KILL_SECONDS
        self._command.kills_sent += 1
        try:
            self._box.send(protocol.encode(protocol.KILL, self._command.number))
            while not self._command.ended and self._box.wait_readable(max(0.0, deadline - time.monotonic())):
                self._take()
        except (OSError, protocol.ProtocolViolation):
            return  # the box is ended next in any case

    def _status(self) -> tuple[int, str]:
        command = self._command
        if command.failure is not None:
            stage, errno = command.failure
            program = os.fsdecode(self._request.argv[0])
            text = f"cannot start {program}: {os.strerror(errno)} ({stage})"
            return EXIT_FAILED if stage == "cwd" else status_of_failed_start(errno), text
        assert command.exit is not None  # noqa: S101 - else the loop had gone on
        return status_of_end(code=command.exit.code, by_signal=command.exit.by_signal), ""

    def _write_all(self, descriptor: int, data: bytes) -> None:
        self._writing = True
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        self._writing = False
