"""On-premises sites through the API: what they may be attached to, their hosts, and effective routes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.site import Site, site
from tests.providers.test_network_peerings import network, peer, reached, side, wanted
from undercroft.vnet import reach, sites
from undercroft.workers import siteplans


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    """``spoke`` is 10.1.0.0/16, ``hub`` 10.2.0.0/16."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await network(made, "hub", "10.2.0.0/16")
        yield made


def office(here: Site, name: str = "office") -> str:
    return f"{here.group}/providers/Undercroft.Fabric/sites/{name}"


def body(here: Site, *prefixes: str, to: str | None = None, dns: tuple[str, ...] = ()) -> dict[str, Any]:
    line = {"id": f"{here.network}/virtualNetworks/{to}"} if to else None
    properties = {"addressPrefixes": prefixes or ("192.168.0.0/24",), "dnsServers": dns, "virtualNetwork": line}
    return {"location": "global", "properties": properties}


def reached_by_site(here: Site, name: str = "office") -> dict[str, list[str]]:
    with here.database.engine.connect() as connection:
        record = sites.get(connection, office(here, name))
        assert record is not None
        found = reach.of_site(connection, record)
    return {one.key.rsplit("/", 1)[-1]: [str(prefix) for prefix in (*one.prefixes, *one.behind)] for one in found}


async def test_a_site_is_attached_moved_and_detached(here: Site) -> None:
    answer = await here.send("PUT", office(here), body(here))
    assert answer.status == 201 and answer.json["properties"]["virtualNetwork"] is None
    assert answer.json["type"] == "Undercroft.Fabric/sites" and answer.json["location"] == "global"
    assert reached_by_site(here) == {}
    await here.make(office(here), body(here, to="hub"))
    assert reached_by_site(here) == {"hub": ["10.2.0.0/16"]} and reached(here, "hub") == {"office": ["192.168.0.0/24"]}
    shown = (await here.get(office(here))).json
    await here.make(office(here), shown)  # as a client sends back what it was shown
    assert reached(here, "hub") == {"office": ["192.168.0.0/24"]}
    await here.make(office(here), body(here, "192.168.0.0/24", "192.168.7.0/24", to="spoke"))
    assert reached(here, "hub") == {} and reached(here, "spoke") == {"office": ["192.168.0.0/24", "192.168.7.0/24"]}
    await here.make(office(here), body(here))
    assert reached(here, "spoke") == {} == reached_by_site(here)
    listed = [one["name"] for one in (await here.get(f"{here.group}/providers/Undercroft.Fabric/sites")).json["value"]]
    assert listed == ["office"]
    assert (await here.send("DELETE", office(here))).status == 200
    assert (await here.send("DELETE", office(here))).status == 204


async def test_spokes_reach_a_site_by_the_gateway_flags(here: Site) -> None:
    await here.make(office(here), body(here, to="hub"))
    await here.make(office(here, "plant"), body(here, "192.168.9.0/24", to="hub"))
    both = {"office": ["192.168.0.0/24"], "plant": ["192.168.9.0/24"]}
    await peer(here, "hub", "spoke")
    refused = await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "hub", useRemoteGateways=True))
    assert (refused.status, refused.code) == (400, "InvalidPeeringGatewayFlags")
    await peer(here, "hub", "spoke", allowGatewayTransit=True)
    await peer(here, "spoke", "hub", useRemoteGateways=True)
    assert reached(here, "spoke") == {"hub": ["10.2.0.0/16", "192.168.0.0/24", "192.168.9.0/24"]}
    assert reached(here, "hub") == {"spoke": ["10.1.0.0/16"], **both}
    assert reached_by_site(here) == reached_by_site(here, "plant") == {"hub": ["10.2.0.0/16", "10.1.0.0/16"]}
    await peer(here, "hub", "spoke")
    assert reached(here, "spoke") == {"hub": ["10.2.0.0/16"]} and reached_by_site(here) == {"hub": ["10.2.0.0/16"]}


