"""Bytes on sockets: sizes, refusals, malformed packets, and TCP in every portion."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.update
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.dns.loopback import PUBLIC, Serve, Served, sockets, zone
from undercroft.clock import ManualClock
from undercroft.dns import message
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView

MANY = tuple(f"10.0.2.{n}" for n in range(1, 121))
ZONE = zone("contoso.com", {("www", "A"): ("10.0.0.1",), ("many", "A"): MANY, ("few", "A"): MANY[:60]})
QUERY = dns.message.make_query("www.contoso.com", "A", id=4711).to_wire()


def frame(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


async def receive(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), 5)


async def exchange(served: Served, wire: bytes, wait: float = 5) -> bytes | None:
    """Send one datagram; the next one that comes back, or None after ``wait``."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.connect(("127.0.0.1", served.port))
        await loop.sock_sendall(udp, wire)
        try:
            return await asyncio.wait_for(loop.sock_recv(udp, 65535), wait)
        except TimeoutError:
            return None


@pytest.mark.parametrize(
    ("name", "payload", "cut"),
    [
        ("many", None, True),
        ("many", 4096, True),
        ("few", None, True),
        ("few", 512, True),
        ("few", 1232, False),
        ("few", 100, True),
    ],
)
async def test_what_does_not_fit_is_cut_and_comes_by_tcp(
    serve: Serve, name: str, payload: int | None, cut: bool
) -> None:
    served = await serve(ZONE)
    query = dns.message.make_query(f"{name}.contoso.com", "A", use_edns=False)
    if payload is not None:
        query.use_edns(0, payload=payload)
    wire = await exchange(served, query.to_wire())
    assert wire is not None
    assert len(wire) <= min(max(payload or 512, 512), 1232)
    reply = dns.message.from_wire(wire)
    assert bool(reply.flags & dns.flags.TC) is cut
    assert (reply.edns, reply.payload) == ((-1, 0) if payload is None else (0, 1232))
    assert not cut or reply.answer == []
    whole = await served.send(query, tcp=True)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == (120 if name == "many" else 60)


async def test_the_same_question_over_udp_and_tcp_is_cached_apart(serve: Serve) -> None:
    served = await serve(ZONE)
    query = dns.message.make_query("many.contoso.com", "A")
    for _ in range(2):
        assert len((await served.send(query, tcp=True)).answer[0]) == 120
        assert (await served.send(query)).flags & dns.flags.TC


