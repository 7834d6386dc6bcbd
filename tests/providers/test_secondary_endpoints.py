"""AzureBackup_secondary: endpoints of a vault in the network of its paired region, through the API (article, 'Cross region
restore to a private endpoint enabled vault')."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.arm.control_plane import Answer
from tests.providers.content import register
from tests.providers.site import Site, site

ZONE = "privatelink.ne.backup.windowsazure.com"


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.vault()
        await network(made, "abroad", "northeurope")
        yield made


async def network(here: Site, name: str, location: str) -> None:
    subnets = [{"name": "work", "properties": {"addressPrefix": "10.9.1.0/24"}}]
    properties = {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}, "subnets": subnets}
    await here.make(f"{here.network}/virtualNetworks/{name}", {"location": location, "properties": properties})


async def secondary(here: Site, name: str = "far", location: str = "northeurope", **more: Any) -> Answer:
    link = {"privateLinkServiceId": here.vault_id(more.get("vault", "safe")), "groupIds": ["azurebackup_SECONDARY"]}
    kind = "manualPrivateLinkServiceConnections" if more.get("manual") else "privateLinkServiceConnections"
    subnet = {"id": f"{here.network}/virtualNetworks/{more.get('network', 'abroad')}/subnets/work"}
    properties = {"subnet": subnet, kind: [{"name": "c", "properties": link}]}
    body = {"location": location, "properties": properties}
    return await here.send("PUT", f"{here.network}/privateEndpoints/{name}", body)


async def test_it_has_addresses_and_names_of_the_paired_region(here: Site) -> None:
    answer = await secondary(here)
    assert answer.status == 201, answer.text
    shown = answer.json["properties"]
    (link,) = shown["privateLinkServiceConnections"]
    assert link["properties"]["groupIds"] == ["AzureBackup_secondary"]
    assert link["properties"]["privateLinkServiceConnectionState"]["status"] == "Approved"
    assert [one["ipAddresses"] for one in shown["customDnsConfigs"]] == [[f"10.9.1.{last}"] for last in range(4, 12)]
    assert all(one["fqdn"].endswith(f".{ZONE}") for one in shown["customDnsConfigs"])
    assert shown["health"] == {"state": "Healthy", "missingAddresses": 0, "freeAddresses": 243, "neededSoon": 0}
    doors = here.world.private_doors(f"{here.network}/virtualNetworks/abroad")
    assert len(doors) == 8 and all(door.secondary and door.service == "backup" for door in doors)
    interface = (await here.get(shown["networkInterfaces"][0]["id"])).json["properties"]["ipConfigurations"]
    first = interface[0]["properties"]["privateLinkConnectionProperties"]
    assert (first["groupId"], first["requiredMemberName"]) == ("AzureBackup_secondary", "backup-fc1")
    connection = await here.connection("far")
    assert connection["properties"]["groupIds"] == ["AzureBackup_secondary"]


async def test_it_stands_in_the_paired_region_and_nowhere_else(here: Site) -> None:
    await network(here, "swiss", "switzerlandnorth")
    for network_name, location in (("spoke", "westeurope"), ("swiss", "switzerlandnorth"), ("spoke", "northeurope")):
        answer = await secondary(here, location=location, network=network_name)
        assert (answer.status, answer.code) == (400, "InvalidPrivateEndpointRegion"), answer.text
    assert "northeurope" in answer.message
    body = {"location": "mexicocentral", "sku": {"name": "Standard"}, "properties": {}}
    await here.make(here.vault_id("lonely"), body)
    answer = await secondary(here, vault="lonely")
    assert (answer.status, answer.code) == (400, "UserErrorRegionHasNoPair"), answer.text
    assert "mexicocentral" in answer.message


async def test_approval_and_its_loss_are_as_everywhere(here: Site) -> None:
    await secondary(here, manual=True)
    abroad = f"{here.network}/virtualNetworks/abroad"
    assert here.world.private_doors(abroad) == []
    await here.decide(await here.connection("far"), "Approved")
    assert len(here.world.private_doors(abroad)) == 8
    await here.decide(await here.connection("far"), "Rejected")
    assert here.world.private_doors(abroad) == []


async def test_it_may_come_before_or_after_the_first_host_of_an_enabled_vault(here: Site) -> None:
    """Article: *before or after adding protected items*; and removing it concerns no host."""
    assert (await secondary(here)).status == 201
    await here.endpoint()
    container = await register(here, "web01")
    assert (await secondary(here, "far2")).status == 201
    for name in ("far", "far2"):
        assert (await here.send("DELETE", f"{here.network}/privateEndpoints/{name}")).status == 200
    listed = await here.get(f"{here.vault_id()}/backupProtectionContainers")
    assert container in listed.text or listed.status == 404
    assert "NotRegistered" not in listed.text


async def test_the_storage_of_the_vault_is_not_among_its_members(here: Site) -> None:
    """Data is not replicated yet, so there is none to reach; the vault's own endpoints go on growing."""
    await here.endpoint()
    await secondary(here)
    await register(here, "web01")
    await here.world.settle([here.spoke.lower(), f"{here.network}/virtualNetworks/abroad".lower()])
    grown = (await here.get(f"{here.network}/privateEndpoints/door")).json["properties"]["customDnsConfigs"]
    same = (await here.get(f"{here.network}/privateEndpoints/far")).json["properties"]["customDnsConfigs"]
    assert len(grown) == 10 and len(same) == 8


async def test_its_records_are_written_into_the_paired_regions_zone(here: Site) -> None:
    await secondary(here)
    zone = f"{here.network}/privateDnsZones/{ZONE}"
    await here.make(zone, {"location": "global"})
    config = {"name": "z", "properties": {"privateDnsZoneId": zone}}
    group = f"{here.network}/privateEndpoints/far/privateDnsZoneGroups/default"
    await here.make(group, {"properties": {"privateDnsZoneConfigs": [config]}})
    assert len((await here.get(f"{zone}/A")).json["value"]) == 8
