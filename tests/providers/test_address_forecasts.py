"""Whether an endpoint has room, asked before it is made: the answer is compared with what then happens."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.content import back_up, register
from tests.providers.site import Site, site


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.vault()
        yield made


async def subnet(here: Site, name: str, prefix: str) -> str:
    id = f"{here.spoke}/subnets/{name}"
    await here.make(id, {"properties": {"addressPrefix": prefix}})
    return id


async def asked(here: Site, subnet: str, **more: Any) -> Any:
    answer = await here.send("POST", f"{subnet}/privateEndpointForecast", more)
    assert answer.status == 200, answer.text
    return answer.json


async def made(here: Site, name: str, subnet: str, vault: str = "safe") -> int:
    link = {"name": "c", "properties": {"privateLinkServiceId": here.vault_id(vault), "groupIds": ["AzureBackup"]}}
    properties = {"subnet": {"id": subnet}, "privateLinkServiceConnections": [link]}
    body = {"location": "westeurope", "properties": properties}
    return (await here.send("PUT", f"{here.network}/privateEndpoints/{name}", body)).status


async def test_a_new_vault_needs_eight_and_then_three(here: Site) -> None:
    found = await asked(here, await subnet(here, "small", "10.1.9.0/28"))
    assert [(step["when"], step["addresses"]) for step in found["steps"]] == [
        ("creation", 8),
        ("firstRegistration", 2),
        ("firstBackup", 1),
        ("furtherHosts", 0),
    ]
    assert (found["verdict"], found["addressesNeeded"], found["freeAddresses"]) == ("Fits", 11, 11)
    assert (found["smallestPrefixLength"], found["recommendedPrefixLength"]) == (28, 25)


async def test_many_hosts_may_need_an_account_each(here: Site) -> None:
    small = await subnet(here, "small", "10.1.9.0/28")
    found = await asked(here, small, privateLinkServiceId=here.vault_id(), hosts=20)
    assert (found["verdict"], found["addressesNeeded"], found["smallestPrefixLength"]) == ("AtRisk", 30, 26)
    assert "degraded when the vault grows" in found["message"] and "/25 is recommended" in found["message"]
    assert await made(here, "pe1", small) == 201


async def test_what_is_refused_was_forecast_and_the_reason_is_the_same(here: Site) -> None:
    tiny = await subnet(here, "tiny", "10.1.9.0/29")
    found = await asked(here, tiny, privateLinkServiceId=here.vault_id())
    assert (found["verdict"], found["freeAddresses"]) == ("Refused", 3)
    assert "cannot be created" in found["message"]
    assert await made(here, "pe1", tiny) == 409


async def test_others_in_the_subnet_are_thought_of(here: Site) -> None:
    """Two endpoints fit into a /27 today; when both vaults are used, nineteen and three more are still not too many; a third is."""
    shared = await subnet(here, "shared", "10.1.9.0/27")
    for number, claimed, verdict in ((1, 0, "Fits"), (2, 3, "Fits"), (3, 6, "AtRisk")):
        name = f"vault{number}"
        await here.vault(name)
        found = await asked(here, shared, privateLinkServiceId=here.vault_id(name))
        assert (found["claimedByOthers"], found["verdict"]) == (claimed, verdict)
        assert await made(here, f"pe{number}", shared, name) == 201
    await here.decide(await here.connection("pe1", "vault1"), "Rejected")
    assert (await asked(here, shared))["claimedByOthers"] == 6


async def test_a_vault_in_use_needs_all_at_once(here: Site) -> None:
    work = f"{here.spoke}/subnets/work"
    await made(here, "pe1", work)
    await back_up(here, await register(here, "web01"), "/srv")
    found = await asked(here, work, privateLinkServiceId=here.vault_id(), hosts=3)
    assert [step["addresses"] for step in found["steps"]] == [11, 0, 0, 2]


async def test_a_secondary_endpoint_does_not_grow(here: Site) -> None:
    body = {"location": "mexicocentral", "sku": {"name": "Standard"}, "properties": {}}
    await here.make(here.vault_id("lonely"), body)
    work = f"{here.spoke}/subnets/work"
    found = await asked(here, work, groupIds=["AzureBackup_secondary"], privateLinkServiceId=here.vault_id("lonely"))
    assert (found["verdict"], found["blockedBy"]) == ("Refused", "UserErrorRegionHasNoPair")
    found = await asked(here, f"{here.spoke}/subnets/work", groupIds=["azurebackup_SECONDARY"], hosts=50)
    assert (found["addressesNeeded"], found["verdict"]) == (8, "Fits")


async def test_what_else_would_refuse_the_endpoint_is_said_as_well(here: Site) -> None:
    """A used vault, or the wrong region: however large the subnet is."""
    work = f"{here.spoke}/subnets/work"
    found = await asked(here, work, privateLinkServiceId=here.vault_id(), groupIds=["AzureBackup_secondary"])
    assert (found["verdict"], found["blockedBy"]) == ("Refused", "InvalidPrivateEndpointRegion")
    assert "northeurope" in found["message"]
    await register(here, "web01")
    found = await asked(here, work, privateLinkServiceId=here.vault_id())
    assert (found["verdict"], found["blockedBy"]) == ("Refused", "UserErrorPrivateEndpointNotAllowedOnUsedVault")
    assert await made(here, "pe1", work) == 409


async def test_bad_questions_are_named(here: Site) -> None:
    work = f"{here.spoke}/subnets/work"
    for body, status, said in (
        ({"hosts": 0}, 400, "hosts"),
        ({"groupIds": ["blob"]}, 501, "classic"),
        ({"privateLinkServiceId": here.vault_id("nope")}, 404, "nope"),
        ({"nodes": 3}, 400, "nodes"),
    ):
        answer = await here.send("POST", f"{work}/privateEndpointForecast", body)
        assert answer.status == status and said in answer.message, answer.text
    answer = await here.send("POST", f"{here.spoke}/subnets/nowhere/privateEndpointForecast", {})
    assert answer.status == 404
    _, token = await here.plane.principal("Network Contributor", f"{here.group}")
    body = {"privateLinkServiceId": here.vault_id()}
    refused = await here.send("POST", f"{work}/privateEndpointForecast", body, token=token)
    assert refused.status == 403, "what a vault holds is told to those who may read it"
    assert (await here.send("POST", f"{work}/privateEndpointForecast", {}, token=token)).status == 200