async def test_what_is_refused(serve: Serve) -> None:
    served = await serve(ZONE)

    async def rcode(query: dns.message.Message) -> dns.rcode.Rcode:
        wire = await exchange(served, query.to_wire())
        assert wire is not None
        return dns.rcode.from_flags(struct.unpack_from("!H", wire, 2)[0], 0)

    for kind in ("ANY", "AXFR", "IXFR", "MAILB"):
        query = dns.message.make_query("contoso.com", "A")
        query.question[0].rdtype = dns.rdatatype.from_text(kind)
        assert await rcode(query) == dns.rcode.REFUSED, kind
    transfer = dns.message.make_query("contoso.com", "IXFR", use_edns=False)
    transfer.find_rrset(
        transfer.authority, transfer.question[0].name, dns.rdataclass.IN, dns.rdatatype.SOA, create=True
    ).add(dns.rdata.from_text("IN", "SOA", "a. b. 1 2 3 4 5"))
    assert await rcode(transfer) == dns.rcode.REFUSED, "as secondaries ask, with their serial in the authority section"
    assert await rcode(dns.message.make_query("version.bind", "TXT", "CH")) == dns.rcode.REFUSED
    assert await rcode(dns.update.UpdateMessage("contoso.com")) == dns.rcode.NOTIMP
    notify = dns.message.make_query("contoso.com", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert await rcode(notify) == dns.rcode.NOTIMP
    assert (await served.send(dns.message.make_query("contoso.com", "A", use_edns=1))).rcode() == dns.rcode.BADVERS
    two = dns.message.make_query("contoso.com", "A")
    two.question.append(two.question[0])
    assert await rcode(two) == dns.rcode.FORMERR
    none = dns.message.make_query("contoso.com", "A")
    none.question.clear()
    assert await rcode(none) == dns.rcode.FORMERR


async def test_a_response_is_never_answered(serve: Serve) -> None:
    served = await serve(ZONE)
    response = bytearray(QUERY)
    response[2] |= 0x80
    assert await exchange(served, bytes(response), wait=0.2) is None
    assert await exchange(served, b"\0" * 11, wait=0.2) is None
    assert await exchange(served, QUERY) is not None


async def test_unknown_options_change_nothing(serve: Serve) -> None:
    served = await serve(ZONE)
    for options in ([], [dns.edns.GenericOption("NSID", b"xyz")], [dns.edns.GenericOption("65001", b"\0" * 300)]):
        reply = await served.ask("www.contoso.com", use_edns=0, options=options)
        assert (reply.answer[0][0].to_text(), reply.options) == ("10.0.0.1", ())


async def test_a_cookie_comes_back_with_the_servers_half(serve: Serve) -> None:
    """RFC 7873: the client's half as it was, ours the same each time for one client and one cookie; malformed ones are FORMERR."""
    served = await serve(ZONE)
    halves = []
    for number in range(4):
        mine = bytes([number // 2] * 8)
        for name in ("www.contoso.com", "none.contoso.com"):
            reply = await served.ask(name, use_edns=0, options=[dns.edns.CookieOption(mine, b"")])
            (option,) = (one for one in reply.options if isinstance(one, dns.edns.CookieOption))
            assert option.client == mine
            halves.append(option.server)
    assert all(8 <= len(half) <= 32 for half in halves)
    assert len(set(halves)) == 2
    returned = await served.ask("www.contoso.com", use_edns=0, options=[dns.edns.CookieOption(mine, halves[-1])])
    assert returned.answer and returned.options
    for content in (b"", b"1234567", b"123456789", b"x" * 41):
        wire = bytearray(dns.message.make_query("www.contoso.com", "A", use_edns=0, payload=1232).to_wire())
        wire[-2:] = (4 + len(content)).to_bytes(2, "big")
        wire += b"\0\x0a" + len(content).to_bytes(2, "big") + content
        refused = await exchange(served, bytes(wire))
        assert refused is not None and refused[3] & 0xF == dns.rcode.FORMERR, content


async def test_the_do_bit_is_copied_and_the_id_is_the_askers(serve: Serve) -> None:
    served = await serve(ZONE)
    for identity in (1, 2, 65535):
        wire = dns.message.make_query("www.contoso.com", "A", want_dnssec=True, id=identity).to_wire()
        reply = dns.message.from_wire(await exchange(served, wire) or b"")
        assert (reply.id, reply.ednsflags) == (identity, dns.flags.DO)


def damaged(wire: bytes) -> st.SearchStrategy[bytes]:
    """The query cut short, lengthened, or with some bytes replaced."""
    changes = st.lists(st.tuples(st.integers(0, len(wire) - 1), st.integers(0, 255)), max_size=6)

    def change(parts: tuple[list[tuple[int, int]], int, bytes]) -> bytes:
        body = bytearray(wire)
        for place, value in parts[0]:
            body[place] = value
        return bytes(body[: parts[1]]) + parts[2]

    return st.tuples(changes, st.integers(0, len(wire)), st.binary(max_size=20)).map(change)


EDNS = dns.message.make_query(
    "WWW.contoso.com", "A", use_edns=0, options=[dns.edns.CookieOption(b"12345678", b"")]
).to_wire()


@settings(max_examples=300, deadline=None)
@example(wire=b"")
@example(wire=b"\0" * 12)
@example(wire=b"\xff" * 65)
@example(wire=QUERY[:-4] + b"\xc0\x0c\0\x01")
@example(wire=QUERY[:12] + b"\xc0\x0c\0\1\0\1")
@given(wire=st.one_of(st.binary(max_size=600), damaged(QUERY), damaged(EDNS)))
def test_any_bytes_give_an_answer_or_silence(wire: bytes) -> None:
    result = message.read(wire, stream=False)
    silent = len(wire) < 12 or bool(wire[2] & 0x80)
    assert (result is None) is silent
    if isinstance(result, bytes):
        assert result[:2] == wire[:2]
        assert result[2] & 0x80
        dns.message.from_wire(result)


async def test_any_bytes_leave_the_server_answering() -> None:
    """Hypothesis against live sockets: the loop is ours, so that one server lives through all examples."""
    server = NameServer(ManualClock())
    udp, tcp = sockets()
    await server.serve("a", udp, tcp)
    server.publish_public(PUBLIC)
    server.publish("a", NetworkView((ZONE,)))
    served = Served(server, "a", udp.getsockname()[1])
    examples: list[bytes] = []

    @settings(max_examples=150, deadline=None, database=None)
    @given(wire=st.one_of(st.binary(max_size=600), damaged(QUERY), damaged(EDNS)))
    def collect(wire: bytes) -> None:
        examples.append(wire)

    collect()
    with capture_logs() as logs:
        for wire in examples:
            await exchange(served, wire, wait=0)
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            with contextlib.suppress(OSError):
                writer.write(frame(wire))
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        assert await served.values("www.contoso.com") == ["10.0.0.1"]
        assert (await served.ask("www.contoso.com", tcp=True)).answer
        await server.close()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_tcp_byte_by_byte(serve: Serve) -> None:
    served = await serve(ZONE)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    for byte in frame(QUERY) * 2:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    for _ in range(2):
        assert dns.message.from_wire(await receive(reader)).answer
    writer.close()
    await writer.wait_closed()


async def test_tcp_pipelined_in_one_write_and_closed_by_the_peer(serve: Serve) -> None:
    served = await serve(ZONE)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    wires = [dns.message.make_query(name, "A", id=n).to_wire() for n in range(200) for name in ("many.contoso.com",)]
    writer.write(b"".join(map(frame, wires)))
    writer.write_eof()
    replies = [dns.message.from_wire(await receive(reader)) for _ in wires]
    assert sorted(reply.id for reply in replies) == list(range(200))
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_tcp_idle_and_half_sent_connections_are_cut(serve: Serve) -> None:
    served = await serve(ZONE, idle_seconds=0.2)
    for sent in (b"", b"\0", frame(QUERY)[:-1]):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(sent)
        with pytest.raises(ConnectionError):
            if await asyncio.wait_for(reader.read(), 5) == b"":
                raise ConnectionResetError
        writer.close()
        with pytest.raises(ConnectionError):
            await writer.wait_closed()
            raise ConnectionResetError


async def test_tcp_connections_are_limited_and_room_is_made_again(serve: Serve) -> None:
    served = await serve(ZONE, connections=2)
    pairs = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
    for reader, writer in pairs:
        writer.write(frame(QUERY))
        await receive(reader)
    with pytest.raises((ConnectionError, EOFError)):
        await served.ask("www.contoso.com", tcp=True)
    for _, writer in pairs:
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert (await served.ask("www.contoso.com", tcp=True)).answer


async def test_a_peer_that_reads_nothing_is_not_answered_into_memory(serve: Serve) -> None:
    served = await serve(ZONE)
    query = frame(dns.message.make_query("many.contoso.com", "A").to_wire())
    _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            for _ in range(100_000):
                writer.write(query * 10)
                await writer.drain()
    (connection,) = served.server._networks["a"].connections
    assert connection._transport is not None
    assert connection._transport.get_write_buffer_size() < 200_000
    assert (await served.ask("www.contoso.com")).answer, "others are served meanwhile"
    writer.transport.abort()


async def test_the_cache_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.dns.cache._ROOM", 20_000)
    served = await serve(ZONE)
    cache = served.server._networks["a"].cache
    most = 0
    for number in range(100):
        assert (await served.ask(f"no{number}.contoso.com")).rcode() == dns.rcode.NXDOMAIN
        most = max(most, len(cache))
    assert 0 < most < 40
    before = len(cache)
    padding = dns.edns.GenericOption(dns.edns.OptionType.PADDING, b"\0" * 3000)
    assert (await served.ask("www.contoso.com", use_edns=0, payload=8192, options=[padding])).answer
    assert len(cache) <= before + 1
    assert all(len(query) < 2048 for query in cache.datagrams), "a padded query is answered and not remembered"


async def test_a_signed_query_is_told_that_no_key_is_shared(serve: Serve) -> None:
    served = await serve(ZONE)
    query = dns.message.make_query("www.contoso.com", "A")
    query.use_tsig({dns.name.from_text("key"): b"secret"})
    wire = await exchange(served, query.to_wire())
    assert wire is not None
    assert wire[3] & 0xF == dns.rcode.NOTAUTH


@settings(max_examples=300, deadline=None)
@example(wire=EDNS[:-14])
@given(wire=st.one_of(damaged(QUERY), damaged(EDNS)))
def test_the_cache_changes_no_answer(wire: bytes) -> None:
    """The key leaves out the id and a cookie; whatever the bytes, a server that remembers says what one without memory says."""
    warm, cold = NameServer(ManualClock()), NameServer(ManualClock())
    for server in (warm, cold):
        server._secret = b"the same for both"
        server.publish_public(PUBLIC)
        server.publish("a", NetworkView((ZONE,)))
    for known in (QUERY, EDNS, EDNS[:-14] + b"\0\0", wire):
        warm._respond(warm._networks["a"], known, "10.0.0.4", stream=False)
    expected = cold._respond(cold._networks["a"], wire, "10.0.0.4", stream=False)
    assert warm._respond(warm._networks["a"], wire, "10.0.0.4", stream=False) == expected
