"""Vaults: what may be set, what is refused by name, and when one can be deleted."""

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
from undercroft.vault import vaults

# What azure-cli 2.91 sends for `az backup vault create`.
OF_AZ: dict[str, Any] = {
    "securitySettings": {
        "softDeleteSettings": {
            "enhancedSecurityState": "AlwaysOn",
            "softDeleteState": "AlwaysOn",
            "softDeleteRetentionPeriodInDays": 14,
        }
    },
    "publicNetworkAccess": "Enabled",
    "monitoringSettings": {
        "azureMonitorAlertSettings": {
            "alertsForAllJobFailures": "Enabled",
            "alertsForAllReplicationIssues": "Enabled",
            "alertsForAllFailoverIssues": "Enabled",
        },
        "classicAlertSettings": {
            "alertsForCriticalOperations": "Enabled",
            "emailNotificationsForSiteRecovery": "Enabled",
        },
    },
    "costManagementSettings": {"granularityLevel": "VaultLevel"},
}


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        yield made


async def manifest_tasks(here: Site) -> int:
    query = select(schema.tasks.c.key).where(schema.tasks.c.kind == "manifest")
    return len(await here.database.read(lambda connection: connection.execute(query).all()))


async def test_the_vault_that_az_creates_is_shown_as_azure_shows_it(here: Site) -> None:
    assert (await here.get(here.vault_id())).code == "ResourceNotFound"
    body = {"location": "West Europe", "sku": {"name": "Standard"}, "properties": OF_AZ}
    answer = await here.send("PUT", here.vault_id(), body)
    assert answer.status == 201
    shown = answer.json
    assert (shown["type"], shown["location"], shown["name"]) == (
        "Microsoft.RecoveryServices/vaults",
        "westeurope",
        "safe",
    )
    assert shown["etag"].startswith('W/"')
    assert shown["sku"]["name"] == "Standard"
    properties = shown["properties"]
    assert properties["provisioningState"] == "Succeeded"
    assert properties["privateEndpointStateForBackup"] == "None"
    assert properties["privateEndpointConnections"] == []
    assert properties["redundancySettings"]["crossRegionRestore"] == "Disabled"
    assert properties["securitySettings"]["softDeleteSettings"]["softDeleteState"] == "AlwaysON"
    for name in ("monitoringSettings", "costManagementSettings", "publicNetworkAccess"):
        assert properties[name] == OF_AZ[name]
    assert (await here.get(here.vault_id())).json == shown


async def test_a_new_vault_has_its_id_and_eight_members_and_is_written_to_the_store(here: Site) -> None:
    await here.vault()
    found = await here.database.read(lambda connection: vaults.require(connection, here.vault_id()))
    assert found.vault_id > 10**14
    query = select(schema.members.c.fqdn)
    names = await here.database.read(lambda connection: connection.execute(query).scalars().all())
    assert len(names) == 8
    assert f"{found.vault_id}-ab-pod01-id1.privatelink.we.backup.windowsazure.com" in names
    assert await manifest_tasks(here) == 1


async def test_a_vault_can_be_sent_back_as_it_was_shown(here: Site) -> None:
    await here.vault(**OF_AZ)
    await here.endpoint()
    shown = (await here.get(here.vault_id())).json
    answer = await here.send("PUT", here.vault_id(), shown)
    assert answer.status == 200, answer.text
    assert answer.json["properties"] == shown["properties"]


async def test_public_access_is_denied_by_patch_and_stays_so_when_it_is_left_out(here: Site) -> None:
    await here.vault()
    answer = await here.send("PATCH", here.vault_id(), {"properties": {"publicNetworkAccess": "Disabled"}})
    assert answer.status == 200
    assert answer.json["properties"]["publicNetworkAccess"] == "Disabled"
    record = await here.database.read(lambda connection: vaults.require(connection, here.vault_id()))
    assert not record.public_access
    tagged = await here.send("PATCH", here.vault_id(), {"tags": {"k": "v"}})
    assert tagged.json["properties"]["publicNetworkAccess"] == "Disabled"
    assert tagged.json["tags"] == {"k": "v"}
    put = await here.send("PUT", here.vault_id(), {"location": "westeurope", "properties": {}})
    assert put.json["properties"]["publicNetworkAccess"] == "Disabled"
    assert put.json["tags"] == {"k": "v"}


@pytest.mark.parametrize("access", ["", "Deny", "yes"])
async def test_public_access_must_be_enabled_or_disabled(here: Site, access: str) -> None:
    body = {"location": "westeurope", "properties": {"publicNetworkAccess": access}}
    answer = await here.send("PUT", here.vault_id(), body)
    assert (answer.status, answer.code) == (400, "InvalidRestApiParameter")
    assert "NetworkSettings parameter is invalid" in answer.message
    assert (await here.get(here.vault_id())).status == 404


PROMISES: list[tuple[dict[str, Any], str]] = [
    ({"securitySettings": {"immutabilitySettings": {"state": "Unlocked"}}}, "immutabilitySettings"),
    ({"securitySettings": {"immutabilitySettings": {"state": "Locked"}}}, "immutabilitySettings"),
    ({"securitySettings": {"softDeleteSettings": {"softDeleteState": "Disabled"}}}, "softDeleteState"),
    ({"securitySettings": {"multiUserAuthorization": "Enabled"}}, "multiUserAuthorization"),
    ({"redundancySettings": {"crossRegionRestore": "Enabled"}}, "crossRegionRestore"),
    ({"redundancySettings": {"standardTierStorageRedundancy": "GeoRedundant"}}, "standardTierStorageRedundancy"),
    ({"encryption": {"infrastructureEncryption": "Enabled"}}, "encryption"),
]


