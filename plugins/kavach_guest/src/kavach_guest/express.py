"""One command in one box, driven by a plain loop: what ``kavach run`` uses when all it needs was worked out before.

It does what ``oci_boot`` and core's execution do, with the same plan, launch, parser and channel state, but
without trio and attrs, whose import takes longer than the box. Only plain runs come here: one command, our
own standard streams, nothing kept. The runtime is started first; what is needed to talk to the agent is
imported while it boots.
"""

from __future__ import annotations

import os
import select
import signal
import time

from kavach_core.exit_status import EXIT_FAILED, SIGNAL_EXIT_BASE
from kavach_core.oci.instance import make_instance, remove_instance, sweep
from kavach_core.oci.launch import BoxPlan, Launch

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from typing import Any, NoReturn

_GRACE_SECONDS = 1.0
_FORCE_SECONDS = 5.0
_POLL_SECONDS = 0.002
_READ_BYTES = 262_144
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _EndedBySignal(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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
    for number in _ENDING_SIGNALS:
        signal.signal(number, _end_by_signal)
    box = Box(BoxPlan(**plan))
    try:
        if box.start():
            from kavach_guest.conversation import Conversation  # noqa: PLC0415 - while the runtime boots on another core

            conversation = Conversation(box, request, argv)
            if conversation.greet():
                result = conversation.hold()
    except _EndedBySignal as ended:
        result = SIGNAL_EXIT_BASE + ended.number, ""
    finally:
        _hold_signals()
        left = box.end()
        _release_signals()
    return (EXIT_FAILED, f"left on the host: {', '.join(left)}") if left else result


def _end_by_signal(number: int, _: object) -> NoReturn:
    raise _EndedBySignal(number)


def _hold_signals() -> None:
    """Let nothing interrupt the clean-up."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*_ENDING_SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _release_signals() -> None:
    for number in (*_ENDING_SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class Box:
    """A launch, its runtime's process, and the two pipes to the agent.

    Attributes:
        receive_fd: the pipe from the agent.
    """

    def __init__(self, plan: BoxPlan) -> None:
        self._instance = ""
        self._lock = -1
        self._plan = plan
        self._launch: Launch | None = None
        self._pid = 0
        self._pidfd = -1
        self._send_fd = -1
        self.receive_fd = -1

    def start(self) -> bool:
        """Start the runtime with our pipes as its input and output; False when that cannot be done."""
        try:
            self._start()
        except OSError:
            return False
        return True

    def _start(self) -> None:
        sweep(self._plan.base, self._plan.cgroup_roots)
        self._instance, self._lock = make_instance(self._plan.base)
        self._launch = Launch(self._plan, box_id=os.urandom(8).hex(), instance=self._instance)
        guest_in, self._send_fd = os.pipe()
        self.receive_fd, guest_out = os.pipe()
        actions = [
            (os.POSIX_SPAWN_DUP2, guest_in, 0),
            (os.POSIX_SPAWN_DUP2, guest_out, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        try:
            self._pid = _spawn(self._launch.command, actions)
        finally:
            os.close(guest_in)
            os.close(guest_out)
        self._pidfd = os.pidfd_open(self._pid)

    def send(self, *frames: bytes) -> None:
        """Write frames whole. The agent always reads, so this does not wait for long.

        Raises:
            OSError: when the agent has ended.
        """
        for frame in frames:
            rest = memoryview(frame)
            while rest:
                rest = rest[os.write(self._send_fd, rest) :]

    def receive(self, seconds: float) -> bytes | None:
        """Wait for something from the agent and return it, b"" at its end; None when nothing came."""
        if not select.select([self.receive_fd], [], [], seconds)[0]:
            return None
        return os.read(self.receive_fd, _READ_BYTES)

    def end(self) -> list[str]:
        """Kill the box, wait for its runtime, verify and remove. Return what is left in spite of that."""
        left: list[str] = []
        if self._launch is not None:
            self._end_process(self._launch)
            left = self._remove(self._launch)
        if not left and self._lock >= 0:
            remove_instance(self._instance, self._lock)
        return left

    def _end_process(self, launch: Launch) -> None:
        if not self._pid:
            return
        launch.kill()
        os.close(self._send_fd)
        os.close(self.receive_fd)
        if not _wait(self._pidfd, _GRACE_SECONDS):
            self._force(launch)

    def _force(self, launch: Launch) -> None:
        deadline = time.monotonic() + _FORCE_SECONDS
        while launch.cgroup.pids() and time.monotonic() < deadline:
            launch.cgroup.kill()
            time.sleep(_POLL_SECONDS)
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        _wait(self._pidfd, _FORCE_SECONDS)

    def _remove(self, launch: Launch) -> list[str]:
        deadline = time.monotonic() + _FORCE_SECONDS
        repaired = False
        while True:
            if launch.is_repairable() and not repaired:
                _repair(launch)
                repaired = True
            left = launch.remove()
            if not left or time.monotonic() >= deadline:
                return left
            launch.cgroup.kill()
            time.sleep(_POLL_SECONDS)


def _spawn(command: list[str], actions: list[Any]) -> int:
    """Start a program with an empty environment; of our descriptors it inherits what the actions give it.

    Descriptors that Python made are closed by themselves, but those our own caller left open would go along.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:  # noqa: PLR2004 - the standard streams stay
            try:
                os.set_inheritable(int(name), False)  # noqa: FBT003 - os has it so
            except OSError:
                continue  # it was the listing's own
    return os.posix_spawn(command[0], command, {}, file_actions=actions, setsid=True)


def _wait(pidfd: int, seconds: float) -> bool:
    """Wait for a child's end and reap it; False when it goes on."""
    if not select.select([pidfd], [], [], seconds)[0]:
        return False
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    return True


def _repair(launch: Launch) -> None:
    """Let the runtime remove the state of a box that is dead by now, and remove what it leaves of that."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    pidfd = os.pidfd_open(_spawn(launch.delete_command, null))
    if not _wait(pidfd, _FORCE_SECONDS):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _wait(pidfd, _FORCE_SECONDS)
    if launch.is_repairable():
        launch.clear_state()