async def test_one_gateway_for_one_network(here: Site) -> None:
    await here.make(office(here), body(here, to="hub"))
    await network(here, "other", "10.3.0.0/16")
    await here.make(office(here, "plant"), body(here, "192.168.9.0/24", to="other"))
    await peer(here, "hub", "spoke", allowGatewayTransit=True)
    await peer(here, "other", "spoke", allowGatewayTransit=True)
    await peer(here, "spoke", "hub", useRemoteGateways=True)
    second = await here.send("PUT", side(here, "spoke", "other"), wanted(here, "other", useRemoteGateways=True))
    assert second.code == "InvalidPeeringGatewayFlags" and "to-hub" in second.message
    own = await here.send("PUT", office(here, "branch"), body(here, "192.168.3.0/24", to="spoke"))
    assert (own.status, own.code) == (409, "InvalidPeeringGatewayFlags")
    has = await here.send("PUT", side(here, "hub", "other"), wanted(here, "other", useRemoteGateways=True))
    assert has.code == "InvalidPeeringGatewayFlags" and "office" in has.message
    unverified = await peer(here, "other", "hub")
    assert unverified["peeringState"] == "Initiated"
    await network(here, "bare", "10.4.0.0/16")
    await network(here, "eager", "10.5.0.0/16")
    await peer(here, "eager", "bare", useRemoteGateways=True, doNotVerifyRemoteGateways=True)


async def test_a_site_overlaps_nothing_that_it_reaches(here: Site) -> None:
    await peer(here, "hub", "spoke", allowGatewayTransit=True)
    await peer(here, "spoke", "hub")
    for prefix, owner in (("10.2.7.0/24", "hub"), ("10.1.7.0/24", "spoke")):
        refused = await here.send("PUT", office(here), body(here, prefix, to="hub"))
        assert refused.code == "SiteAddressSpaceOverlapsWithVnet" and f"/{owner}" in refused.message
    await here.make(office(here), body(here, "10.1.7.0/24"))  # attached to nothing, it meets nobody
    await here.make(office(here), body(here, to="hub"))
    second = await here.send("PUT", office(here, "plant"), body(here, "192.168.0.128/25", to="hub"))
    assert second.code == "SiteAddressSpaceOverlapsWithVnet" and "office" in second.message
    hub = (await here.get(f"{here.network}/virtualNetworks/hub")).json
    hub["properties"]["addressSpace"]["addressPrefixes"].append("192.168.0.0/16")
    grown = await here.send("PUT", hub["id"], hub)
    assert grown.code == "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet" and "office" in grown.message


async def test_a_site_overlaps_nothing_that_a_spoke_will_reach(here: Site) -> None:
    """Neither while the peering carries nothing yet; or the spoke could not be built when it does."""
    await network(here, "third", "10.3.0.0/16")
    await peer(here, "spoke", "third")
    await peer(here, "spoke", "hub", useRemoteGateways=True, doNotVerifyRemoteGateways=True)
    await here.make(office(here), body(here, "10.3.7.0/24", to="hub"))  # the hub knows of no spoke
    refused = await here.send("PUT", side(here, "hub", "spoke"), wanted(here, "spoke", allowGatewayTransit=True))
    assert refused.code == "SiteAddressSpaceOverlapsWithVnet" and "/third" in refused.message
    await here.make(office(here), body(here, "10.3.7.0/24"))
    await peer(here, "hub", "spoke", allowGatewayTransit=True, allowVirtualNetworkAccess=False)
    refused = await here.send("PUT", office(here), body(here, "10.3.7.0/24", to="hub"))
    assert refused.code == "SiteAddressSpaceOverlapsWithVnet" and "/third" in refused.message


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"addressPrefixes": []}, 400, "AddressSpaceMissing"),
        ({"addressPrefixes": ["192.168.0.1/24"]}, 400, "InvalidAddressPrefixFormat"),
        ({"addressPrefixes": ["203.0.113.0/25"]}, 400, "AddressPrefixNotAllowed"),
        ({"addressPrefixes": ["168.63.0.0/16"]}, 400, "AddressPrefixNotAllowed"),
        ({"dnsServers": ["169.63.129.16"]}, 400, "InvalidDnsServer"),
        ({"virtualNetwork": {}}, 400, "InvalidParameter"),
        ({"virtualNetwork": {"id": "/subscriptions/s/resourceGroups/g"}}, 400, "InvalidParameter"),
        ({"virtualNetwork": {"id": "NONE"}}, 404, "InvalidResourceReference"),
        ({"surprise": 1}, 400, "InvalidRequestContent"),
    ],
)
async def test_bad_sites_are_refused_by_name(here: Site, change: Any, status: int, code: str) -> None:
    sent = body(here)
    sent["properties"] |= change
    if change.get("virtualNetwork") == {"id": "NONE"}:
        sent["properties"]["virtualNetwork"] = {"id": f"{here.network}/virtualNetworks/nothing"}
    answer = await here.send("PUT", office(here), sent)
    assert (answer.status, answer.code) == (status, code), answer.text
    assert (await here.get(office(here))).status == 404


