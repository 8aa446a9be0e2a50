"""Random and mutated streams from the agent: two errors and bounded memory, nothing else."""

from __future__ import annotations

import os
import random
import struct

import pytest
from guest_frames import (
    CREDIT,
    DATA,
    ERROR,
    FAILED,
    KILLED,
    PONG,
    REQUEST,
    STARTED,
    data,
    end,
    eofs,
    exited,
    hello,
    raw,
    started,
    u32,
)
from kavach_guest import protocol
from kavach_guest.channel import GuestChannel
from kavach_guest.listing import Listing

from kavach_core.errors import GuestProtocolError, SandboxGone

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


# --- fuzz --------------------------------------------------------------------------------------


PROCESS = raw(0x8B, struct.pack("<IIIIQQQB", 2, 1, 65534, 1, 5, 6, 7, ord("S")) + b"sleep", channel=0)


def a_fair_script() -> list[bytes]:
    """What a good agent says of two commands."""
    return [
        hello(),
        started(),
        started(channel=2),
        data(b"some output"),
        data(b"some errors", stream=2),
        raw(CREDIT, u32(1000)),
        data(b"more", channel=2),
        PROCESS,
        PROCESS,
        raw(0x8C, channel=0),
        raw(PONG, channel=0),
        raw(0x8D, bytes(8)),
        exited(3),
        raw(0x8E, stream=1),
        raw(0x8E, stream=2),
        eofs(),
        end(),
        exited(9, kind=1, channel=2),
        eofs(2),
        end(2),
    ]


ODD = [
    data(b"x", stream=0),
    exited(256),
    exited(0, kind=1),
    started(channel=9),
    raw(KILLED, u32(0)),
    raw(CREDIT, u32(0)),
    raw(CREDIT, u32(2**32 - 1)),
    raw(FAILED, u32(5, 2)),
    raw(FAILED, u32(9, 2)),
    raw(ERROR, b"no", channel=0),
    raw(PONG, channel=0),
    PROCESS,
    raw(0x8B, bytes(41), channel=0),
    raw(0x8B, bytes(200), channel=0),
    raw(0x8C, channel=0),
    raw(0x8D, bytes(8)),
    raw(0x8D, bytes(8), channel=2),
    raw(0x8E, stream=1),
    raw(0x8E, stream=2, channel=2),
    raw(STARTED, u32(7), reserved=1),
    struct.pack("<IBBHI", 2**32 - 1, DATA, 1, 0, 1),
    struct.pack("<IBBHI", 65_536, DATA, 1, 0, 1),
]


def mutated(dice: random.Random) -> bytes:
    """Bytes that start well, mostly, and go wrong somewhere."""
    frames = a_fair_script()
    for _ in range(dice.randint(0, 3)):
        place = dice.randrange(len(frames))
        match dice.randrange(7):
            case 0:
                del frames[place]
            case 1:
                frames.insert(place, dice.choice(frames))
            case 2:
                frames[place], frames[0] = frames[0], frames[place]
            case 3:
                broken = bytearray(frames[place] or b"?")
                broken[dice.randrange(len(broken))] = dice.randrange(256)
                frames[place] = bytes(broken)
            case 4:
                frames[place] = frames[place][: dice.randrange(len(frames[place]) + 1)]
            case 5:
                frames.insert(place, dice.choice(ODD))
            case _:
                frames.insert(place, dice.randbytes(dice.randrange(40)))
        if not frames:
            break
    return b"".join(frames)


async def converse(said: bytes, pieces: int) -> None:
    """Run two commands against an agent that says just these bytes, in some pieces, and hangs up."""
    from_agent, to_host = os.pipe()
    from_host, to_agent = os.pipe()
    channel = GuestChannel(receive_fd=from_agent, send_fd=to_agent, sandbox_id="00ff")
    try:
        size = len(said) // pieces + 1
        commands = [channel.open_command(lambda n: protocol.encode_start(n, REQUEST)) for _ in range(2)]
        channel._listing, channel._pings, commands[0].cpu_asked = Listing(), 1, 1
        for start in range(0, len(said), size):
            os.write(to_host, said[start : start + size])
            if start + size >= len(said):
                os.close(to_host)
                to_host = -1
            await channel._receive()
            if not channel.alive:
                break
        if to_host >= 0:
            os.close(to_host)
        await channel.open()
        await channel.wait_for(lambda: all(command.ended for command in commands))
        for command in commands:
            assert command.exit is not None or command.failure is not None
        held = sum(len(chunk) for command in commands for out in command.outputs.values() for chunk in out.chunks)
        assert held <= len(said)
        assert len(channel._parser._buffer) <= 65_536 + 12
        raise SandboxGone("both ended well")
    finally:
        channel.close()
        os.close(from_host)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_whatever_an_agent_says_it_is_one_of_two_errors() -> None:
    """Random and mutated streams; a hang is the time-out's to find, anything else is this test's."""
    dice = random.Random(20_240_101)
    rounds = 1_000_000 if os.environ.get("KAVACH_SOAK") == "1" else 20_000
    seen = {SandboxGone: 0, GuestProtocolError: 0}
    for number in range(rounds):
        said = dice.randbytes(dice.randrange(200)) if number % 10 == 0 else mutated(dice)
        try:
            await converse(said, dice.randint(1, 4))
        except (SandboxGone, GuestProtocolError) as error:
            seen[type(error)] += 1
        except BaseException:
            print(f"round {number}: {said!r}")  # noqa: T201 - for whoever has to find it
            raise
    assert min(seen.values()) > rounds // 50
