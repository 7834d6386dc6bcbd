"""Private zones, public names and CNAMEs between them, asked over real sockets."""

from __future__ import annotations

from ipaddress import IPv4Address

import dns.flags
import dns.message
import dns.rcode
import pytest

from tests.dns.loopback import BLOB, PUBLIC, Serve, sockets, zone
from undercroft.dns.views import NetworkView, PublicNames, RecordSetView, ZoneView
from undercroft.errors import InvalidParameter

ACCOUNT = "0a1b2c3decs01"
BACKUP = "privatelink.eus.backup.windowsazure.com"


async def test_networks_have_views_of_their_own(serve: Serve) -> None:
    first = await serve(zone(BACKUP, {("v-id1", "A"): ("10.0.1.10",)}))
    second = await serve(zone(BACKUP, {("v-id1", "A"): ("10.0.1.77",)}), server=first.server, network="b")
    third = await serve(server=first.server, network="c")
    assert await first.values(f"v-id1.{BACKUP}") == ["10.0.1.10"]
    assert await second.values(f"v-id1.{BACKUP}") == ["10.0.1.77"]
    assert (await third.ask(f"v-id1.{BACKUP}")).rcode() == dns.rcode.NXDOMAIN


async def test_the_longest_suffix_decides_alone(serve: Serve) -> None:
    served = await serve(
        zone("contoso.com", {("a.b", "A"): ("10.0.0.1",), ("x", "A"): ("10.0.0.2",)}),
        zone("b.contoso.com", {("c", "A"): ("10.0.0.3",)}),
    )
    assert await served.values("c.b.contoso.com") == ["10.0.0.3"]
    assert await served.values("x.contoso.com") == ["10.0.0.2"]
    assert (await served.ask("a.b.contoso.com")).rcode() == dns.rcode.NXDOMAIN


async def test_a_linked_zone_without_the_name_denies_it_with_its_soa(serve: Serve) -> None:
    served = await serve(zone(BLOB, {}))
    reply = await served.ask(f"other.{BLOB}", use_edns=0)
    assert reply.rcode() == dns.rcode.NXDOMAIN
    (soa,) = reply.authority
    assert soa.name.to_text() == f"{BLOB}."
    assert soa[0].to_text() == "azureprivatedns.net. azureprivatedns-host.microsoft.com. 1 3600 300 2419200 10"
    assert soa.ttl == 10, "how long a negative answer is remembered (RFC 2308): the smaller of TTL and minimum"
    assert (await served.ask(BLOB, "SOA")).answer[0].ttl == 3600
    assert f"zone {BLOB} is linked" in reply.options[0].to_text()


async def test_a_name_without_that_type_is_no_data(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {("a.deep", "A"): ("10.0.0.1",)}))
    for name, kind in (
        ("a.deep.contoso.com", "AAAA"),
        ("deep.contoso.com", "A"),
        ("contoso.com", "A"),
        ("contoso.com", "NS"),
    ):
        reply = await served.ask(name, kind)
        assert (reply.rcode(), reply.answer, len(reply.authority)) == (dns.rcode.NOERROR, [], 1), name


async def test_wildcards_follow_rfc_4592(serve: Serve) -> None:
    served = await serve(
        zone(
            "contoso.com",
            {
                ("*", "A"): ("10.0.0.9",),
                ("host.deep", "A"): ("10.0.0.1",),
                ("*.sub", "CNAME"): ("host.deep.contoso.com",),
            },
        )
    )
    assert await served.values("any.contoso.com") == ["10.0.0.9"]
    assert await served.values("two.labels.contoso.com") == ["10.0.0.9"]
    assert await served.values("*.contoso.com") == ["10.0.0.9"]
    assert (await served.ask("any.contoso.com", "TXT")).rcode() == dns.rcode.NOERROR
    assert await served.values("deep.contoso.com") == [], "an empty non-terminal exists, so no wildcard speaks for it"
    assert (await served.ask("x.deep.contoso.com")).rcode() == dns.rcode.NXDOMAIN, "its closest encloser is deep"
    reply = await served.ask("x.sub.contoso.com")
    assert [rrset.name.to_text() for rrset in reply.answer] == ["x.sub.contoso.com.", "host.deep.contoso.com."]


async def test_every_record_type_of_private_zones(serve: Serve) -> None:
    values = {
        ("a", "A"): ("10.0.0.1", "10.0.0.2"),
        ("a", "AAAA"): ("fd00::1",),
        ("c", "CNAME"): ("a.contoso.com",),
        ("@", "MX"): ("10 mail.contoso.com",),
        ("p", "PTR"): ("a.contoso.com",),
        ("_s._tcp", "SRV"): ("1 2 443 a.contoso.com",),
        ("t", "TXT"): ('"v=spf1 -all" "more"',),
        ("@", "SOA"): ("azureprivatedns.net azureprivatedns-host.microsoft.com 7 3600 300 2419200 5",),
    }
    served = await serve(zone("contoso.com", values))
    assert await served.values("a.contoso.com") == ["10.0.0.1", "10.0.0.2"]
    assert await served.values("a.contoso.com", "AAAA") == ["fd00::1"]
    assert await served.values("c.contoso.com", "CNAME") == ["a.contoso.com."]
    assert await served.values("contoso.com", "MX") == ["10 mail.contoso.com."]
    assert await served.values("p.contoso.com", "PTR") == ["a.contoso.com."]
    assert await served.values("_s._tcp.contoso.com", "SRV") == ["1 2 443 a.contoso.com."]
    assert await served.values("t.contoso.com", "TXT") == ['"v=spf1 -all" "more"']
    assert (await served.ask("none.contoso.com")).authority[0].ttl == 5
    assert (await served.ask("a.contoso.com")).answer[0].ttl == 10


