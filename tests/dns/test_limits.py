"""Clients that ask too much, too large or too many at once: they are bounded, and their neighbours are served."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import time
from collections import Counter
from datetime import timedelta

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from tests.dns.loopback import PUBLIC, Serve, Served, sockets, zone
from undercroft.clock import ManualClock
from undercroft.dns.allowance import Allowance, Verdict
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView, RecordSetView, ZoneView

ZONE = zone(
    "contoso.com",
    {("www", "A"): ("10.0.0.1",), ("big", "TXT"): tuple(f'"{n:03}{"t" * 250}" "{"u" * 250}"' for n in range(20))},
)


async def asked_at_once(served: Served, count: int, source: str = "127.0.0.1") -> Counter[str]:
    """What becomes of that many datagrams from one address: answered, cut or silent."""
    loop = asyncio.get_running_loop()
    found: Counter[str] = Counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        udp.setblocking(False)
        udp.bind((source, 0))
        udp.connect(("127.0.0.1", served.port))
        for number in range(count):
            udp.send(dns.message.make_query("www.contoso.com", "A", id=number).to_wire())
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            while sum(found.values()) < count:
                wire = await asyncio.wait_for(loop.sock_recv(udp, 4096), 0.3)
                found["cut" if wire[2] & 2 else "answered"] += 1
    found["silent"] = count - sum(found.values())
    return found


async def test_a_client_over_its_limit_is_sent_to_tcp_and_then_not_answered(serve: Serve, clock: ManualClock) -> None:
    served = await serve(ZONE, queries_per_second=20)
    other = await serve(ZONE, server=served.server, network="b")
    assert await asked_at_once(served, 50) == {"answered": 20, "cut": 20, "silent": 10}
    assert await asked_at_once(served, 20, "127.0.0.2") == {"answered": 20, "silent": 0}, "its neighbour is not it"
    assert await asked_at_once(other, 20) == {"answered": 20, "silent": 0}, "another network counts for itself"
    assert (await served.ask("www.contoso.com", tcp=True)).answer, "a real client comes back by TCP"
    clock.advance(timedelta(seconds=1))
    assert await asked_at_once(served, 20) == {"answered": 20, "silent": 0}


def test_who_asks_too_much_is_named_once_a_minute() -> None:
    clock = ManualClock()
    allowance = Allowance(5, clock.monotonic)
    named = []
    for _ in range(100):
        named.append(allowance.begin())
        for client, count in (("10.0.0.4", 5), ("10.0.0.5", 9)):
            for _ in range(count):
                allowance.spend(client)
        clock.advance(timedelta(seconds=1))
    assert [one for one in named if one is not None] == [("10.0.0.5", 9)] * 2


def test_clients_that_no_network_can_have_are_not_counted_into_memory() -> None:
    allowance = Allowance(5, ManualClock().monotonic)
    allowance.begin()
    verdicts = [allowance.spend(f"10.{n >> 8}.{n & 255}.1") for n in range(10_000)]
    assert len(allowance._counts) == verdicts.count(Verdict.ANSWER) == 4096


@pytest.mark.parametrize("edns", [-1, 0])
async def test_no_datagram_is_amplified_beyond_what_fits_everywhere(serve: Serve, edns: int) -> None:
    """512 bytes for who does not say that more is taken, 1232 at most; what asks for everything (ANY) is refused in its own size."""
    served = await serve(ZONE)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.connect(("127.0.0.1", served.port))
        for name in ("www.contoso.com", "big.contoso.com", "none.contoso.com", "login.undercroft.internal", "."):
            for kind in ("A", "TXT", "ANY", "AXFR", "SOA"):
                query = dns.message.make_query(name, "A", use_edns=edns, payload=4096)
                query.question[0].rdtype = dns.rdatatype.from_text(kind)
                udp.send(query.to_wire())
                wire = await asyncio.wait_for(loop.sock_recv(udp, 65535), 5)
                assert len(wire) <= (512 if edns < 0 else 1232)
                reply = dns.message.from_wire(wire)
                if kind in ("ANY", "AXFR"):
                    assert reply.rcode() == dns.rcode.REFUSED
                    assert len(wire) <= len(query.to_wire()) + 100
                if reply.flags & dns.flags.TC:
                    assert len(wire) <= len(query.to_wire())


async def test_a_set_larger_than_any_message_is_an_error_that_says_so(serve: Serve) -> None:
    """20 records of a thousand characters come by TCP; what 64 KiB cannot hold (no private zone admits it) does not loop for ever."""
    values = tuple(" ".join(f'"{n:03}{letter * 250}"' for letter in "abcd") for n in range(100))
    huge = ZoneView(
        "contoso.com", {("big", "TXT"): RecordSetView(10, values[:20]), ("huge", "TXT"): RecordSetView(10, values)}
    )
    served = await serve(huge)
    cut = await served.ask("big.contoso.com", "TXT", use_edns=0, payload=1232)
    assert cut.flags & dns.flags.TC and not cut.answer
    whole = await served.ask("big.contoso.com", "TXT", tcp=True)
    assert len(whole.answer[0]) == 20 and len(whole.to_wire()) > 20_000
    assert (await served.ask("huge.contoso.com", "TXT")).flags & dns.flags.TC
    reply = await served.ask("huge.contoso.com", "TXT", tcp=True, use_edns=0)
    assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])
    assert "larger than a message can be" in reply.options[0].to_text()


async def test_a_reason_that_does_not_fit_goes_before_the_answer_does(serve: Serve) -> None:
    """An extended error is a comment: it never turns a negative answer into a second question by TCP."""
    names = [f"{number}{'x' * 60}.{'z' * 60}" for number in range(5)]
    chain = {(name, "CNAME"): (f"{target}.contoso.com",) for name, target in itertools.pairwise(names)}
    served = await serve(zone("contoso.com", chain))
    seen = []
    for payload in range(512, 1232, 16):
        reply = await served.ask(f"{names[0]}.contoso.com", use_edns=0, payload=payload)
        assert reply.rcode() == dns.rcode.NXDOMAIN
        seen.append("cut" if reply.flags & dns.flags.TC else "explained" if reply.options else "answered")
    assert [state for state, _ in itertools.groupby(seen)] == ["cut", "answered", "explained"]


async def test_a_network_that_floods_does_not_starve_another(serve: Serve) -> None:
    """Both run in one loop: the flooded socket is never empty, and each question of the other network is answered all the same."""
    flooded = await serve(ZONE)
    quiet = await serve(ZONE, server=flooded.server, network="b")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.connect(("127.0.0.1", flooded.port))
        took = []
        for number in range(60):
            for _ in range(150):  # more than a turn takes, each a miss of the cache
                with contextlib.suppress(BlockingIOError):
                    udp.send(dns.message.make_query(f"r{random.random()}.contoso.com", "A").to_wire())
            began = time.perf_counter()
            query = dns.message.make_query("www.contoso.com", "A", id=number)
            assert (await quiet.send(query)).answer
            took.append(time.perf_counter() - began)
            waiting = _queued(flooded)
        assert waiting, "the flood was answered while it came: nothing was shown"
    assert sorted(took)[len(took) // 2] < 0.2


def _queued(served: Served) -> bool:
    udp = served.server._networks[served.network].udp
    assert udp is not None
    try:
        return bool(udp.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_a_connection_full_of_questions_does_not_hold_up_datagrams(serve: Serve) -> None:
    served = await serve(ZONE)
    wires = [dns.message.make_query(f"r{n}.contoso.com", "A").to_wire() for n in range(1500)]
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires))
    turns = 0
    network = served.server._networks["a"]
    while len(network.cache) < 1000:
        before = len(network.cache)
        await asyncio.sleep(0)
        assert len(network.cache) - before <= 32, "no turn of the loop answers all of it"
        turns += 1
        assert turns < 100_000
    assert (await served.ask("www.contoso.com")).answer
    for _ in wires:
        size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 5), "big")
        await reader.readexactly(size)
    writer.close()
    await writer.wait_closed()


async def test_one_client_cannot_take_all_connections_of_its_network(serve: Serve) -> None:
    served = await serve(ZONE, connections=16)
    mine = []
    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        mine.append((reader, writer))
    await asyncio.sleep(0.05)
    assert len(served.server._networks["a"].connections) == 4
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=("127.0.0.2", 0))
    wire = dns.message.make_query("www.contoso.com", "A").to_wire()
    writer.write(len(wire).to_bytes(2, "big") + wire)
    assert await asyncio.wait_for(reader.readexactly(2), 5)
    for _, one in [*mine, (reader, writer)]:
        one.transport.abort()


async def test_no_descriptor_is_left_behind() -> None:
    """Served, asked in every way, forwarded into silence, stopped: again and again."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        server = NameServer(
            ManualClock(), [f"127.0.0.1:{dead.getsockname()[1]}"], attempt_seconds=0.01, total_seconds=0.02
        )
        server.publish_public(PUBLIC)
        counts = []
        for number in range(40):
            udp, tcp = sockets()
            await server.serve("a", udp, tcp)
            server.publish("a", NetworkView((ZONE,)))
            served = Served(server, "a", udp.getsockname()[1])
            await served.ask("www.contoso.com")
            await served.ask("www.contoso.com", tcp=True)
            assert (await served.ask(f"h{number}.example.org")).rcode() == dns.rcode.SERVFAIL
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"\xff")
            await server.stop("a")
            server.withdraw("a")
            writer.transport.abort()
            await asyncio.sleep(0)
            counts.append(open_files())
        await server.close()
    assert max(counts[20:]) <= max(counts[:20])
    assert server._networks == {}


async def test_a_view_that_is_gone_is_not_kept_for_others(serve: Serve) -> None:
    """Networks share what was parsed of a zone; with the last of them it goes."""
    served = await serve(ZONE)
    await serve(ZONE, server=served.server, network="b")
    assert len(served.server._zones) == 1
    for network in ("a", "b"):
        served.server.publish(network, NetworkView())
    assert len(served.server._zones) == len(served.server._newest) == 0
