"""Upstream resolvers: real ones (a second name server), dead ones, and what still works meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import IPv4Address

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.descriptors import no_descriptors
from tests.dns.loopback import BLOB, PUBLIC, Serve, Served, run_program, zone
from undercroft.clock import ManualClock
from undercroft.dns.answers import Inquiry
from undercroft.dns.forward import Forwarder, UpstreamAddress
from undercroft.dns.views import PublicNames
from undercroft.errors import InvalidParameter

INTERNET = zone(
    "example.org",
    {
        ("www", "A"): ("192.0.2.1",),
        ("many", "A"): tuple(f"192.0.2.{n}" for n in range(1, 121)),
        ("alias", "CNAME"): ("www.example.org",),
        ("storage", "CNAME"): (f"real.{BLOB}",),
    },
)


@contextmanager
def silent() -> Iterator[str]:
    """An upstream that takes queries and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{udp.getsockname()[1]}"


def closed() -> str:
    """An upstream whose port nobody has."""
    with silent() as address:
        return address


async def internet(serve: Serve) -> Served:
    real = PublicNames(addresses={f"real.{BLOB}": (IPv4Address("192.0.2.50"),)})
    return await serve(INTERNET, network="internet", public=real)


async def test_an_upstream_answers_what_nobody_here_has(serve: Serve) -> None:
    upstream = await internet(serve)
    served = await serve(
        zone("contoso.com", {("out", "CNAME"): ("alias.example.org",)}), forward_to=[f"127.0.0.1:{upstream.port}"]
    )
    assert await served.values("www.example.org") == ["192.0.2.1"]
    assert await served.values("www.example.org", "TXT") == []
    reply = await served.ask("out.contoso.com")
    assert [rrset.name.to_text() for rrset in reply.answer] == [
        "out.contoso.com.",
        "alias.example.org.",
        "www.example.org.",
    ]
    reply = await served.ask("none.example.org")
    assert (reply.rcode(), reply.authority[0].ttl) == (dns.rcode.NXDOMAIN, 10)
    whole = await served.ask("many.example.org", tcp=True)
    assert len(whole.answer[0]) == 120, "the upstream's cut answer was asked for again by TCP"
    assert (await served.ask("many.example.org")).flags & dns.flags.TC
    assert "192.0.2.1" in await run_program("nslookup", f"-port={served.port}", "alias.example.org", "127.0.0.1")


async def test_an_upstream_is_not_blamed_for_our_want_of_descriptors(serve: Serve) -> None:
    upstream = UpstreamAddress.parse(f"127.0.0.1:{(await internet(serve)).port}")
    other = UpstreamAddress.parse("192.0.2.1")
    forwarder = Forwarder(ManualClock(), [upstream, other])
    inquiry = Inquiry(dns.name.from_text("www.example.org").to_wire() or b"", dns.rdatatype.A)
    with no_descriptors():
        reply = await forwarder.ask(inquiry)
    assert reply.rcode == dns.rcode.SERVFAIL
    assert reply.reason == f"there is no room for a question to {upstream} (Too many open files)", (
        "and none to the next"
    )
    assert forwarder._order() == [upstream, other]
    assert (await forwarder.ask(inquiry)).rcode == dns.rcode.NOERROR
    await forwarder.close()


async def test_an_upstreams_alias_into_a_linked_zone_is_answered_from_the_zone(serve: Serve) -> None:
    upstream = await internet(serve)
    forward_to = [f"127.0.0.1:{upstream.port}"]
    linked = await serve(zone(BLOB, {("real", "A"): ("10.0.1.9",)}), forward_to=forward_to)
    lacking = await serve(zone(BLOB, {}), server=linked.server, network="b")
    redirecting = await serve(zone(BLOB, {}, redirect=True), server=linked.server, network="c")
    unlinked = await serve(server=linked.server, network="d")
    assert await linked.values("storage.example.org") == ["10.0.1.9"]
    reply = await lacking.ask("storage.example.org")
    assert (reply.rcode(), len(reply.answer)) == (dns.rcode.NXDOMAIN, 1)
    assert await redirecting.values("storage.example.org") == ["192.0.2.50"]
    assert await unlinked.values("storage.example.org") == ["192.0.2.50"]


