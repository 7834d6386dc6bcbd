"""Virtual networks and subnets through the API."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.site import Site, site


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        yield made


def body(prefix: str = "10.9.0.0/16", *subnets: tuple[str, str], **more: Any) -> dict[str, Any]:
    properties: dict[str, Any] = {"addressSpace": {"addressPrefixes": [prefix]}, **more}
    if subnets:
        properties["subnets"] = [{"name": name, "properties": {"addressPrefix": inside}} for name, inside in subnets]
    return {"location": "westeurope", "properties": properties}


async def test_what_az_sends_is_taken_and_shown(here: Site) -> None:
    sent = body("10.9.0.0/16", ("snet1", "10.9.0.0/24"), enableDdosProtection=False, enableVmProtection=False)
    answer = await here.send("PUT", f"{here.network}/virtualNetworks/vnet1", sent)
    assert answer.status == 201
    shown = answer.json["properties"]
    assert shown["provisioningState"] == "Succeeded" and shown["dhcpOptions"] == {"dnsServers": []}
    (subnet,) = shown["subnets"]
    assert subnet["id"].endswith("/virtualNetworks/vnet1/subnets/snet1")
    assert subnet["properties"]["addressPrefix"] == "10.9.0.0/24"
    again = await here.send("PUT", f"{here.network}/virtualNetworks/vnet1", answer.json)
    assert again.status == 200 and again.json["properties"]["resourceGuid"] == shown["resourceGuid"]


async def test_custom_resolvers_are_kept(here: Site) -> None:
    made = await here.make(f"{here.network}/virtualNetworks/v", body(dhcpOptions={"dnsServers": ["10.9.0.10"]}))
    assert made["properties"]["dhcpOptions"] == {"dnsServers": ["10.9.0.10"]}


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (body("10.9.0.0/16", ("a", "10.9.0.0/24"), ("b", "10.9.0.0/25")), 400, "NetcfgSubnetRangesOverlap"),
        (body("10.9.0.0/16", ("a", "10.8.0.0/24")), 400, "NetcfgInvalidSubnet"),
        (body("10.9.0.0/16", ("a", "10.9.0.0/30")), 400, "SubnetPrefixTooSmall"),
        (body("10.9.0.1/16"), 400, "InvalidAddressPrefixFormat"),
        (body("203.0.113.0/24"), 400, "AddressPrefixNotAllowed"),
        (body() | {"location": "mars"}, 400, "LocationNotAvailableForResourceType"),
        (body(enableDdosProtection=True), 501, "NotImplemented"),
        (body(virtualNetworkPeerings=[{"name": "p"}]), 400, "InvalidParameter"),
        (body(surprise=1), 400, "InvalidRequestContent"),
        (body(dhcpOptions={"dnsServers": ["169.63.129.16"]}), 400, "InvalidDnsServer"),
    ],
)
async def test_bad_networks_are_refused_by_name(here: Site, sent: Any, status: int, code: str) -> None:
    answer = await here.send("PUT", f"{here.network}/virtualNetworks/bad", sent)
    assert (answer.status, answer.code) == (status, code), answer.text
    assert (await here.get(f"{here.network}/virtualNetworks/bad")).status == 404


async def test_subnets_come_and_go(here: Site) -> None:
    id = f"{here.spoke}/subnets/more"
    properties = {
        "addressPrefix": "10.1.2.0/24",
        "privateEndpointNetworkPolicies": "Disabled",
        "privateLinkServiceNetworkPolicies": "Enabled",
    }
    assert (await here.send("PUT", id, {"name": "more", "properties": properties})).status == 201
    assert (await here.send("PUT", id, {"properties": properties})).status == 200
    assert [one["name"] for one in (await here.get(f"{here.spoke}/subnets")).json["value"]] == ["more", "work"]
    over = await here.send("PUT", f"{here.spoke}/subnets/x", {"properties": {"addressPrefix": "10.1.2.128/25"}})
    assert over.code == "NetcfgSubnetRangesOverlap"
    routed = {"properties": {"addressPrefix": "10.1.3.0/24", "routeTable": {"id": "/x"}}}
    refused = await here.send("PUT", f"{here.spoke}/subnets/x", routed)
    assert refused.status == 501 and "routeTable" in refused.message
    assert (await here.send("DELETE", id)).status == 200
    assert (await here.send("DELETE", id)).status == 204
    assert (await here.get(id)).status == 404


async def test_what_is_in_use_stays(here: Site) -> None:
    await here.vault()
    endpoint = await here.endpoint()
    for id in (here.spoke, f"{here.spoke}/subnets/work"):
        refused = await here.send("DELETE", id)
        assert refused.status == 409 and endpoint.lower() in refused.message.lower()
    network = (await here.get(here.spoke)).json
    network["properties"]["subnets"] = []
    refused = await here.send("PUT", here.spoke, network)
    assert refused.status == 409 and refused.code == "InUseSubnetCannotBeDeleted"
    moved = {"properties": {"addressPrefix": "10.1.7.0/24"}}
    assert (await here.send("PUT", f"{here.spoke}/subnets/work", moved)).status == 409
    assert (await here.send("DELETE", endpoint)).status == 200
    assert (await here.send("DELETE", here.spoke)).status == 200
    assert here.spoke.lower() not in here.world.doors


async def test_the_address_space_cannot_leave_its_subnets_behind(here: Site) -> None:
    answer = await here.send("PUT", here.spoke, body("10.2.0.0/16"))
    assert answer.code == "NetcfgInvalidSubnet"
    assert (await here.get(here.spoke)).json["properties"]["addressSpace"]["addressPrefixes"] == ["10.1.0.0/16"]


async def test_lists_are_paged(here: Site) -> None:
    for number in range(3):
        await here.make(f"{here.network}/virtualNetworks/v{number}", body(f"10.{number}.0.0/16"))
    first = await here.get(f"{here.network}/virtualNetworks", "&$top=2")
    assert len(first.json["value"]) == 2
    rest = await here.plane.get(first.json["nextLink"])
    names = [one["name"] for one in (*first.json["value"], *rest.json["value"])]
    assert names == ["spoke", "v0", "v1", "v2"] and "nextLink" not in rest.json


async def test_what_is_not_built_is_named(here: Site) -> None:
    for path in ("virtualNetworkGateways/g", "routeTables/r"):
        refused = await here.send("PUT", f"{here.network}/{path}", {})
        assert refused.status == 501 and path.split("/")[-2] in refused.message


async def test_while_the_world_is_away_a_change_is_a_long_running_operation(here: Site) -> None:
    here.world.away = True
    answer = await here.send("PUT", f"{here.network}/virtualNetworks/later", body())
    assert answer.status == 201 and answer.json["properties"]["provisioningState"] == "Updating"
    assert int(answer.headers["Retry-After"]) >= 1 and "Azure-AsyncOperation" in answer.headers


async def test_conditions_are_kept(here: Site) -> None:
    exists = await here.send("PUT", here.spoke, body("10.1.0.0/16"), headers={"If-None-Match": "*"})
    assert exists.status == 412
    stale = await here.send("DELETE", here.spoke, headers={"If-Match": 'W/"other"'})
    assert stale.status == 412