async def test_the_public_name_leads_through_privatelink_where_the_zone_is_linked(serve: Serve) -> None:
    linked = await serve(zone(BLOB, {(ACCOUNT, "A"): ("10.0.1.5",)}))
    unlinked = await serve(server=linked.server, network="b")
    for served, address in ((linked, "10.0.1.5"), (unlinked, "203.0.113.11")):
        reply = await served.ask(f"{ACCOUNT}.blob.core.windows.net")
        alias, final = reply.answer
        assert alias[0].to_text() == f"{ACCOUNT}.{BLOB}."
        assert (final.name.to_text(), final[0].to_text()) == (f"{ACCOUNT}.{BLOB}.", address)
    assert await linked.values("plain.blob.core.windows.net") == ["203.0.113.11"]
    reply = await linked.ask(f"{ACCOUNT}.blob.core.windows.net", "AAAA")
    assert (reply.rcode(), len(reply.answer), len(reply.authority)) == (dns.rcode.NOERROR, 1, 1)


async def test_redirect_passes_on_what_the_zone_lacks(serve: Serve) -> None:
    plain = await serve(zone(BLOB, {("kept", "A"): ("10.0.1.5",)}))
    redirecting = await serve(
        zone(BLOB, {("kept", "A"): ("10.0.1.5",)}, redirect=True), server=plain.server, network="b"
    )
    name = f"{ACCOUNT}.blob.core.windows.net"
    assert (await plain.ask(name)).rcode() == dns.rcode.NXDOMAIN
    assert await redirecting.values(name) == ["203.0.113.11"]
    assert await redirecting.values(f"kept.{BLOB}") == ["10.0.1.5"]
    assert await redirecting.values(f"kept.{BLOB}", "AAAA") == []
    assert (await redirecting.ask(f"none.{BLOB}")).rcode() == dns.rcode.NXDOMAIN
    assert (await redirecting.ask(f"{ACCOUNT}.{BLOB}", "TXT")).rcode() == dns.rcode.NXDOMAIN


async def test_backup_names_have_no_public_alias(serve: Serve) -> None:
    served = await serve()
    assert await served.values("pod01-id1.eus.backup.windowsazure.com") == ["203.0.113.10"]
    assert (await served.ask(f"8726350008099341699-ab-pod01-id1.{BACKUP}")).rcode() == dns.rcode.NXDOMAIN


async def test_names_nobody_serves(serve: Serve) -> None:
    """Without an upstream: NXDOMAIN at once; but never for a name above one that exists (RFC 8020)."""
    served = await serve(zone("privatelink.example", {}))
    reply = await served.ask("www.example.org", use_edns=0)
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert (reply.authority[0].name.to_text(), reply.authority[0].ttl) == (".", 10)
    assert "no upstream resolver is configured" in reply.options[0].to_text()
    for name in ("core.windows.net", "example", "."):
        reply = await served.ask(name)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, []), name
    assert (await served.ask("nothing.undercroft.internal")).authority[0].name.to_text() == "undercroft.internal."
    assert await served.values("undercroft.internal", "SOA") != []


async def test_cname_loops_end(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {("a", "CNAME"): ("b.contoso.com",), ("b", "CNAME"): ("a.contoso.com",)}))
    assert (await served.ask("a.contoso.com")).rcode() == dns.rcode.SERVFAIL
    assert await served.values("a.contoso.com", "CNAME") == ["b.contoso.com."]


async def test_the_spelling_of_the_question_is_kept(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {("www", "A"): ("10.0.0.1",)}))
    for name in ("wWw.CoNtOsO.com.", "WWW.contoso.COM."):
        reply = await served.ask(name)
        assert reply.question[0].name.to_text() == name
        assert reply.answer[0].name.to_text() == name


async def test_the_next_query_sees_what_was_published(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {}))
    assert (await served.ask("www.contoso.com")).rcode() == dns.rcode.NXDOMAIN
    for last in range(1, 20):
        served.publish(zone("contoso.com", {("www", "A"): (f"10.0.0.{last}",)}))
        assert await served.values("www.contoso.com") == [f"10.0.0.{last}"]
        assert await served.values("www.contoso.com") == [f"10.0.0.{last}"]
    served.publish()
    assert (await served.ask("www.contoso.com")).rcode() == dns.rcode.NXDOMAIN
    served.server.publish_public(PublicNames({"www.contoso.com": (IPv4Address("203.0.113.9"),)}))
    assert await served.values("www.contoso.com") == ["203.0.113.9"]