async def test_hosts_have_addresses_of_the_site(here: Site) -> None:
    await here.make(office(here), body(here, "192.168.0.0/24", "192.168.5.0/29", dns=("192.168.0.4",)))
    first = await here.make(f"{office(here)}/hosts/dc01", {})
    assert first["properties"]["address"] == "192.168.0.4"
    chosen = await here.make(f"{office(here)}/hosts/pc01", {"properties": {"address": "192.168.5.2"}})
    assert (await here.send("PUT", chosen["id"], chosen)).status == 200
    for name, address, code in (
        ("pc02", "192.168.0.4", "SiteHostAddressInUse"),
        ("pc02", "192.168.0.1", "InvalidSiteHostAddress"),
        ("pc02", "192.168.5.7", "InvalidSiteHostAddress"),
        ("pc02", "10.0.0.4", "InvalidSiteHostAddress"),
        ("pc02", "here", "InvalidIpAddress"),
        ("pc01", "192.168.0.9", "PropertyChangeNotAllowed"),
        ("p_c", "192.168.0.9", "InvalidResourceName"),
    ):
        refused = await here.send("PUT", f"{office(here)}/hosts/{name}", {"properties": {"address": address}})
        assert refused.code == code, refused.text
    smaller = await here.send("PUT", office(here), body(here, "192.168.0.0/24"))
    assert smaller.code == "InvalidSiteHostAddress" and "192.168.5.2" in smaller.message
    refused = await here.send("DELETE", office(here))
    assert (refused.status, refused.code) == (409, "InUseSiteCannotBeDeleted")
    assert (await here.send("PUT", f"{office(here, 'no')}/hosts/x", {})).status == 404
    assert (await here.send("DELETE", f"{office(here)}/hosts/pc01")).status == 200
    assert [one["name"] for one in (await here.get(f"{office(here)}/hosts")).json["value"]] == ["dc01"]


@pytest.mark.parametrize(
    ("dns", "asks"), [(("192.168.0.4", "10.2.1.4"), ["192.168.0.4", "10.2.1.4"]), ((), ["203.0.113.22"])]
)
async def test_hosts_ask_the_sites_servers_or_a_public_one(here: Site, dns: tuple[str, ...], asks: list[str]) -> None:
    await here.make(office(here), body(here, dns=dns))
    await here.make(f"{office(here)}/hosts/dc01", {})
    plan = await here.database.read(lambda connection: siteplans.read(connection, office(here)))
    assert plan is not None
    specification = plan.specification(here.world.settings)
    assert not specification.platform
    assert [str(resolver) for resolver in specification.hosts[0].resolvers] == asks
    assert plan.doors(here.world.settings).keys() < specification.public_addresses


async def test_attaching_needs_a_right_on_the_network(here: Site) -> None:
    await here.make(office(here), body(here))
    _, token = await here.plane.principal("Contributor", office(here))
    assert (await here.send("PUT", office(here), body(here, dns=("192.168.0.9",)), token=token)).status == 200
    refused = await here.send("PUT", office(here), body(here, to="hub"), token=token)
    assert refused.status == 403 and "virtualNetworks/join/action" in refused.message


async def test_more_ranges_behind_a_line_need_the_same_right(here: Site) -> None:
    await here.make(office(here), body(here, "192.168.0.0/23", to="hub"))
    _, token = await here.plane.principal("Contributor", office(here))
    for wider in (("192.168.0.0/22",), ("192.168.0.0/23", "172.16.0.0/24")):
        refused = await here.send("PUT", office(here), body(here, *wider, to="hub"), token=token)
        assert refused.status == 403 and "virtualNetworks/join/action" in refused.message
        assert reached(here, "hub") == {"office": ["192.168.0.0/23"]}
    less = await here.send("PUT", office(here), body(here, "192.168.1.0/24", to="hub"), token=token)
    assert less.status == 200 and reached(here, "hub") == {"office": ["192.168.1.0/24"]}


