"""What reaches the name server piece by piece: a zone is never lost to one record, and reverse names follow the link that registers."""

from __future__ import annotations

from ipaddress import IPv4Address

from tests.dns.loopback import PUBLIC, Serve
from undercroft.dns.published import Published
from undercroft.dns.views import RecordChange, RecordSetView, ZoneChange, ZoneLink


def change(*records: tuple[str, str, str | None]) -> ZoneChange:
    found = [RecordChange(name, kind, (value and RecordSetView(10, (value,))) or None) for name, kind, value in records]
    return ZoneChange("/z", "contoso.com", tuple(found))


async def test_a_change_that_cannot_stand_beside_what_is_there_is_named_and_the_zone_goes_on(serve: Serve) -> None:
    served = await serve()
    published = Published(served.server)
    published.put_public(PUBLIC)
    published.put_links("a", (ZoneLink("/z", "contoso.com"),))
    assert published.put_zone(change(("www", "A", "10.0.0.1"))) == ()
    (refused,) = published.put_zone(change(("www", "CNAME", "elsewhere.example"), ("new", "A", "10.0.0.2")))
    assert "'www'" in refused and "CNAME admits no other record" in refused
    assert await served.values("www.contoso.com") == ["10.0.0.1"]
    (refused,) = published.put_zone(change(("bad", "A", "10.0.0.300"), ("good", "A", "10.0.0.3")))
    assert "10.0.0.300" in refused
    assert await served.values("good.contoso.com") == ["10.0.0.3"]
    assert published.put_zone(change(("www", "A", None), ("www", "CNAME", "good.contoso.com"))) == ()
    assert await served.values("www.contoso.com") == ["10.0.0.3"]


async def test_reverse_names_come_with_the_link_that_registers(serve: Serve) -> None:
    served = await serve()
    published = Published(served.server)
    published.put_public(PUBLIC)
    hosts = ((IPv4Address("10.0.0.4"), "web01"),)
    published.put_links("a", (ZoneLink("/z", "contoso.com", hosts=hosts), ZoneLink("/y", "other.example")))
    assert await served.values("4.0.0.10.in-addr.arpa", "PTR") == ["web01.contoso.com."]
    assert (await served.ask("4.0.0.10.in-addr.arpa", "A")).authority != []
    published.put_links("a", (ZoneLink("/z", "contoso.com"),))
    assert await served.values("4.0.0.10.in-addr.arpa", "PTR") == []
