"""Private endpoint connections, private link resources and capabilities: the vault's side of endpoints."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.providers.content import register
from tests.providers.site import Site, site
from undercroft.state import schema


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.vault()
        yield made


def status(connection: Any) -> str:
    return str(connection["properties"]["privateLinkServiceConnectionState"]["status"])


async def endpoint_status(here: Site, id: str) -> str:
    properties = (await here.get(id)).json["properties"]
    link = (properties["privateLinkServiceConnections"] or properties["manualPrivateLinkServiceConnections"])[0]
    return status(link)


async def test_the_owners_endpoint_is_shown_on_the_vault(here: Site) -> None:
    endpoint = await here.endpoint()
    connection = await here.connection()
    assert connection["name"].startswith("door.")
    assert ".backup." in connection["name"]
    assert connection["location"] == "westeurope"
    assert connection["properties"]["groupIds"] == ["AzureBackup"]
    assert connection["properties"]["privateEndpoint"]["id"] == endpoint
    assert connection["properties"]["provisioningState"] == "Succeeded"
    assert status(connection) == "Approved"
    assert (await here.get(connection["id"])).json == connection
    vault = (await here.get(here.vault_id())).json["properties"]
    assert vault["privateEndpointConnections"] == [connection]
    assert vault["privateEndpointStateForBackup"] == "Enabled"


async def test_approving_opens_the_doors_before_the_answer(here: Site) -> None:
    endpoint = await here.endpoint(manual=True)
    assert here.world.private_doors(here.spoke) == []
    connection = await here.connection()
    assert status(connection) == "Pending"
    assert connection["properties"]["provisioningState"] == "Succeeded"
    answer = await here.decide(connection, "Approved")
    assert answer.status == 200
    assert status(answer.json) == "Approved"
    assert answer.json["properties"]["provisioningState"] == "Succeeded"
    assert answer.json["properties"]["privateLinkServiceConnectionState"]["description"] == "because"
    assert len(here.world.private_doors(here.spoke)) == 8
    assert len((await here.get(endpoint)).json["properties"]["customDnsConfigs"]) == 8


@pytest.mark.parametrize("verdict", ["Rejected", "Disconnected"])
async def test_losing_the_approval_closes_the_doors_and_is_for_good(here: Site, verdict: str) -> None:
    endpoint = await here.endpoint()
    connection = await here.connection()
    answer = await here.decide(connection, verdict)
    assert answer.status == 200
    assert status(answer.json) == verdict
    assert here.world.private_doors(here.spoke) == []
    assert await endpoint_status(here, endpoint) == verdict
    assert (await here.get(endpoint)).json["properties"]["customDnsConfigs"] == []
    again = await here.decide(connection, "Approved")
    assert (again.status, again.code) == (409, "UserErrorPrivateEndpointConnectionStateTransitionNotAllowed")
    assert verdict in again.message
    vault = (await here.get(here.vault_id())).json["properties"]
    assert vault["privateEndpointStateForBackup"] == "None"


async def test_deciding_the_same_twice_changes_nothing(here: Site) -> None:
    await here.endpoint()
    connection = await here.connection()
    assert (await here.decide(connection, "approved")).status == 200
    assert status(await here.connection()) == "Approved"
    assert len(here.world.private_doors(here.spoke)) == 8


async def test_removing_a_connection_leaves_the_endpoint_disconnected(here: Site) -> None:
    endpoint = await here.endpoint()
    connection = await here.connection()
    assert (await here.send("DELETE", connection["id"])).status == 200
    assert (await here.send("DELETE", connection["id"])).status == 204
    assert (await here.get(connection["id"])).status == 404
    assert await endpoint_status(here, endpoint) == "Disconnected"
    assert here.world.private_doors(here.spoke) == []


async def test_removing_the_last_connection_makes_hosts_register_again(here: Site) -> None:
    await here.endpoint()
    container = await register(here, "web01")
    await here.send("DELETE", (await here.connection())["id"])
    query = select(schema.containers.c.registration).where(schema.containers.c.id == container)
    assert await here.database.read(lambda connection: connection.execute(query).scalar()) == "NotRegistered"


async def test_who_may_write_networks_may_not_approve(here: Site) -> None:
    await here.endpoint(manual=True)
    connection = await here.connection()
    _, networker = await here.plane.principal("Network Contributor")
    answer = await here.decide(connection, "Approved", token=networker)
    assert (answer.status, answer.code) == (403, "AuthorizationFailed")
    assert status(await here.connection()) == "Pending"


async def test_a_put_says_a_status_and_changes_nothing_else(here: Site) -> None:
    await here.endpoint()
    connection = await here.connection()
    for change, said in (
        ({"privateEndpoint": {"id": f"{here.network}/privateEndpoints/other"}}, "other"),
        ({"groupIds": ["AzureSiteRecovery"]}, "AzureSiteRecovery"),
        ({"wings": 1}, "wings"),
        ({"privateLinkServiceConnectionState": {"status": "Maybe"}}, "Maybe"),
        ({"privateLinkServiceConnectionState": {"description": "x"}}, "status"),
    ):
        body = {"properties": {**connection["properties"], **change}}
        answer = await here.send("PUT", connection["id"], body)
        assert answer.status == 400, answer.text
        assert said in answer.message
    assert await here.connection() == connection


async def test_a_connection_is_not_made_by_a_put(here: Site) -> None:
    body = {"properties": {"privateLinkServiceConnectionState": {"status": "Approved"}}}
    answer = await here.send("PUT", f"{here.vault_id()}/privateEndpointConnections/new", body)
    assert (answer.status, answer.code) == (404, "ResourceNotFound")
    missing = await here.get(f"{here.vault_id('nothing')}/privateEndpointConnections")
    assert (missing.status, missing.code) == (404, "ResourceNotFound")


async def test_while_the_world_is_away_an_approval_is_not_called_done(here: Site) -> None:
    await here.endpoint(manual=True)
    connection = await here.connection()
    here.world.away = True
    answer = await here.decide(connection, "Approved")
    assert answer.json["properties"]["provisioningState"] == "Updating"
    assert "Azure-AsyncOperation" in answer.headers
    assert (await here.connection())["properties"]["provisioningState"] == "Pending"
    here.world.away = False
    await here.world.settle([here.spoke.lower()])
    assert (await here.connection())["properties"]["provisioningState"] == "Succeeded"


async def test_what_an_endpoint_needs(here: Site) -> None:
    listed = (await here.get(f"{here.vault_id()}/privateLinkResources")).json["value"]
    by_group = {one["properties"]["groupId"]: one for one in listed}
    assert sorted(by_group) == ["AzureBackup", "AzureBackup_secondary"]
    backup = by_group["AzureBackup"]
    assert sorted(backup["properties"]["requiredMembers"]) == sorted(
        f"backup-{name}" for name in ("fc1", "fab1", "prot1", "rec2", "ecs1", "id1", "tel1", "wbcm1")
    )
    assert backup["properties"]["requiredZoneNames"] == [
        "privatelink.we.backup.windowsazure.com",
        "privatelink.queue.core.windows.net",
        "privatelink.blob.core.windows.net",
        "privatelink.blob.storage.azure.net",
    ]
    secondary = by_group["AzureBackup_secondary"]["properties"]["requiredZoneNames"]
    assert secondary[0] == "privatelink.ne.backup.windowsazure.com"
    assert (await here.get(backup["id"])).json == backup
    assert (await here.get(f"{here.vault_id()}/privateLinkResources/nothing")).status == 404


async def test_capabilities_say_the_zones_before_there_is_a_vault(here: Site) -> None:
    path = f"{here.plane.subscription}/providers/Microsoft.RecoveryServices/locations/westus/capabilities"

    def asked(*groups: str) -> Any:
        zones = [{"subResource": group} for group in groups]
        return {"type": "Microsoft.RecoveryServices/Vaults", "properties": {"dnsZones": zones}}

    answer = await here.send("POST", path, asked("AzureBackup"))
    assert answer.json == {
        "type": "Microsoft.RecoveryServices/Vaults",
        "properties": {
            "dnsZones": [
                {
                    "subResource": "AzureBackup",
                    "requiredZoneNames": [
                        "privatelink.wus.backup.windowsazure.com",
                        "privatelink.queue.core.windows.net",
                        "privatelink.blob.core.windows.net",
                        "privatelink.blob.storage.azure.net",
                    ],
                }
            ]
        },
    }
    recovery = await here.send("POST", path, asked("AzureSiteRecovery"))
    assert recovery.status == 501
    assert "AzureSiteRecovery" in recovery.message
    assert (await here.send("POST", path, asked("Files"))).status == 400
    assert (await here.send("POST", path, {"type": "Microsoft.Storage/accounts"})).status == 400
    assert (await here.send("POST", path.replace("westus", "atlantis"), asked("AzureBackup"))).status == 400