async def test_a_network_without_a_view_is_not_ready_rather_than_public(serve: Serve) -> None:
    served = await serve(zone(BLOB, {(ACCOUNT, "A"): ("10.0.1.5",)}))
    other = await serve(server=served.server, network="b")
    served.server.withdraw("b")
    reply = await other.ask(f"{ACCOUNT}.blob.core.windows.net")
    assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])
    other.publish()
    assert await other.values(f"{ACCOUNT}.blob.core.windows.net") == ["203.0.113.11"]


async def test_serving_again_moves_to_the_new_sockets_and_keeps_the_names(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {("www", "A"): ("10.0.0.1",)}))
    udp, tcp = sockets()
    await served.server.serve("a", udp, tcp)
    moved = type(served)(served.server, "a", udp.getsockname()[1])
    assert await moved.values("www.contoso.com") == ["10.0.0.1"]
    assert (await moved.ask("www.contoso.com", tcp=True)).answer
    await served.server.stop("a")
    assert served.server.networks == frozenset()
    udp, tcp = sockets()
    await served.server.serve("a", udp, tcp)
    moved = type(served)(served.server, "a", udp.getsockname()[1])
    assert await moved.values("www.contoso.com") == ["10.0.0.1"], "as after a restart of the fabric"
    await served.server.stop("a")
    served.server.withdraw("a")
    served.server.withdraw("never known")
    await served.server.stop("never known")
    udp, tcp = sockets()
    await served.server.serve("a", udp, tcp)
    moved = type(served)(served.server, "a", udp.getsockname()[1])
    assert (await moved.ask("www.contoso.com")).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ({("www", "A"): ("10.0.0.300",)}, "10.0.0.300"),
        ({("www", "A"): ("fd00::1",)}, "fd00::1"),
        ({("www", "NS"): ("ns.contoso.com",)}, "NS"),
        ({("@", "CNAME"): ("a.contoso.com",)}, "'@' CNAME"),
        ({("w", "CNAME"): ("a.b",), ("w", "A"): ("10.0.0.1",)}, "'w'"),
        ({("w", "CNAME"): ("a.b", "c.d")}, "exactly one"),
        ({("w", "SOA"): ("a. b. 1 2 3 4 5",)}, "'w' SOA"),
        ({("w", "MX"): ("mail.contoso.com",)}, "mail.contoso.com"),
        ({("a" * 64, "A"): ("10.0.0.1",)}, "a" * 64),
        ({("www.fabrikam.com.", "A"): ("10.0.0.1",)}, "relative"),
        ({("", "A"): ("10.0.0.1",)}, "relative"),
        ({("w", "TXT"): ("x" * 300,)}, "x" * 300),
        ({("W", "A"): ("10.0.0.1",), ("w", "A"): ("10.0.0.2",)}, "given twice"),
    ],
)
async def test_a_bad_record_is_refused_by_name_and_the_old_view_stays(
    serve: Serve, records: dict[tuple[str, str], tuple[str, ...]], named: str
) -> None:
    served = await serve(zone("contoso.com", {("www", "A"): ("10.0.0.1",)}))
    with pytest.raises(InvalidParameter) as caught:
        served.publish(zone("contoso.com", records))
    assert named in caught.value.message
    assert "contoso.com" in caught.value.message
    assert await served.values("www.contoso.com") == ["10.0.0.1"]


async def test_other_views_that_cannot_be_served(serve: Serve) -> None:
    served = await serve()
    with pytest.raises(InvalidParameter, match=r"(?i)Two zones 'contoso\.com'"):
        served.publish(zone("contoso.com", {}), zone("CONTOSO.com", {}))
    with pytest.raises(InvalidParameter, match="TTL -1"):
        served.server.publish("a", NetworkView((ZoneView("c.d", {("a", "A"): RecordSetView(-1, ("10.0.0.1",))}),)))
    with pytest.raises(InvalidParameter, match=r"'bad\.\.name'"):
        served.server.publish_public(PublicNames({"bad..name": (IPv4Address("203.0.113.1"),)}))
    with pytest.raises(InvalidParameter, match="at least one address"):
        served.server.publish_public(PublicNames({"a.b": ()}))
    assert await served.values("login.undercroft.internal") == ["203.0.113.20"], "the old public names stay"
    assert PUBLIC.suffixes


async def test_an_empty_record_set_is_unknown(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {("www", "A"): ()}))
    assert (await served.ask("www.contoso.com")).rcode() == dns.rcode.NXDOMAIN


async def test_flags_of_an_answer(serve: Serve) -> None:
    served = await serve(zone("contoso.com", {("www", "A"): ("10.0.0.1",)}))
    query = dns.message.make_query("www.contoso.com", "A", flags=dns.flags.CD)
    reply = await served.send(query)
    assert reply.flags == dns.flags.QR | dns.flags.RA | dns.flags.CD
