"""Private endpoints, their interfaces and zone groups through the API."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.site import Site, site
from undercroft.names import NameSuffixes
from undercroft.vault import accounts, vaults

ZONE = "privatelink.we.backup.windowsazure.com"


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.vault()
        yield made


def wanted(here: Site, **more: Any) -> dict[str, Any]:
    link = {"privateLinkServiceId": here.vault_id(), "groupIds": more.pop("groups", ["AzureBackup"])}
    properties = {
        "ipVersionType": "IPv4",
        "privateLinkServiceConnections": [{"name": "c", "properties": link}],
        "subnet": {"id": f"{here.spoke}/subnets/{more.pop('subnet', 'work')}"},
    }
    return {"location": more.pop("location", "westeurope"), "properties": properties | more}


def machine(here: Site, subnet: str) -> dict[str, Any]:
    address = {"name": "ipconfig1", "properties": {"subnet": {"id": f"{here.spoke}/subnets/{subnet}"}}}
    interface = {"name": "vm-nic", "properties": {"primary": True, "ipConfigurations": [address]}}
    profile = {"networkApiVersion": "2020-11-01", "networkInterfaceConfigurations": [interface]}
    return {"location": "westeurope", "properties": {"networkProfile": profile}}


async def zone(here: Site, name: str = ZONE, link: bool = True) -> str:
    id = f"{here.network}/privateDnsZones/{name}"
    await here.make(id, {"location": "global"})
    if link:
        target = {"registrationEnabled": False, "virtualNetwork": {"id": here.spoke}}
        await here.make(f"{id}/virtualNetworkLinks/l", {"location": "global", "properties": target})
    return id


def configs(*zones: str) -> dict[str, Any]:
    return {
        "name": "default",
        "properties": {
            "privateDnsZoneConfigs": [
                {"name": f"z{number}", "properties": {"privateDnsZoneId": one}} for number, one in enumerate(zones)
            ]
        },
    }


async def test_the_owners_endpoint_is_approved_and_shows_its_addresses(here: Site) -> None:
    answer = await here.send("PUT", f"{here.network}/privateEndpoints/pe1", wanted(here))
    assert answer.status == 201, answer.text
    shown = answer.json["properties"]
    state = shown["privateLinkServiceConnections"][0]["properties"]["privateLinkServiceConnectionState"]
    assert state == {"status": "Approved", "description": "None", "actionsRequired": "None"}
    assert shown["manualPrivateLinkServiceConnections"] == [] and shown["ipConfigurations"] == []
    assert [one["ipAddresses"] for one in shown["customDnsConfigs"]] == [[f"10.1.1.{last}"] for last in range(4, 12)]
    assert shown["customDnsConfigs"][0]["fqdn"].endswith(f"-ab-pod01-fc1.{ZONE}")
    assert len(here.world.private_doors(here.spoke)) == 8
    connection = await here.connection("pe1")
    assert connection["name"].split(".")[0] == "pe1" and ".backup." in connection["name"]
    interface = (await here.get(shown["networkInterfaces"][0]["id"])).json
    members = [
        one["properties"]["privateLinkConnectionProperties"] for one in interface["properties"]["ipConfigurations"]
    ]
    assert members[0]["requiredMemberName"] == "backup-fc1" and members[0]["groupId"] == "AzureBackup"
    assert interface["name"].startswith("pe1.nic.")


async def test_putting_it_again_changes_tags_only(here: Site) -> None:
    id = f"{here.network}/privateEndpoints/pe1"
    first = await here.make(id, wanted(here))
    again = await here.send("PUT", id, first | {"tags": {"a": "b"}})
    assert again.status == 200 and again.json["tags"] == {"a": "b"}
    assert again.json["properties"]["customDnsConfigs"] == first["properties"]["customDnsConfigs"]
    await here.vault("other")
    other = wanted(here)
    other["properties"]["privateLinkServiceConnections"][0]["properties"]["privateLinkServiceId"] = here.vault_id(
        "other"
    )
    assert (await here.send("PUT", id, other)).code == "PrivateEndpointCannotBeUpdated"


async def test_a_manual_request_waits_even_for_the_owner(here: Site) -> None:
    endpoint = await here.endpoint("pe2", manual=True)
    shown = (await here.get(endpoint)).json["properties"]
    (link,) = shown["manualPrivateLinkServiceConnections"]
    assert link["properties"]["privateLinkServiceConnectionState"]["status"] == "Pending"
    assert shown["customDnsConfigs"] == [] and here.world.private_doors(here.spoke) == []


async def test_who_may_not_approve_gets_a_pending_endpoint(here: Site) -> None:
    _, token = await here.plane.principal("Network Contributor", here.group)
    answer = await here.send("PUT", f"{here.network}/privateEndpoints/pe3", wanted(here), token=token)
    assert answer.status == 201, answer.text
    (link,) = answer.json["properties"]["privateLinkServiceConnections"]
    assert link["properties"]["privateLinkServiceConnectionState"]["status"] == "Pending"
    await here.decide(await here.connection("pe3"), "Approved")
    assert len((await here.get(f"{here.network}/privateEndpoints/pe3")).json["properties"]["customDnsConfigs"]) == 8


async def test_joining_the_subnet_needs_the_right(here: Site) -> None:
    _, token = await here.plane.principal("Reader", here.group)
    refused = await here.send("PUT", f"{here.network}/privateEndpoints/pe4", wanted(here), token=token)
    assert refused.status == 403


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"groups": ["file"]}, 400, "InvalidGroupId"),
        ({"groups": ["blob"]}, 501, "UserErrorClassicPrivateEndpointNotSupported"),
        ({"groups": ["AzureSiteRecovery"]}, 501, "NotImplemented"),
        ({"groups": ["azurebackup_SECONDARY"]}, 400, "InvalidPrivateEndpointRegion"),
        ({"location": "northeurope"}, 400, "InvalidPrivateEndpointRegion"),
        ({"subnet": "nowhere"}, 404, "InvalidResourceReference"),
        ({"ipVersionType": "DualStack"}, 501, "NotImplemented"),
        ({"applicationSecurityGroups": [{"id": "/x"}]}, 501, "NotImplemented"),
        (
            {"manualPrivateLinkServiceConnections": [{"name": "d", "properties": {"privateLinkServiceId": "/x"}}]},
            400,
            "Invalid",
        ),
        (
            {
                "ipConfigurations": [
                    {
                        "name": "ip1",
                        "properties": {
                            "groupId": "AzureBackup",
                            "memberName": "backup-fab1",
                            "privateIPAddress": "10.1.1.50",
                        },
                    }
                ]
            },
            400,
            "PrivateEndpointStaticIpNotSupported",
        ),
    ],
)
async def test_bad_endpoints_are_refused_by_name(here: Site, more: dict[str, Any], status: int, code: str) -> None:
    answer = await here.send("PUT", f"{here.network}/privateEndpoints/bad", wanted(here, **more))
    assert answer.status == status and answer.code.startswith(code), answer.text
    assert (await here.get(f"{here.network}/privateEndpoints/bad")).status == 404


async def test_a_missing_vault_is_named(here: Site) -> None:
    sent = wanted(here)
    sent["properties"]["privateLinkServiceConnections"][0]["properties"]["privateLinkServiceId"] = here.vault_id("nope")
    answer = await here.send("PUT", f"{here.network}/privateEndpoints/pe1", sent)
    assert answer.status == 404 and "vaults/nope" in answer.message


async def test_a_full_subnet_is_refused_at_creation_with_both_counts(here: Site) -> None:
    small = {"properties": {"addressPrefix": "10.1.9.0/29"}}
    await here.make(f"{here.spoke}/subnets/small", small)
    answer = await here.send("PUT", f"{here.network}/privateEndpoints/pe1", wanted(here, subnet="small"))
    assert answer.status == 409 and answer.code == "SubnetIsFull"
    assert "8 addresses are needed and 3 are free" in answer.message
    assert (await here.get(f"{here.network}/privateEndpoints/pe1")).status == 404
    assert (await here.get(f"{here.vault_id()}/privateEndpointConnections")).json["value"] == []


async def test_a_used_vault_refuses_its_first_endpoint(here: Site) -> None:
    now = here.plane.clock.now()
    key = here.vault_id().lower()
    await here.database.write(lambda connection: vaults.taint(connection, key, "web01 was registered", now))
    answer = await here.send("PUT", f"{here.network}/privateEndpoints/pe1", wanted(here))
    assert answer.status == 409 and answer.code == "UserErrorPrivateEndpointNotAllowedOnUsedVault"


async def test_two_endpoints_of_one_name_are_refused_by_the_vault(here: Site) -> None:
    await here.endpoint("pe1")
    await here.plane.group("rg2")
    elsewhere = f"{here.group}2/providers/Microsoft.Network/privateEndpoints/PE1"
    answer = await here.send("PUT", elsewhere, wanted(here))
    assert answer.status == 409 and answer.code == "UserErrorPrivateEndpointNameInUse"
    assert f"({here.network}/privateEndpoints/pe1)" in answer.message


async def test_the_endpoint_that_has_a_name_is_shown_to_nobody_who_may_not_read_it(here: Site) -> None:
    await here.endpoint("pe1")
    await here.plane.group("rg2")
    other, token = await here.plane.principal("Network Contributor", f"{here.group}2")
    await here.plane.grant(other, "Network Contributor", here.spoke)
    elsewhere = f"{here.group}2/providers/Microsoft.Network/privateEndpoints/PE1"
    answer = await here.send("PUT", elsewhere, wanted(here), token=token)
    assert answer.status == 409 and answer.code == "UserErrorPrivateEndpointNameInUse"
    assert "(a resource that you may not read)" in answer.message and "privateEndpoints" not in answer.message


async def test_a_degraded_endpoint_says_how_many_addresses_are_missing(here: Site) -> None:
    await here.make(f"{here.spoke}/subnets/small", {"properties": {"addressPrefix": "10.1.9.0/28"}})
    id = f"{here.network}/privateEndpoints/pe1"
    await here.make(id, wanted(here, subnet="small"))

    def grow(connection: Any) -> None:
        for account in ("aaaa0000ecs01", "aaaa0000prot01", "aaaa0000prot02"):
            accounts.restore(connection, here.vault_id().lower(), account, NameSuffixes(), here.plane.clock.now())

    await here.database.write(grow)
    await here.world.settle([here.spoke.lower()])
    shown = (await here.get(id)).json["properties"]
    assert shown["health"] == {"state": "Degraded", "missingAddresses": 1, "freeAddresses": 0, "neededSoon": 1}
    (link,) = shown["privateLinkServiceConnections"]
    assert "1 more free addresses" in link["properties"]["privateLinkServiceConnectionState"]["actionsRequired"]
    assert len(shown["customDnsConfigs"]) == 11 and shown["provisioningState"] == "Succeeded"


async def test_an_endpoint_says_beforehand_that_its_subnet_will_be_too_small(here: Site) -> None:
    await here.make(f"{here.spoke}/subnets/small", {"properties": {"addressPrefix": "10.1.9.0/28"}})
    made = await here.make(f"{here.network}/privateEndpoints/pe1", wanted(here, subnet="small"))
    assert made["properties"]["health"]["state"] == "Healthy"  # 11 addresses: 8 now, 3 with the first accounts
    await here.vault("other")
    sent = wanted(here)
    sent["properties"]["privateLinkServiceConnections"][0]["properties"]["privateLinkServiceId"] = here.vault_id(
        "other"
    )
    await here.make(f"{here.spoke}/subnets/tiny", {"properties": {"addressPrefix": "10.1.9.16/28"}})
    sent["properties"]["subnet"]["id"] = f"{here.spoke}/subnets/tiny"
    await here.make(here.machine_id("vm"), machine(here, "tiny"))
    made = await here.make(f"{here.network}/privateEndpoints/pe2", sent)
    expected = {"state": "AtRisk", "missingAddresses": 0, "freeAddresses": 2, "neededSoon": 3}
    assert made["properties"]["health"] == expected


async def test_removing_the_connection_leaves_the_endpoint_disconnected(here: Site) -> None:
    endpoint = await here.endpoint("pe1")
    connection = await here.connection("pe1")
    assert (await here.send("DELETE", connection["id"])).status == 200
    shown = (await here.get(endpoint)).json["properties"]
    (link,) = shown["privateLinkServiceConnections"]
    assert link["properties"]["privateLinkServiceConnectionState"]["status"] == "Disconnected"
    assert shown["customDnsConfigs"] == [] and here.world.private_doors(here.spoke) == []
    assert (await here.send("DELETE", endpoint)).status == 200


async def test_a_zone_group_writes_records_and_takes_them_away(here: Site) -> None:
    endpoint, backup, blob = (
        await here.endpoint("pe1"),
        await zone(here),
        await zone(here, "privatelink.blob.core.windows.net"),
    )
    group = f"{endpoint}/privateDnsZoneGroups/default"
    answer = await here.send("PUT", group, configs(backup))
    assert answer.status == 201, answer.text
    (config,) = answer.json["properties"]["privateDnsZoneConfigs"]
    assert len(config["properties"]["recordSets"]) == 8
    records = (await here.get(f"{backup}/A")).json["value"]
    assert len(records) == 8 and records[0]["properties"]["ttl"] == 10
    assert records[0]["properties"]["metadata"]["creator"].startswith(
        "created by private endpoint pe1 with resource guid "
    )
    assert records[0]["name"].endswith("-ab-pod01-ecs1")
    widened = answer.json
    widened["properties"]["privateDnsZoneConfigs"].append({"name": "blob", "properties": {"privateDnsZoneId": blob}})
    again = await here.send("PUT", group, widened)
    assert (
        again.status == 200 and again.json["properties"]["privateDnsZoneConfigs"][1]["properties"]["recordSets"] == []
    )
    assert (await here.send("PUT", group, configs(blob))).status == 200
    assert (await here.get(f"{backup}/A")).json["value"] == []
    assert (await here.send("PUT", group, configs(backup))).status == 200
    assert (await here.send("DELETE", group)).status == 200
    assert (await here.get(f"{backup}/A")).json["value"] == []
    assert (await here.send("DELETE", group)).status == 204


async def test_records_appear_with_the_approval_and_go_with_it(here: Site) -> None:
    endpoint, backup = await here.endpoint("pe1", manual=True), await zone(here)
    await here.make(f"{endpoint}/privateDnsZoneGroups/default", configs(backup))
    assert (await here.get(f"{backup}/A")).json["value"] == []
    connection = await here.connection("pe1")
    await here.decide(connection, "Approved")
    assert len((await here.get(f"{backup}/A")).json["value"]) == 8
    await here.decide(connection, "Rejected")
    assert (await here.get(f"{backup}/A")).json["value"] == []
    assert (await here.decide(connection, "Approved")).status == 409


async def test_a_zone_group_naming_a_missing_zone_fails(here: Site) -> None:
    endpoint = await here.endpoint("pe1")
    answer = await here.send(
        "PUT", f"{endpoint}/privateDnsZoneGroups/default", configs(f"{here.network}/privateDnsZones/{ZONE}")
    )
    assert answer.status == 404 and answer.code == "PrivateDnsZoneNotFound"
    twice = await zone(here)
    answer = await here.send("PUT", f"{endpoint}/privateDnsZoneGroups/default", configs(twice, twice))
    assert answer.code == "DuplicateResourceName"


async def test_an_endpoint_has_one_zone_group(here: Site) -> None:
    endpoint, backup = await here.endpoint("pe1"), await zone(here)
    await here.make(f"{endpoint}/privateDnsZoneGroups/default", configs(backup))
    answer = await here.send("PUT", f"{endpoint}/privateDnsZoneGroups/second", configs(backup))
    assert answer.status == 409 and answer.code == "PrivateDnsZoneGroupLimitExceeded"
    listed = await here.get(f"{endpoint}/privateDnsZoneGroups")
    assert [one["name"] for one in listed.json["value"]] == ["default"]


async def test_deleting_an_endpoint_takes_everything_of_it(here: Site) -> None:
    endpoint, backup = await here.endpoint("pe1"), await zone(here)
    await here.make(f"{endpoint}/privateDnsZoneGroups/default", configs(backup))
    interface = (await here.get(endpoint)).json["properties"]["networkInterfaces"][0]["id"]
    assert (await here.send("DELETE", interface)).status == 409
    assert (await here.send("DELETE", endpoint)).status == 200
    assert (await here.send("DELETE", endpoint)).status == 204
    assert (await here.get(interface)).status == 404
    assert (await here.get(f"{backup}/A")).json["value"] == []
    assert (await here.get(f"{here.vault_id()}/privateEndpointConnections")).json["value"] == []
    assert here.world.private_doors(here.spoke) == []


async def test_a_group_is_deleted_with_its_endpoints_zones_and_networks(here: Site) -> None:
    endpoint, backup = await here.endpoint("pe1"), await zone(here)
    await here.make(f"{endpoint}/privateDnsZoneGroups/default", configs(backup))
    answer = await here.send("DELETE", here.group)
    assert answer.status == 200, answer.text
    assert (await here.get(here.group)).status == 404


async def test_interfaces_are_not_made_alone(here: Site) -> None:
    answer = await here.send("PUT", f"{here.network}/networkInterfaces/n", {"location": "westeurope"})
    assert answer.status == 501