@pytest.mark.parametrize(("properties", "named"), PROMISES)
async def test_what_cannot_be_kept_is_not_promised(here: Site, properties: dict[str, Any], named: str) -> None:
    body = {"location": "westeurope", "properties": properties}
    answer = await here.send("PUT", here.vault_id(), body)
    assert (answer.status, answer.code) == (501, "NotImplemented"), answer.text
    assert named in answer.message
    await here.vault()
    patched = await here.send("PATCH", here.vault_id(), {"properties": properties})
    assert patched.status == 501
    assert named in patched.message


@pytest.mark.parametrize("kind", ["systemassigned", "SystemAssigned", "systemassigned,userassigned"])
async def test_an_identity_is_refused_because_nothing_uses_one(here: Site, kind: str) -> None:
    await here.vault()
    answer = await here.send("PATCH", here.vault_id(), {"identity": {"type": kind}})
    assert answer.status == 501
    assert "identity" in answer.message
    assert (await here.send("PATCH", here.vault_id(), {"identity": {"type": "None"}})).status == 200


async def test_bad_input_is_named(here: Site) -> None:
    for body, said in (
        ({"location": "westeurope", "properties": {"wings": 1}}, "wings"),
        ({"location": "westeurope", "properties": {"publicNetworkAccess": 1}}, "publicNetworkAccess"),
        ({"location": "westeurope", "sku": {"name": "Gold"}}, "Gold"),
        ({"location": "atlantis"}, "atlantis"),
        ({"location": "we"}, "westeurope"),
        ({"properties": {}}, "location"),
        (
            {
                "location": "westeurope",
                "properties": {"securitySettings": {"softDeleteSettings": {"softDeleteRetentionPeriodInDays": 400}}},
            },
            "400",
        ),
    ):
        answer = await here.send("PUT", here.vault_id(), body)
        assert answer.status == 400, answer.text
        assert said in answer.message
    for name in ("1safe", "a", "safe_one", "a" * 51):
        answer = await here.send("PUT", here.vault_id(name), {"location": "westeurope"})
        assert (answer.status, answer.code) == (400, "InvalidResourceName")
    assert (await here.send("PATCH", here.vault_id(), {"tags": {}})).code == "ResourceNotFound"


async def test_conditions_on_the_etag(here: Site) -> None:
    etag = (await here.vault())["etag"]
    changed = await here.send("PATCH", here.vault_id(), {"tags": {}}, headers={"If-Match": etag})
    assert changed.status == 200
    for method, body in (("PATCH", {"tags": {}}), ("DELETE", None)):
        stale = await here.send(method, here.vault_id(), body, headers={"If-Match": etag})
        assert (stale.status, stale.code) == (412, "PreconditionFailed")


async def test_vaults_are_listed_in_the_group_and_the_subscription(here: Site) -> None:
    for name in ("safe", "other"):
        await here.vault(name)
    for scope in (here.group, here.plane.subscription):
        listed = await here.get(f"{scope}/providers/Microsoft.RecoveryServices/vaults")
        assert [one["name"] for one in listed.json["value"]] == ["other", "safe"]


async def test_an_empty_vault_is_deleted_with_everything_that_belongs_to_it(here: Site) -> None:
    await here.vault()
    assert (await here.send("DELETE", here.vault_id())).status == 204
    assert (await here.get(here.vault_id())).code == "ResourceNotFound"
    assert (await here.send("DELETE", here.vault_id())).status == 204
    rows = await here.database.read(lambda connection: connection.execute(select(schema.members)).all())
    assert rows == []
    await here.vault()


async def test_a_vault_with_an_endpoint_is_not_deleted(here: Site) -> None:
    await here.vault()
    endpoint = await here.endpoint()
    answer = await here.send("DELETE", here.vault_id())
    assert (answer.status, answer.code) == (409, "ServiceResourceNotEmptyWithBackendMessage")
    assert endpoint in answer.message
    assert (await here.send("DELETE", endpoint)).status == 200
    assert (await here.send("DELETE", here.vault_id())).status == 204


async def test_a_vault_with_a_registered_host_is_not_deleted(here: Site) -> None:
    await here.vault()
    await register(here, "web01")
    answer = await here.send("DELETE", here.vault_id())
    assert (answer.status, answer.code) == (409, "ServiceResourceNotEmptyWithBackendMessage")
    assert "web01" in answer.message


async def test_who_may_only_read_does_not_write(here: Site) -> None:
    await here.vault()
    _, reader = await here.plane.principal("Reader")
    assert (await here.get(here.vault_id(), token=reader)).status == 200
    for method, body in (("PUT", {"location": "westeurope"}), ("PATCH", {"tags": {}}), ("DELETE", None)):
        assert (await here.send(method, here.vault_id(), body, token=reader)).code == "AuthorizationFailed"


async def test_the_rest_of_the_namespace_is_refused_by_name(here: Site) -> None:
    await here.vault()
    for method, path in (
        ("GET", "backupPolicies"),
        ("PUT", "backupPolicies/daily"),
        ("GET", "backupProtectableItems"),
        ("GET", "replicationFabrics"),
        ("POST", "backupFabrics/Azure/refreshContainers"),
    ):
        answer = await here.send(method, f"{here.vault_id()}/{path}", {})
        assert answer.status == 501, answer.text
        assert path.split("/")[0] in answer.message


async def test_a_group_is_deleted_with_its_vaults_and_endpoints(here: Site) -> None:
    await here.vault()
    await here.endpoint()
    assert (await here.send("DELETE", here.group)).status in (200, 202)
    assert (await here.get(here.vault_id())).status == 404
