"""Private DNS zones, links and record sets through the API."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.site import Site, site
from undercroft.dns.views import RecordSetView, ZoneView
from undercroft.dns.zones import Zone
from undercroft.vnet import zones


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.make(f"{made.network}/privateDnsZones/corp.example", {"location": "global"})
        yield made


def zone(here: Site) -> str:
    return f"{here.network}/privateDnsZones/corp.example"


def link(here: Site, **more: Any) -> dict[str, Any]:
    properties = {"registrationEnabled": False, "virtualNetwork": {"id": here.spoke}, **more}
    return {"location": "global", "properties": properties}


async def test_a_zone_starts_with_its_soa(here: Site) -> None:
    shown = (await here.get(zone(here))).json
    assert shown["location"] == "global" and shown["properties"]["numberOfRecordSets"] == 1
    (soa,) = (await here.get(f"{zone(here)}/ALL")).json["value"]
    assert soa["properties"]["soaRecord"] == {
        "host": "azureprivatedns.net",
        "email": "azureprivatedns-host.microsoft.com",
        "serialNumber": 1,
        "refreshTime": 3600,
        "retryTime": 300,
        "expireTime": 2419200,
        "minimumTtl": 10,
    }
    assert soa["properties"]["ttl"] == 3600
    changed = {"properties": {"soaRecord": {"minimumTtl": 60}}}
    assert (await here.send("PATCH", f"{zone(here)}/SOA/@", changed)).json["properties"]["soaRecord"][
        "minimumTtl"
    ] == 60
    assert (await here.send("DELETE", f"{zone(here)}/SOA/@")).status == 409


@pytest.mark.parametrize("name", ["single", "core.windows.net", "-a.b"])
async def test_bad_zone_names(here: Site, name: str) -> None:
    assert (await here.send("PUT", f"{here.network}/privateDnsZones/{name}", {"location": "global"})).status == 400


async def test_zones_are_global(here: Site) -> None:
    answer = await here.send("PUT", f"{here.network}/privateDnsZones/a.example", {"location": "westeurope"})
    assert answer.status == 400 and "global" in answer.message


async def test_a_linked_zone_is_not_deleted(here: Site) -> None:
    id = f"{zone(here)}/virtualNetworkLinks/l1"
    made = await here.make(id, link(here))
    assert made["properties"]["virtualNetworkLinkState"] == "Completed"
    refused = await here.send("DELETE", zone(here))
    assert refused.status == 409 and "l1" in refused.message
    assert (await here.send("DELETE", id)).status == 200
    assert (await here.send("DELETE", id)).status == 204
    assert (await here.send("DELETE", zone(here))).status == 200
    assert (await here.get(f"{zone(here)}/ALL")).status == 404


async def test_what_a_link_cannot_do_is_said(here: Site) -> None:
    id = f"{zone(here)}/virtualNetworkLinks/l1"
    redirect = await here.send("PUT", id, link(here, resolutionPolicy="NxDomainRedirect"))
    assert redirect.status == 400 and "privatelink" in redirect.message
    missing = await here.send("PUT", id, link(here, virtualNetwork={"id": f"{here.network}/virtualNetworks/none"}))
    assert missing.status == 404
    assert (await here.send("PUT", id, {"location": "global"})).status == 400
    await here.make(id, link(here))
    twice = await here.send("PUT", f"{zone(here)}/virtualNetworkLinks/l2", link(here))
    assert twice.status == 409


async def test_a_links_policy_can_be_changed(here: Site) -> None:
    private = f"{here.network}/privateDnsZones/privatelink.blob.core.windows.net"
    await here.make(private, {"location": "global"})
    id = f"{private}/virtualNetworkLinks/l1"
    await here.make(id, link(here))
    patched = await here.send("PATCH", id, {"properties": {"resolutionPolicy": "NxDomainRedirect"}})
    assert patched.status == 200 and patched.json["properties"]["resolutionPolicy"] == "NxDomainRedirect"
    assert (await here.get(f"{private}/virtualNetworkLinks")).json["value"][0]["properties"]["virtualNetwork"] == {
        "id": here.spoke
    }


async def test_two_zones_of_one_name_are_not_linked_to_one_network(here: Site) -> None:
    await here.make(f"{zone(here)}/virtualNetworkLinks/l", link(here))
    await here.plane.group("rg2")
    other = zone(here).replace("/resourceGroups/rg/", "/resourceGroups/rg2/")
    await here.make(other, {"location": "global"})
    answer = await here.send("PUT", f"{other}/virtualNetworkLinks/l", link(here))
    assert answer.status == 400 and "overlapping namespaces" in answer.message
    assert f"which {zone(here)}/virtualNetworkLinks/l links already".lower() in answer.message.lower()
    someone, token = await here.plane.principal("Private DNS Zone Contributor", f"{here.group}2")
    await here.plane.grant(someone, "Network Contributor", here.spoke)
    answer = await here.send("PUT", f"{other}/virtualNetworkLinks/l", link(here), token=token)
    assert answer.status == 400 and "which a resource that you may not read links already" in answer.message


@pytest.mark.parametrize(
    ("kind", "name", "records"),
    [
        ("A", "aRecords", [{"ipv4Address": "10.0.0.9"}, {"ipv4Address": "10.0.0.10"}]),
        ("AAAA", "aaaaRecords", [{"ipv6Address": "fd00::9"}]),
        ("CNAME", "cnameRecord", {"cname": "www.example.org"}),
        ("MX", "mxRecords", [{"preference": 10, "exchange": "mail.example.org"}]),
        ("PTR", "ptrRecords", [{"ptrdname": "host.example.org"}]),
        ("SRV", "srvRecords", [{"priority": 1, "weight": 2, "port": 443, "target": "a.example.org"}]),
        ("TXT", "txtRecords", [{"value": ['say "hi"', "back\\slash", "\\010"]}, {"value": [""]}]),
        ("TXT", "txtRecords", [{"value": ["two\nlines", "tab\t, nul\0 and \x7f"]}]),
    ],
)
async def test_every_record_type_comes_back_as_it_was(here: Site, kind: str, name: str, records: Any) -> None:
    id = f"{zone(here)}/{kind}/foo"
    assert (await here.get(id)).status == 404
    answer = await here.send("PUT", id, {"properties": {"ttl": 300, "metadata": {"k": "v"}, name: records}})
    assert answer.status == 201, answer.text
    shown = answer.json["properties"]
    assert shown[name] == records and shown["ttl"] == 300 and shown["metadata"] == {"k": "v"}
    assert shown["fqdn"] == "foo.corp.example."
    stored = await here.database.read(lambda c: zones.get_record_set(c, zone(here), "foo", kind))
    assert stored is not None
    served = Zone(ZoneView("corp.example", {("foo", kind): RecordSetView(300, stored.values)}))
    assert len(served.owners) == 1, "what was taken can be served"
    patched = await here.send("PATCH", id, {"properties": {"ttl": 60}})
    assert patched.status == 200 and patched.json["properties"]["ttl"] == 60
    assert patched.json["properties"][name] == records and patched.json["properties"]["metadata"] == {"k": "v"}
    back = await here.send("PUT", id, patched.json)
    assert back.status == 200 and back.json["properties"][name] == records
    assert [one["name"] for one in (await here.get(f"{zone(here)}/{kind}")).json["value"]] == ["foo"]
    assert (await here.send("DELETE", id)).status == 200
    assert (await here.send("DELETE", id)).status == 204


@pytest.mark.parametrize(
    ("kind", "properties"),
    [
        ("A", {"aRecords": [{"ipv4Address": "10.0.0"}]}),
        ("A", {"aaaaRecords": [{"ipv6Address": "::1"}]}),
        ("A", {"aRecords": [{"ipv4Address": f"10.0.0.{number}"} for number in range(21)]}),
        ("AAAA", {"aaaaRecords": [{"ipv6Address": "10.0.0.1"}]}),
        ("AAAA", {"aaaaRecords": [{"ipv6Address": "fe80::1%eth0"}]}),
        ("CNAME", {"cnameRecord": {"cname": "not a name"}}),
        ("MX", {"mxRecords": [{"preference": 70000, "exchange": "a.b"}]}),
        ("TXT", {"txtRecords": [{"value": []}]}),
        ("TXT", {"txtRecords": [{"value": ["ü"]}]}),
        ("A", {"ttl": -1, "aRecords": []}),
        ("A", {"surprise": 1}),
    ],
)
async def test_bad_records_are_refused(here: Site, kind: str, properties: Any) -> None:
    assert (await here.send("PUT", f"{zone(here)}/{kind}/foo", {"properties": properties})).status == 400
    assert (await here.get(f"{zone(here)}/{kind}/foo")).status == 404


async def test_if_none_match_creates_only(here: Site) -> None:
    id = f"{zone(here)}/A/foo"
    sent = {"properties": {"ttl": 3600, "aRecords": [{"ipv4Address": "10.0.0.9"}]}}
    assert (await here.send("PUT", id, sent, headers={"If-None-Match": "*"})).status == 201
    assert (await here.send("PUT", id, sent, headers={"If-None-Match": "*"})).status == 412
    etag = (await here.get(id)).json["etag"]
    assert (await here.send("PUT", id, sent, headers={"If-Match": 'W/"x"'})).status == 412
    assert (await here.send("DELETE", id, headers={"If-Match": etag})).status == 200


async def test_a_cname_stands_alone(here: Site) -> None:
    await here.make(f"{zone(here)}/A/foo", {"properties": {"aRecords": [{"ipv4Address": "10.0.0.9"}]}})
    answer = await here.send("PUT", f"{zone(here)}/CNAME/foo", {"properties": {"cnameRecord": {"cname": "a.b"}}})
    assert answer.status == 409
    apex = await here.send("PUT", f"{zone(here)}/CNAME/@", {"properties": {"cnameRecord": {"cname": "a.b"}}})
    assert apex.status in (400, 409)


async def test_lists_are_paged_and_filtered_by_suffix(here: Site) -> None:
    for name in ("a", "b", "c", "b.c"):
        await here.make(f"{zone(here)}/A/{name}", {"properties": {"aRecords": [{"ipv4Address": "10.0.0.9"}]}})
    names, link = [], f"{zone(here)}/ALL?api-version=2018-09-01&$top=2"
    for _ in range(5):
        page = (await here.plane.get(link)).json
        names += [one["name"] for one in page["value"]]
        if "nextLink" not in page:
            break
        link = page["nextLink"]
    assert names == ["@", "a", "b", "b.c", "c"]
    filtered = await here.get(f"{zone(here)}/A", "&$recordsetnamesuffix=c")
    assert [one["name"] for one in filtered.json["value"]] == ["b.c", "c"]
