"""One run of the file tool in a box: what is said to it, what it says, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Never

import trio

from kavach_core.abc import GuestProcess, GuestStartError
from kavach_core.errors import FileOperationFailed, FileTooLarge, NotRegularFile, SandboxError
from kavach_core.guest_files import FileRequest
from kavach_core.types import ExecRequest
from kavach_guest import file_records
from kavach_guest.file_records import Done, Failed, Record, RecordParser, RecordViolation

Start = Callable[[ExecRequest], Awaitable[GuestProcess]]

# It exits right after its last word, and when its input ends too soon it first removes what it had begun.
_END_SECONDS: Final = 0.5
_SEND_BYTES: Final = 65_536
_TOO_LARGE: Final = "raise max_bytes, or read it piece by piece with open_read"


@contextlib.asynccontextmanager
async def file_call(start: Start, request: FileRequest, *words: bytes, feed: bool = False) -> AsyncIterator[FileCall]:
    """Run the file tool for the length of a block; where it has not finished then, it is ended.

    Args:
        start: starts the tool.
        request: who does what to which path.
        words: the operation and its arguments.
        feed: give it an input.

    Raises:
        FileOperationFailed: when it cannot be started.
        SandboxGone: when the box has ended.
    """
    argv = (b"kavach-agent", b"--files", *words)
    try:
        process = await start(ExecRequest(argv=argv, env=(), cwd=b"/", user=request.user, stdin=feed))
    except GuestStartError as error:
        failure = error.failure
        reason = f"{os.strerror(failure.errno)} ({failure.stage})"
        raise FileOperationFailed(
            f"{_show(request.path)}: cannot start the file tool: {reason}", stage="files"
        ) from None
    call = FileCall(process, request.path)
    try:
        yield call
    finally:
        await call.aclose()


class FileCall:
    """A run of the file tool. Made by ``file_call``; for one task.

    Args:
        process: the tool.
        path: what the call is about, for errors.
    """

    def __init__(self, process: GuestProcess, path: bytes) -> None:
        self._process = process
        self._path = path
        self._parser = RecordParser()
        self._complete = False
        self._failed = False
        self._torn = False
        self._unsent: list[bytes] = []
        self._unsent_size = 0

    async def receive(self) -> list[Record]:
        """Return what the tool says next, at least one record; none after it has said that all is done.

        Cancellation: nothing is lost.

        Raises:
            OSError: what the tool says that the kernel has said.
            FileOperationFailed: when the tool ends without a last word, or breaks the protocol.
            SandboxGone: when the box ends.
        """
        while not self._complete:
            data = await self._process.stdout.receive_some()
            if not data:
                await self._raise_early_end()
            records = self._parse(bytes(data))
            if records and isinstance(records[-1], Failed):
                self._failed = True
                raise error_of(records[-1], self._path)
            if records and isinstance(records[-1], Done):
                self._complete = True
                records.pop()
            if records:
                return records
        return []

    def _parse(self, data: bytes) -> list[Record]:
        try:
            return self._parser.feed(data)
        except RecordViolation as violation:
            self.refuse(str(violation))

    def refuse(self, what: str) -> Never:
        """Give up on a tool that breaks the protocol.

        Raises:
            FileOperationFailed: always.
        """
        raise FileOperationFailed(f"{_show(self._path)}: the file tool broke its protocol: {what}", stage="files")

    async def _raise_early_end(self) -> Never:
        how = "closed its output"
        with trio.move_on_after(_END_SECONDS):
            ended = await self._process.wait()
            how = (
                f"ended with status {ended.exit_code}"
                if ended.signal is None
                else f"was killed by signal {ended.signal}"
            )
        raise FileOperationFailed(
            f"{_show(self._path)}: the file tool {how} before it was done",
            stage="files",
            hint="the memory limit or a process of the same user may have killed it; what it had done is unknown",
        )

    async def send(self, *pieces: bytes | memoryview) -> None:
        """Send records or parts of them; small ones are gathered first.

        Cancellation: some of it has been sent; nothing can be sent any more, and the tool will not finish.

        Raises:
            OSError: when the tool has failed meanwhile; and what else ``receive`` raises.
        """
        for piece in pieces:
            if len(piece) >= _SEND_BYTES:
                await self.flush()
                await self._send(piece)
                continue
            self._unsent.append(bytes(piece))
            self._unsent_size += len(piece)
            if self._unsent_size >= _SEND_BYTES:
                await self.flush()

    async def flush(self) -> None:
        """Send what was gathered; errors and cancellation as for ``send``."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_size = 0
        if data:
            await self._send(data)

    async def _send(self, data: bytes | memoryview) -> None:
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - only calls with an input send
        if self._torn:
            raise trio.BrokenResourceError("an earlier piece was not sent to its end")
        self._torn = True
        try:
            await stdin.send_all(data)
        except trio.BrokenResourceError:
            await self._raise_refusal()
        self._torn = False

    async def _raise_refusal(self) -> Never:
        """Raise what the tool says about ending before it had all of its input."""
        while await self.receive():
            pass
        self.refuse("it was done before it had all")

    async def finish(self) -> None:
        """Tell the tool that it has all, and wait until it is done.

        Raises:
            FileOperationFailed: when something was not sent to its end; the tool then undoes what it can.
            OSError: as ``receive``.
        """
        if self._torn:
            message = f"{_show(self._path)}: not all of it was sent"
            raise FileOperationFailed(
                message, stage="files", hint="a call that sends was cancelled, or made twice at once"
            )
        await self.send(file_records.encode_done())
        await self.flush()
        if await self.receive():
            self.refuse("an answer that nobody asked for")

    async def aclose(self) -> None:
        """End the tool, if it has not ended by itself."""
        process = self._process
        ends_by_itself = self._complete or self._failed
        with trio.CancelScope(shield=True), contextlib.suppress(SandboxError):  # gone: what it was about is gone too
            with trio.move_on_after(_END_SECONDS if ends_by_itself or process.stdin is not None else 0) as scope:
                if process.stdin is not None and not ends_by_itself:
                    await process.send_signal(signal.SIGCONT)  # or it could not hear that its input ends
                    await process.stdin.aclose()
                await process.wait()
            if scope.cancelled_caught:
                await process.kill()
        await process.aclose()


def error_of(failed: Failed, path: bytes) -> OSError:
    """Return the error that a FAILED record is about; one without a path is about ``path``."""
    name = file_records.text(failed.path or path)
    match failed.reason:
        case file_records.TOO_LARGE:
            return FileTooLarge(f"{_show(name)} is larger than allowed", filename=name, hint=_TOO_LARGE)
        case file_records.TOO_MANY:
            return FileTooLarge(f"{_show(name)} has more names than allowed", filename=name, hint="raise max_entries")
        case file_records.TOO_DEEP:
            return FileTooLarge(f"{_show(name)} is nested too deeply", filename=name)
        case file_records.NOT_REGULAR:
            return NotRegularFile(f"{_show(name)} is neither a file nor a directory", filename=name)
        case number:
            return OSError(number, os.strerror(number), name)


def _show(path: bytes | str) -> str:
    return repr(path if isinstance(path, str) else file_records.text(path))
