"""One command in one box, driven by a plain loop: what ``kavach run`` uses when all it needs was worked out before.

It does what ``oci_boot`` and core's execution do, with the same plan, launch, parser and channel state, but
without trio and attrs, whose import takes longer than the box. Only plain runs come here: one command, our
own standard streams, nothing kept. The runtime is started first; what is needed to talk to the agent is
imported while it boots.
"""

from __future__ import annotations

import os
import signal
import time

from kavach_core.exit_status import EXIT_FAILED, EXIT_KILLED, EXIT_TIMEOUT, SIGNAL_EXIT_BASE, WANT_OF_MEMORY
from kavach_core.oci.launch import BoxPlan, Launch
from kavach_core.oci.shortages import Shortages, killed_for_memory
from kavach_core.reaper.files import remove_path
from kavach_core.reaper.instance import Instance
from kavach_core.reaper.sweep import sweep
from kavach_guest.waiting import ready

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    _Result = tuple[int, str] | None

_GRACE_SECONDS = 1.0
_FORCE_SECONDS = 5.0
_POLL_SECONDS = 0.002
_READ_BYTES = 262_144
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _EndedBySignal(BaseException):
    pass


class Signals:
    """What wants to end us: told once, where it does no harm, and remembered everywhere else.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._may_interrupt = False
        self._notify: Callable[[], None] | None = None
        for number in _ENDING_SIGNALS:
            # What our caller has us ignore, as nohup does, stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        # Ignored by our caller, and then by the runtime, it would leave nobody to wait for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _handle(self, number: int, _: object) -> None:
        if self.received is None:
            self.received = number
        if self._may_interrupt:
            self._may_interrupt = False  # a second one must not interrupt what the first has begun
            raise _EndedBySignal
        if self._notify is not None:
            self._notify()

    def heed(self, notify: Callable[[], None]) -> None:
        """From now on have ``notify`` called by what wants to end us, for somebody who must not be interrupted."""
        self._may_interrupt = False
        self._notify = notify

    def interrupt(self, work: Callable[[], _Result]) -> _Result:
        """Do ``work`` unless a signal has come, and leave it when one comes."""
        try:
            self._may_interrupt = True
            result = work() if self.received is None else None
            self._may_interrupt = False
        except _EndedBySignal:
            return None
        return result


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
    known = BoxPlan.from_data(plan)
    if known is None:
        return None  # kept by another version
    signals = Signals()
    box = Box(known)
    try:
        result = signals.interrupt(lambda: _talk(box, request, argv, signals)) if box.start() else None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        left = box.end()
    if left:
        return EXIT_FAILED, f"left on the host: {', '.join(left)}"
    return result if signals.received is None else (SIGNAL_EXIT_BASE + signals.received, "")


def _talk(box: Box, request: dict[str, Any], argv: list[str], signals: Signals) -> _Result:
    from kavach_guest.conversation import Conversation  # noqa: PLC0415 - while the runtime boots on another core

    conversation = Conversation(box, request, argv)
    if not (conversation.greet() and box.has_booted()):
        return None
    result = conversation.hold()
    if result is None:
        from kavach_guest.adoption import adopt  # noqa: PLC0415 - hardly ever needed, and imports all there is

        result = adopt(conversation, box, signals)
    command = conversation.command
    return _explained(result, box, gone=command.exit is None and command.failure is None)


def _explained(result: tuple[int, str], box: Box, *, gone: bool) -> tuple[int, str]:
    """Say why a command failed, if it was for want of memory: on gVisor the whole box is gone then."""
    status, _ = result
    if status in (0, EXIT_TIMEOUT) or not box.has_lacked_memory():
        return result
    return (EXIT_KILLED if gone else status), WANT_OF_MEMORY


class Box:
    """A launch, its runtime's process, the two pipes to the agent, and the socket at which others ask for the box.

    Attributes:
        receive_fd: the pipe from the agent.
        knock_fd: the socket; readable when somebody has connected.
    """

    def __init__(self, plan: BoxPlan) -> None:
        self._instance: Instance | None = None
        self._plan = plan
        self._launch: Launch | None = None
        self._pid = 0
        self._pidfd = -1
        self._send_fd = -1
        self.receive_fd = -1
        self.knock_fd = -1
        self._knock_path = ""
        self._memory_group = ""
        self._shortages: Shortages | None = None

    def start(self) -> bool:
        """Start the runtime with our pipes as its input and output; False when that cannot be done."""
        try:
            self._start()
        except OSError:
            return False
        return True

    def _start(self) -> None:
        plan = self._plan
        self._instance = Instance(plan.base, watchdog=plan.watchdog, roots=plan.cgroup_roots)
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
        self._watch_memory(self._launch)
        # What is below can wait until our runtime boots.
        self._listen(self._instance)
        sweep(plan.base, plan.cgroup_roots)

    def _watch_memory(self, launch: Launch) -> None:
        for root, file, _, _ in self._plan.cgroup_settings:
            if file in ("memory.limit_in_bytes", "memory.max"):
                self._memory_group = f"{root}/{launch.cgroup.name}"
                self._shortages = Shortages(self._memory_group) if file == "memory.limit_in_bytes" else None

    def has_lacked_memory(self) -> bool:
        """Say whether the kernel has killed somebody in the box for want of memory."""
        if self._shortages is not None:
            return self._shortages.have_come()
        return bool(self._memory_group) and killed_for_memory(self._memory_group)

    def _listen(self, instance: Instance) -> None:
        from kavach_core.control.listening import listen  # noqa: PLC0415 - as the rest, while the runtime boots

        self.knock_fd, self._knock_path = listen(instance.path)

    def has_booted(self) -> bool:
        """Bound the box as tightly as its runtime could not have borne; False when that cannot be done."""
        assert self._launch is not None  # noqa: S101 - somebody in it has greeted
        try:
            self._launch.has_booted()
        except OSError:
            return False
        return True

    @property
    def id(self) -> str:
        """Its id."""
        assert self._launch is not None  # noqa: S101 - it has been started
        return self._launch.box_id

    def hand_over(self) -> tuple[int, int, int, str]:
        """Give away the pipe from the agent, the pipe to it, the socket and its path; who has them closes them."""
        given = (self.receive_fd, self._send_fd, self.knock_fd, self._knock_path)
        self.receive_fd = self._send_fd = self.knock_fd = -1
        return given

    def kill(self) -> None:
        """Kill it at once; ``end`` has to follow."""
        if self._launch is not None:
            first = self._launch.kill()
            if first is not None:
                os.close(first)

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
        if not ready([self.receive_fd], seconds):
            return None
        return os.read(self.receive_fd, _READ_BYTES)

    def end(self) -> list[str]:
        """Kill the box, wait for its runtime, verify and remove. Return what is left in spite of that."""
        left: list[str] = []
        if self._launch is not None:
            self._end_process(self._launch)
            left = self._remove(self._launch)
        if self.knock_fd >= 0:
            os.close(self.knock_fd)
            remove_path(self._knock_path)
        if self._shortages is not None:
            self._shortages.close()
        if self._instance is not None:
            left = self._instance.remove()
        return left

    def _end_process(self, launch: Launch) -> None:
        if not self._pid:
            return
        self.kill()
        for descriptor in (self._send_fd, self.receive_fd):
            if descriptor >= 0:
                os.close(descriptor)
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
        while True:
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
    if not ready([pidfd], seconds):
        return False
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    return True
