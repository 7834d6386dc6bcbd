"""What blocks a deletion, and the order that is legal (pains A14): every refusal names the blocker, and what it names is enough."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from tests.providers.content import register
from tests.providers.site import Site, site
from undercroft.state import schema

ZONE = "privatelink.we.backup.windowsazure.com"


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.vault()
        yield made


async def refused(here: Site, id: str, code: str, *named: str) -> None:
    answer = await here.send("DELETE", id)
    assert (answer.status, answer.code) == (409, code), answer.text
    position = -1
    for name in named:
        found = answer.message.lower().find(name.lower())
        assert found > position, f"{name} is not named, or not in its turn: {answer.message}"
        position = found
    assert (await here.get(id)).status == 200, "a refused deletion changes nothing"


async def gone(here: Site, *ids: str) -> None:
    for id in ids:
        answer = await here.send("DELETE", id)
        assert answer.status in (200, 204), answer.text
        assert (await here.get(id)).status == 404


async def test_every_refusal_names_what_blocks_and_the_order_is_the_legal_one(here: Site) -> None:
    zone = f"{here.network}/privateDnsZones/{ZONE}"
    await here.make(zone, {"location": "global"})
    link = f"{zone}/virtualNetworkLinks/l"
    target = {"registrationEnabled": False, "virtualNetwork": {"id": here.spoke}}
    await here.make(link, {"location": "global", "properties": target})
    endpoint = await here.endpoint("pe1", manual=True)
    group = f"{endpoint}/privateDnsZoneGroups/default"
    config = {"name": "z", "properties": {"privateDnsZoneId": zone}}
    await here.make(group, {"properties": {"privateDnsZoneConfigs": [config]}})
    interface = (await here.get(endpoint)).json["properties"]["networkInterfaces"][0]["id"]
    subnet = f"{here.spoke}/subnets/work"

    await refused(here, zone, "CannotDeleteResource", group, link)  # a Pending endpoint has no records there yet
    await refused(here, interface, "NicInUse", endpoint)
    await refused(here, subnet, "InUseSubnetCannotBeDeleted", endpoint)
    await refused(here, here.spoke, "InUseVirtualNetworkCannotBeDeleted", endpoint)
    await refused(here, here.vault_id(), "ServiceResourceNotEmptyWithBackendMessage", endpoint)

    await gone(here, group)
    await refused(here, zone, "CannotDeleteResource", link)
    await gone(here, link, zone)
    connection = await here.connection("pe1")
    assert (await here.send("DELETE", connection["id"])).status == 200
    await refused(here, subnet, "InUseSubnetCannotBeDeleted", endpoint)  # the orphan keeps its addresses
    shown = (await here.get(endpoint)).json["properties"]["manualPrivateLinkServiceConnections"][0]["properties"]
    assert "Delete this private endpoint" in shown["privateLinkServiceConnectionState"]["actionsRequired"]
    await gone(here, endpoint)
    assert (await here.get(interface)).status == 404
    await gone(here, subnet, here.spoke, here.vault_id())


async def test_an_endpoint_takes_its_zone_group_with_it_and_then_nothing_holds_the_zone(here: Site) -> None:
    zone = f"{here.network}/privateDnsZones/{ZONE}"
    await here.make(zone, {"location": "global"})
    endpoint = await here.endpoint("pe1")
    config = {"name": "z", "properties": {"privateDnsZoneId": zone}}
    await here.make(f"{endpoint}/privateDnsZoneGroups/default", {"properties": {"privateDnsZoneConfigs": [config]}})
    await refused(here, zone, "CannotDeleteResource", "zone group", "may also be deleted with its private endpoint")
    await gone(here, endpoint, zone)


async def test_a_vault_names_its_hosts_and_its_endpoints_together(here: Site) -> None:
    endpoint = await here.endpoint("pe1")
    await register(here, "web01")
    code = "ServiceResourceNotEmptyWithBackendMessage"
    await refused(here, here.vault_id(), code, "web01", "cannot unregister containers yet", endpoint)


async def test_a_network_lets_go_of_its_zone_links(here: Site) -> None:
    zone = f"{here.network}/privateDnsZones/{ZONE}"
    await here.make(zone, {"location": "global"})
    target = {"registrationEnabled": False, "virtualNetwork": {"id": here.spoke}}
    await here.make(f"{zone}/virtualNetworkLinks/l", {"location": "global", "properties": target})
    await gone(here, here.spoke)
    assert (await here.get(f"{zone}/virtualNetworkLinks")).json["value"] == []
    await gone(here, zone)


async def test_the_endpoint_may_stand_in_another_subscription(here: Site) -> None:
    """Endpoint and network of one team, vault of another; only the vault's owner can approve."""
    other = "/subscriptions/aaaaaaaa-0000-0000-0000-000000000001"

    async def subscription() -> None:
        values = {"id": other.rpartition("/")[2], "display_name": "networks"}
        await here.database.write(lambda connection: connection.execute(insert(schema.subscriptions).values(**values)))

    await subscription()
    _, token = await here.plane.principal("Contributor", other)
    group = f"{other}/resourceGroups/net"
    assert (await here.send("PUT", group, {"location": "westeurope"}, token=token)).status == 201
    network = f"{group}/providers/Microsoft.Network/virtualNetworks/theirs"
    subnets = [{"name": "work", "properties": {"addressPrefix": "10.7.1.0/24"}}]
    properties = {"addressSpace": {"addressPrefixes": ["10.7.0.0/16"]}, "subnets": subnets}
    answer = await here.send("PUT", network, {"location": "westeurope", "properties": properties}, token=token)
    assert answer.status == 201, answer.text
    link = {"name": "c", "properties": {"privateLinkServiceId": here.vault_id(), "groupIds": ["AzureBackup"]}}
    wanted = {"subnet": {"id": f"{network}/subnets/work"}, "privateLinkServiceConnections": [link]}
    endpoint = f"{group}/providers/Microsoft.Network/privateEndpoints/theirs"
    answer = await here.send("PUT", endpoint, {"location": "westeurope", "properties": wanted}, token=token)
    assert answer.status == 201, answer.text
    connection = await here.connection("theirs")
    assert connection["properties"]["privateLinkServiceConnectionState"]["status"] == "Pending"
    assert (await here.decide(connection, "Approved", token=token)).status in (401, 403, 404)
    assert (await here.decide(connection, "Approved")).status == 200
    assert len(here.world.private_doors(network)) == 8
    zone = f"{here.network}/privateDnsZones/{ZONE}"  # a third party's: the vault owner's subscription
    await here.make(zone, {"location": "global"})
    config = {"name": "z", "properties": {"privateDnsZoneId": zone}}
    body = {"properties": {"privateDnsZoneConfigs": [config]}}
    joined = await here.send("PUT", f"{endpoint}/privateDnsZoneGroups/default", body, token=token)
    assert joined.status == 403, "joining a zone is the zone owner's to allow"

    code = "ServiceResourceNotEmptyWithBackendMessage"
    await refused(here, here.vault_id(), code, endpoint, "remove the connections")
    assert (await here.send("DELETE", connection["id"])).status == 200
    await gone(here, here.vault_id())
