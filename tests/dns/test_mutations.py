"""Queries damaged at random, by the ten thousand, over real sockets: the same ones in every run."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import dns.edns
import dns.message
import pytest
from structlog.testing import capture_logs

from tests.dns.loopback import BLOB, PUBLIC, Served, sockets, zone
from undercroft.clock import ManualClock
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView

ZONE = zone(
    "contoso.com", {("www", "A"): ("10.0.0.1",), ("a", "CNAME"): ("www.contoso.com",), ("*.w", "TXT"): ('"x"',)}
)
SEEDS = [
    dns.message.make_query("www.contoso.com", "A").to_wire(),
    dns.message.make_query("a.contoso.com", "A", use_edns=0, want_dnssec=True).to_wire(),
    dns.message.make_query("x.w.contoso.com", "TXT", use_edns=0, options=[dns.edns.CookieOption(b"12345678", b"")]).to_wire(),
    dns.message.make_query("0a1b2c3decs01.blob.core.windows.net", "AAAA", use_edns=0).to_wire(),
    dns.message.make_query(f"none.{BLOB}", "SOA", use_edns=0, options=[dns.edns.ECSOption("10.0.0.0", 8)]).to_wire(),
    dns.message.make_query(".", "NS").to_wire(),
]  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    wire = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(wire))
        match chance.randrange(6):
            case 0:
                wire[at] = chance.choice((0, 1, 63, 64, 0xC0, 0xFF, chance.randrange(256)))
            case 1:
                wire[at] ^= 1 << chance.randrange(8)
            case 2:
                del wire[at : at + chance.randint(1, 8)]
            case 3:
                wire[at:at] = chance.randbytes(chance.randint(1, 8))
            case 4:
                wire += chance.choice(SEEDS)[chance.randrange(12) :]
            case 5:
                wire[at : at + 2] = b"\xc0" + bytes([chance.choice((0, 12, at & 0xFF))])  # a pointer, maybe to itself
        if not wire:
            return b""
    return bytes(wire[:4000])


@pytest.mark.parametrize("seed", [1, 2])
async def test_damaged_datagrams_are_answered_soundly_or_not_at_all(seed: int) -> None:
    chance = random.Random(seed)
    server = NameServer(ManualClock())
    udp, tcp = sockets()
    await server.serve("a", udp, tcp)
    server.publish_public(PUBLIC)
    server.publish("a", NetworkView((ZONE,)))
    served = Served(server, "a", udp.getsockname()[1])
    replies = 0
    with capture_logs() as logs, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.setblocking(False)
        mine.connect(("127.0.0.1", served.port))
        for number in range(8_000):
            wire = mutated(chance)
            with contextlib.suppress(BlockingIOError):
                mine.send(wire)
            if number % 16 == 0:
                await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                reply = mine.recv(65535)
                replies += 1
                assert reply[2] & 0x80 and len(reply) <= 1232
                if len(reply) > 12:
                    dns.message.from_wire(reply, ignore_trailing=False, one_rr_per_rrset=True)
        assert await served.values("www.contoso.com") == ["10.0.0.1"]
        await server.close()
    assert replies > 4_000
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []


async def test_damaged_frames_end_their_connection_at_most() -> None:
    chance = random.Random(3)
    server = NameServer(ManualClock(), idle_seconds=1)
    udp, tcp = sockets()
    await server.serve("a", udp, tcp)
    server.publish_public(PUBLIC)
    server.publish("a", NetworkView((ZONE,)))
    served = Served(server, "a", udp.getsockname()[1])
    with capture_logs() as logs:
        for _ in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            with contextlib.suppress(OSError):
                for _ in range(30):
                    wire = mutated(chance)
                    claimed = len(wire) if chance.random() < 0.9 else chance.randrange(65536)
                    writer.write(claimed.to_bytes(2, "big") + wire)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 5)
            writer.transport.abort()
        assert (await served.ask("www.contoso.com", tcp=True)).answer
        assert await served.values("www.contoso.com") == ["10.0.0.1"]
        await server.close()
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