async def test_names_of_the_deployment_never_travel_upstream(serve: Serve) -> None:
    with silent() as address:
        served = await serve(zone(BLOB, {}), forward_to=[address])
        async with asyncio.timeout(1):
            assert await served.values("plain.blob.core.windows.net") == ["203.0.113.11"]
            assert (await served.ask("secret.undercroft.internal")).rcode() == dns.rcode.NXDOMAIN
            assert (await served.ask(f"none.{BLOB}")).rcode() == dns.rcode.NXDOMAIN


async def test_a_dead_upstream_is_failed_over_and_then_asked_last(serve: Serve) -> None:
    upstream = await internet(serve)
    with silent() as dead:
        served = await serve(forward_to=[dead, f"127.0.0.1:{upstream.port}"], attempt_seconds=0.3)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await served.values("www.example.org") == ["192.0.2.1"]
        assert loop.time() - began >= 0.3
        async with asyncio.timeout(0.25):
            assert await served.values("alias.example.org") == ["192.0.2.1"]
    refused = await serve(forward_to=[closed(), f"127.0.0.1:{upstream.port}"], attempt_seconds=3)
    async with asyncio.timeout(1):
        assert await refused.values("www.example.org") == ["192.0.2.1"], "a closed port is noticed at once"


async def test_all_upstreams_dead_is_servfail_in_bounded_time_while_others_are_served(serve: Serve) -> None:
    with silent() as first, silent() as second:
        served = await serve(
            zone("contoso.com", {("www", "A"): ("10.0.0.1",)}),
            forward_to=[first, second],
            attempt_seconds=0.4,
            total_seconds=0.6,
        )
        names = [f"host{n}.example.org" for n in range(20)]
        async with asyncio.timeout(3):
            waiting = [
                asyncio.create_task(served.ask(name, use_edns=0, tcp=n % 2 == 0)) for n, name in enumerate(names)
            ]
            for _ in range(20):
                async with asyncio.timeout(0.3):
                    assert await served.values("www.contoso.com") == ["10.0.0.1"]
            replies = await asyncio.gather(*waiting)
    assert {reply.rcode() for reply in replies} == {dns.rcode.SERVFAIL}
    assert f"{first} did not answer; {second} did not answer" in replies[0].options[0].to_text()


async def test_an_upstream_that_cannot_say_is_passed_over(serve: Serve) -> None:
    useless = await serve(network="useless", forward_to=[closed()])
    upstream = await internet(serve)
    served = await serve(forward_to=[f"127.0.0.1:{useless.port}", f"127.0.0.1:{upstream.port}"])
    assert await served.values("www.example.org") == ["192.0.2.1"]


async def test_what_an_upstream_said_ages_and_ends(serve: Serve, clock: ManualClock) -> None:
    upstream = await internet(serve)
    served = await serve(forward_to=[f"127.0.0.1:{upstream.port}"])
    assert (await served.ask("www.example.org")).answer[0].ttl == 10
    upstream.publish(zone("example.org", {("www", "A"): ("192.0.2.2",)}))
    clock.advance(timedelta(seconds=7))
    reply = await served.ask("www.example.org")
    assert (reply.answer[0][0].to_text(), reply.answer[0].ttl) == ("192.0.2.1", 3)
    clock.advance(timedelta(seconds=3))
    assert await served.values("www.example.org") == ["192.0.2.2"]
    served.publish(zone("example.org", {("www", "A"): ("10.0.0.7",)}))
    assert await served.values("www.example.org") == ["10.0.0.7"], "publishing overtakes what is remembered"