async def test_a_network_with_a_site_is_not_deleted(here: Site) -> None:
    await here.make(office(here), body(here, to="hub"))
    refused = await here.send("DELETE", f"{here.network}/virtualNetworks/hub")
    assert (refused.status, refused.code) == (409, "InUseVirtualNetworkCannotBeDeleted") and "office" in refused.message
    assert (await here.send("DELETE", office(here))).status == 200
    assert (await here.send("DELETE", f"{here.network}/virtualNetworks/hub")).status == 200


async def test_a_group_goes_with_its_sites_and_peerings_and_leaves_the_others_disconnected(here: Site) -> None:
    """``outside`` is a network of another group."""
    other = await here.plane.group("elsewhere")
    outside = f"{other}/providers/Microsoft.Network/virtualNetworks/outside"
    properties = {"addressSpace": {"addressPrefixes": ["10.8.0.0/16"]}}
    await here.make(outside, {"location": "westeurope", "properties": properties})
    hub = f"{here.network}/virtualNetworks/hub"
    for near, far in ((hub, outside), (outside, hub)):
        remote = {"properties": {"remoteVirtualNetwork": {"id": far}}}
        made = await here.make(f"{near}/virtualNetworkPeerings/p", remote)
    assert made["properties"]["peeringState"] == "Connected"
    await here.make(office(here), body(here, to="hub"))
    await here.make(f"{office(here)}/hosts/dc01", {})
    assert (await here.send("DELETE", here.group)).status in (200, 202)
    assert (await here.get(here.group)).status == 404
    left = (await here.get(f"{outside}/virtualNetworkPeerings/p")).json["properties"]
    assert left["peeringState"] == "Disconnected" and left["remoteVirtualNetwork"]["id"] == hub


async def test_effective_routes_of_an_interface(here: Site) -> None:
    await network(here, "far", "10.3.0.0/16", location="northeurope")
    await here.make(office(here), body(here, to="hub"))
    for name in ("spoke", "far"):
        await peer(here, "hub", name, allowGatewayTransit=True)
    await peer(here, "spoke", "hub", useRemoteGateways=True)
    await peer(here, "far", "hub")
    await here.vault()
    endpoint = await here.endpoint()
    machine = {
        "location": "westeurope",
        "properties": {
            "networkProfile": {
                "networkInterfaceConfigurations": [
                    {
                        "name": "web01-nic",
                        "properties": {
                            "ipConfigurations": [
                                {"name": "c", "properties": {"subnet": {"id": f"{here.spoke}/subnets/work"}}}
                            ]
                        },
                    }
                ]
            }
        },
    }
    await here.make(here.machine_id(), machine)
    answer = await here.send("POST", f"{here.network}/networkInterfaces/web01-nic/effectiveRouteTable")
    assert answer.status == 200
    table = {(route["nextHopType"], tuple(route["addressPrefix"])) for route in answer.json["value"]}
    assert {
        ("VnetLocal", ("10.1.0.0/16",)),
        ("VNetPeering", ("10.2.0.0/16",)),
        ("VirtualNetworkGateway", ("192.168.0.0/24",)),
        ("Internet", ("203.0.113.0/24",)),
        ("None", ("0.0.0.0/0",)),
    } <= table
    shown = (await here.get(endpoint)).json["properties"]
    endpoints = {(f"{one['ipAddresses'][0]}/32",) for one in shown["customDnsConfigs"]}
    assert {prefix for hop, prefix in table if hop == "InterfaceEndpoint"} == endpoints
    interface = shown["networkInterfaces"][0]["id"]
    refused = await here.send("POST", f"{interface}/effectiveRouteTable")
    assert (refused.status, refused.code) == (409, "NetworkInterfaceNotAttachedToVirtualMachine")
    assert (await here.send("POST", f"{here.network}/networkInterfaces/no/effectiveRouteTable")).status == 404
