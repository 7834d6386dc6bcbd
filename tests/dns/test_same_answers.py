"""The server reads and writes ordinary messages by hand: whatever the zones and the question, as dnspython would, byte for byte."""

from __future__ import annotations

from ipaddress import IPv4Address

import dns.message
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dns import reference
from tests.dns.loopback import BLOB, PUBLIC
from undercroft.clock import ManualClock
from undercroft.dns import message
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView, RecordSetView, ZoneView

LABELS = st.sampled_from(["a", "b", "*", "_tcp", "www", "0a1b2c3decs01", "x" * 63])
RELATIVE = st.one_of(st.just("@"), st.lists(LABELS, min_size=1, max_size=3).map(".".join))
ZONES = ("contoso.com", "b.contoso.com", BLOB, "0.10.in-addr.arpa")
TARGETS = st.sampled_from(
    [
        "www.contoso.com",
        "A.Contoso.com",
        "a.b.contoso.com",
        f"0a1b2c3decs01.{BLOB}",
        "login.undercroft.internal",
        "no.where",
    ]
)
VALUES = {
    "A": st.integers(1, 254).map(lambda n: f"10.0.1.{n}"),
    "AAAA": st.integers(1, 65535).map(lambda n: f"fd00::{n:x}"),
    "CNAME": TARGETS,
    "MX": TARGETS.map(lambda host: f"10 {host}."),
    "PTR": TARGETS.map(lambda host: f"{host}."),
    "SRV": TARGETS.map(lambda host: f"1 2 443 {host}."),
    "TXT": st.integers(0, 200).map(lambda n: f'"{"t" * n}" "more"'),
}


@st.composite
def zones(draw: st.DrawFn, name: str) -> ZoneView:
    records: dict[tuple[str, str], RecordSetView] = {}
    for relative in draw(st.lists(RELATIVE, max_size=6, unique=True)):
        kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
        if "CNAME" in kinds:
            kinds = ["CNAME"] if relative != "@" else ["A"]
        for kind in kinds:
            most = 1 if kind == "CNAME" else 40
            values = draw(st.lists(VALUES[kind], max_size=most, unique=True))
            records[relative, kind] = RecordSetView(draw(st.integers(0, 600)), tuple(values))
    if draw(st.booleans()):
        records["@", "SOA"] = RecordSetView(
            draw(st.integers(0, 600)), ("ns.b.contoso.com. host.contoso.com. 7 1 2 3 90",)
        )
    return ZoneView(name, records, draw(st.booleans()))


@st.composite
def views(draw: st.DrawFn) -> NetworkView:
    names = draw(st.lists(st.sampled_from(ZONES), max_size=4, unique=True))
    hosts = draw(
        st.dictionaries(st.sampled_from([IPv4Address("10.0.1.4"), IPv4Address("10.1.1.5")]), st.just("vm.contoso.com"))
    )
    return NetworkView(tuple(draw(zones(name)) for name in names), hosts)


@st.composite
def queries(draw: st.DrawFn) -> dns.message.Message:
    suffix = draw(
        st.sampled_from(
            [
                *ZONES,
                "blob.core.windows.net",
                "undercroft.internal",
                "4.1.0.10.in-addr.arpa",
                "5.1.1.10.in-addr.arpa",
                "com",
                ".",
            ]
        )
    )
    labels = draw(st.lists(LABELS, max_size=3))
    text = ".".join([*labels, suffix]) if suffix != "." else ".".join(labels) + "."
    if draw(st.booleans()):
        text = "".join(letter.upper() if draw(st.booleans()) else letter for letter in text)
    kind = draw(st.sampled_from([*VALUES, "SOA", "NS", "HTTPS", "TYPE4711"]))
    query = dns.message.make_query(text, kind, use_edns=False, id=draw(st.integers(0, 65535)))
    query.flags = draw(st.sampled_from([0x0100, 0x0110, 0x0000, 0x0120]))
    if draw(st.booleans()):
        query.use_edns(0, draw(st.sampled_from([0, 0x8000])), draw(st.sampled_from([0, 512, 700, 1232, 4096])))
    return query


@settings(max_examples=150, deadline=None)
@given(view=views(), asked=st.lists(queries(), min_size=1, max_size=6), stream=st.booleans())
def test_every_answer_is_the_one_that_dnspython_would_write(
    view: NetworkView, asked: list[dns.message.Message], stream: bool
) -> None:
    server = NameServer(ManualClock())
    server.publish_public(PUBLIC)
    server.publish("a", view)
    for query in asked:
        wire = query.to_wire()
        expected = reference.answer(view, PUBLIC, query, stream=stream)
        for _ in range(2):  # the second time from the cache
            reply = server._respond(server._networks["a"], wire, "10.0.0.4", stream=stream)
            assert isinstance(reply, bytes)
            assert reply == expected, f"\n{dns.message.from_wire(reply)}\n---\n{dns.message.from_wire(expected)}"


@settings(max_examples=60, deadline=None)
@given(states=st.lists(zones("contoso.com"), min_size=2, max_size=5), asked=st.lists(queries(), min_size=3, max_size=8))
def test_a_zone_that_changed_answers_as_one_that_was_always_so(
    states: list[ZoneView], asked: list[dns.message.Message]
) -> None:
    """Only what differs is parsed anew; nothing of the state before shows."""
    living = NameServer(ManualClock())
    living.publish_public(PUBLIC)
    for state in states:
        living.publish("a", NetworkView((state,)))
        for query in asked:
            reply = living._respond(living._networks["a"], query.to_wire(), "10.0.0.4", stream=True)
            assert reply == reference.answer(NetworkView((state,)), PUBLIC, query, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_the_ordinary_reader_and_dnspython_agree(stream: bool) -> None:
    """The reader by hand is not merely skipped: it takes these, and says of them what the careful one says."""
    for name in ("www.contoso.com", ".", "x" * 63 + ".contoso.com"):
        for kind in ("A", "AAAA", "TXT", "TYPE4711"):
            for options in ({}, {"use_edns": 0, "payload": 4096}, {"want_dnssec": True}):
                wire = dns.message.make_query(name, kind, **options).to_wire()
                by_hand = message._ordinary(wire, stream)
                assert by_hand is not None
                assert by_hand == message._any(wire, stream)