async def test_a_query_that_wants_no_recursion_causes_none(serve: Serve) -> None:
    with silent() as address:
        served = await serve(zone("contoso.com", {("out", "CNAME"): ("www.example.org",)}), forward_to=[address])
        async with asyncio.timeout(1):
            reply = await served.send(dns.message.make_query("www.example.org", "A", flags=0))
            assert reply.rcode() == dns.rcode.REFUSED
            reply = await served.send(dns.message.make_query("out.contoso.com", "A", flags=0))
            assert (reply.rcode(), len(reply.answer)) == (dns.rcode.NOERROR, 1)


async def test_the_same_question_is_asked_once_at_a_time(serve: Serve) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        served = await serve(forward_to=[f"127.0.0.1:{udp.getsockname()[1]}"])
        waiting = [asyncio.create_task(served.ask("www.example.org")) for _ in range(10)]
        wire, peer = await asyncio.wait_for(loop.sock_recvfrom(udp, 4096), 2)
        await asyncio.sleep(0.1)
        reply = dns.message.make_response(dns.message.from_wire(wire))
        reply.set_rcode(dns.rcode.NXDOMAIN)
        forged = dns.message.make_response(dns.message.make_query("www.example.org", "A"))
        udp.sendto(forged.to_wire(), peer)
        udp.sendto(b"junk", peer)
        udp.sendto(reply.to_wire(), peer)
        replies = await asyncio.gather(*waiting)
        assert {answer.rcode() for answer in replies} == {dns.rcode.NXDOMAIN}
        with pytest.raises(BlockingIOError):
            udp.recvfrom(4096)


async def test_closing_while_questions_wait(serve: Serve) -> None:
    with silent() as address:
        served = await serve(forward_to=[address])
        waiting = [asyncio.create_task(served.ask(f"h{n}.example.org", tcp=n < 3)) for n in range(6)]
        await asyncio.sleep(0.1)
        await served.server.close()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert served.server.networks == frozenset()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.2", "10.0.0.2:53"),
        ("10.0.0.2:5353", "10.0.0.2:5353"),
        ("fd00::2", "[fd00::2]:53"),
        ("[fd00::2]:54", "[fd00::2]:54"),
    ],
)
def test_upstream_addresses(text: str, shown: str) -> None:
    assert str(UpstreamAddress.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "dns.example.org", "10.0.0.2:0", "10.0.0.2:x", "10.0.0.300", "[fd00::2"])
async def test_a_wrong_upstream_address_is_refused_by_name(serve: Serve, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        await serve(forward_to=[text], public=PUBLIC)
    assert f"'{text}'" in caught.value.message
    assert caught.value.target == "forward_dns_to"


@contextlib.asynccontextmanager
async def scripted(
    answer: Callable[[dns.message.Message], dns.message.Message],
) -> AsyncIterator[tuple[str, list[str]]]:
    """An upstream that answers so; and the names that it was asked for."""
    loop = asyncio.get_running_loop()
    asked: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)

        def read() -> None:
            wire, peer = udp.recvfrom(4096)
            query = dns.message.from_wire(wire)
            asked.append(query.question[0].name.to_text(omit_final_dot=True))
            udp.sendto(answer(query).to_wire(), peer)

        loop.add_reader(udp, read)
        try:
            yield f"127.0.0.1:{udp.getsockname()[1]}", asked
        finally:
            loop.remove_reader(udp)


def lame(query: dns.message.Message) -> dns.message.Message:
    """What a server says that has neither the zone nor recursion for us: go and ask those."""
    reply = dns.message.make_response(query)
    reply.authority.append(dns.rrset.from_text("org.", 3600, "IN", "NS", "a0.org.afilias-nst.info."))
    return reply


def code(rcode: dns.rcode.Rcode) -> Callable[[dns.message.Message], dns.message.Message]:
    def answer(query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        return reply

    return answer


@pytest.mark.parametrize(
    ("useless", "said"),
    [
        (lame, "is no resolver"),
        (code(dns.rcode.REFUSED), "answered REFUSED"),
        (code(dns.rcode.SERVFAIL), "answered SERVFAIL"),
    ],
)
async def test_an_upstream_that_is_lame_or_refuses_is_passed_over_and_named(
    serve: Serve, useless: Callable[[dns.message.Message], dns.message.Message], said: str
) -> None:
    upstream = await internet(serve)
    async with scripted(useless) as (address, asked):
        served = await serve(forward_to=[address, f"127.0.0.1:{upstream.port}"])
        assert await served.values("www.example.org") == ["192.0.2.1"]
        assert asked == ["www.example.org"]
        alone = await serve(forward_to=[address])
        reply = await alone.ask("www.example.org", use_edns=0)
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert f"{address} {said}" in reply.options[0].to_text()


async def test_an_answer_without_data_is_no_failure(serve: Serve) -> None:
    """NODATA without SOA, as cheap home routers send it: passed on, and nobody else is asked."""
    async with scripted(lambda query: dns.message.make_response(query)) as (address, _):
        with silent() as never:
            served = await serve(forward_to=[address, never])
            async with asyncio.timeout(1):
                reply = await served.ask("www.example.org", "AAAA")
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])


async def test_an_upstream_that_hung_is_tried_again_by_one_question_while_the_others_do_not_wait(
    serve: Serve, clock: ManualClock
) -> None:
    upstream = await internet(serve)
    with silent() as dead:
        served = await serve(forward_to=[dead, f"127.0.0.1:{upstream.port}"], attempt_seconds=0.4)
        assert await served.values("www.example.org") == ["192.0.2.1"]
        clock.advance(timedelta(seconds=6))  # its rest is over
        began = asyncio.get_running_loop().time()
        names = [f"n{number}.example.org" for number in range(8)]
        took = []

        async def ask(name: str) -> None:
            assert (await served.ask(name)).rcode() == dns.rcode.NXDOMAIN
            took.append(asyncio.get_running_loop().time() - began)

        await asyncio.gather(*map(ask, names))
        assert sum(one >= 0.4 for one in took) == 1
        forwarder = served.server._forwarder
        assert forwarder is not None
        (rest,) = forwarder._resting.values()
        assert rest.seconds == 10, "and then it rests twice as long"


async def test_one_network_cannot_take_all_the_room_for_waiting(serve: Serve) -> None:
    """A VM that asks for ever new names, which upstream never answers, is not to take the internet from other networks."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as vm,
    ):
        upstream.bind(("127.0.0.1", 0))
        upstream.setblocking(False)
        taken: set[dns.name.Name] = set()

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    wire, client = upstream.recvfrom(4096)
                    query = dns.message.from_wire(wire)
                    taken.add(query.question[0].name)
                    if query.question[0].name == dns.name.from_text("fine.example"):
                        reply = dns.message.make_response(query)
                        reply.answer.append(dns.rrset.from_text("fine.example.", 10, "IN", "A", "192.0.2.7"))
                        upstream.sendto(reply.to_wire(), client)

        loop = asyncio.get_running_loop()
        loop.add_reader(upstream, answer)
        try:
            where = f"127.0.0.1:{upstream.getsockname()[1]}"
            flooded = await serve(forward_to=[where], attempt_seconds=60.0, total_seconds=60.0)
            other = await serve(server=flooded.server, network="other")
            vm.setblocking(False)
            vm.connect(("127.0.0.1", flooded.port))
            for number in range(1100):
                vm.send(dns.message.make_query(f"n{number}.example", "A").to_wire())
                await asyncio.sleep(0)
            assert await other.values("fine.example") == ["192.0.2.7"]
            refused = dns.message.from_wire(await asyncio.wait_for(loop.sock_recv(vm, 4096), 5))
            assert refused.rcode() == dns.rcode.SERVFAIL, "the rest is told so at once"
            assert len(taken) <= 257
        finally:
            loop.remove_reader(upstream)
