"""Virtual machines: network hosts made with their interface, and everything else about them refused by name."""

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


def body(here: Site, name: str = "web01", subnet: str = "work", location: str = "westeurope", **more: Any) -> Any:
    """As ``undercroft vm create`` sends it."""
    interface = {
        "name": f"{name}-nic",
        "properties": {
            "primary": True,
            "ipConfigurations": [
                {"name": "ipconfig1", "properties": {"subnet": {"id": f"{here.spoke}/subnets/{subnet}"}}}
            ],
        },
    }
    profile = {"networkApiVersion": "2020-11-01", "networkInterfaceConfigurations": [interface]}
    return {"location": location, "properties": {"networkProfile": profile, **more}}


async def test_a_vm_is_a_host_of_its_network_with_the_first_free_address(here: Site) -> None:
    answer = await here.send("PUT", here.machine_id(), body(here))
    assert answer.status == 201
    assert answer.json["properties"]["provisioningState"] == "Succeeded"
    assert here.world.hosts[here.spoke.lower()] == {"web01": "10.1.1.4"}
    nic = answer.json["properties"]["networkProfile"]["networkInterfaces"][0]["id"]
    shown = (await here.get(nic)).json["properties"]
    assert shown["virtualMachine"]["id"] == here.machine_id()
    assert shown["ipConfigurations"][0]["properties"]["privateIPAddress"] == "10.1.1.4"


async def test_putting_a_vm_again_changes_nothing(here: Site) -> None:
    first = await here.make(here.machine_id(), body(here))
    again = await here.send("PUT", here.machine_id(), body(here))
    assert again.status == 200
    assert again.json["properties"] == first["properties"]
    sent_back = await here.send("PUT", here.machine_id(), again.json | {"tags": {"a": "b"}})
    assert sent_back.status == 200, sent_back.text
    assert sent_back.json["tags"] == {"a": "b"}
    assert here.world.hosts[here.spoke.lower()] == {"web01": "10.1.1.4"}


async def test_a_vm_does_not_move_to_another_subnet(here: Site) -> None:
    await here.make(here.machine_id(), body(here))
    await here.make(f"{here.spoke}/subnets/other", {"properties": {"addressPrefix": "10.1.2.0/24"}})
    answer = await here.send("PUT", here.machine_id(), body(here, subnet="other"))
    assert (answer.status, answer.code) == (409, "PropertyChangeNotAllowed")


async def test_deleting_a_vm_frees_its_address_and_its_interface(here: Site) -> None:
    made = await here.make(here.machine_id(), body(here))
    nic = made["properties"]["networkProfile"]["networkInterfaces"][0]["id"]
    assert (await here.send("DELETE", here.spoke)).code == "InUseVirtualNetworkCannotBeDeleted"
    assert (await here.send("DELETE", nic)).code == "NicInUse"
    assert (await here.send("DELETE", here.machine_id())).status == 200
    assert (await here.send("DELETE", here.machine_id())).status == 204
    assert (await here.get(nic)).status == 404
    assert (await here.get(here.machine_id())).status == 404
    assert here.world.hosts[here.spoke.lower()] == {}
    assert (await here.send("DELETE", here.spoke)).status == 200


async def test_vms_are_listed_in_the_group_and_the_subscription(here: Site) -> None:
    for name in ("web01", "web02"):
        await here.make(here.machine_id(name), body(here, name))
    for scope in (here.group, here.plane.subscription):
        listed = await here.get(f"{scope}/providers/Microsoft.Compute/virtualMachines")
        assert [one["name"] for one in listed.json["value"]] == ["web01", "web02"]
    page = await here.get(f"{here.group}/providers/Microsoft.Compute/virtualMachines", "&$top=1")
    rest = await here.plane.get(page.json["nextLink"].removeprefix(here.plane.url))
    assert [one["name"] for one in page.json["value"] + rest.json["value"]] == ["web01", "web02"]


@pytest.mark.parametrize(
    "name", ["hardwareProfile", "storageProfile", "osProfile", "securityProfile", "userData", "licenseType"]
)
async def test_what_a_network_host_has_not_is_refused_by_name(here: Site, name: str) -> None:
    promised: dict[str, Any] = {name: {"vmSize": "Standard_B1s"}}
    answer = await here.send("PUT", here.machine_id(), body(here, **promised))
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert name in answer.message
    assert (await here.get(here.machine_id())).status == 404


async def test_unknown_properties_are_refused(here: Site) -> None:
    answer = await here.send("PUT", here.machine_id(), body(here, wings=2))
    assert answer.status == 400
    assert "wings" in answer.message


async def test_parts_of_an_interface_that_the_fabric_has_not_are_refused(here: Site) -> None:
    for name in ("enableIPForwarding", "enableAcceleratedNetworking"):
        wanted = body(here)
        wanted["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"][name] = True
        answer = await here.send("PUT", here.machine_id(), wanted)
        assert answer.status == 501, answer.text
        assert name in answer.message


@pytest.mark.parametrize("name", ["web_01", "-web", "web-", "123", "a" * 64, "web.example"])
async def test_a_name_that_no_host_can_have_is_refused(here: Site, name: str) -> None:
    answer = await here.send("PUT", here.machine_id(name), body(here))
    assert (answer.status, answer.code) == (400, "InvalidResourceName")
    assert name in answer.message


async def test_a_vm_is_in_its_networks_region(here: Site) -> None:
    answer = await here.send("PUT", here.machine_id(), body(here, location="northeurope"))
    assert answer.code == "InvalidVirtualMachineRegion"
    assert "northeurope" in answer.message
    assert "westeurope" in answer.message
    assert (await here.send("PUT", here.machine_id(), body(here, location="atlantis"))).status == 400


async def test_a_missing_subnet_or_interface_is_named(here: Site) -> None:
    answer = await here.send("PUT", here.machine_id(), body(here, subnet="nothing"))
    assert (answer.status, answer.code) == (404, "InvalidResourceReference")
    assert "nothing" in answer.message
    profile: Any = {"networkProfile": {"networkInterfaces": [{"id": f"{here.network}/networkInterfaces/own"}]}}
    attached = await here.send("PUT", here.machine_id(), {"location": "westeurope", "properties": profile})
    assert attached.status == 501
    none = await here.send("PUT", here.machine_id(), {"location": "westeurope", "properties": {"networkProfile": {}}})
    assert none.status == 400
    assert (await here.send("PUT", here.machine_id(), {"location": "westeurope"})).status == 400


async def test_two_vms_do_not_share_an_interface(here: Site) -> None:
    await here.make(here.machine_id(), body(here))
    answer = await here.send("PUT", here.machine_id("web02"), body(here, "web01"))
    assert (answer.status, answer.code) == (409, "NetworkInterfaceNameInUse")
    assert (await here.get(here.machine_id("web02"))).status == 404


async def test_a_full_subnet_takes_no_vm(here: Site) -> None:
    await here.make(f"{here.spoke}/subnets/small", {"properties": {"addressPrefix": "10.1.9.0/29"}})
    for name in ("a", "b", "c"):
        await here.make(here.machine_id(name), body(here, name, "small"))
    answer = await here.send("PUT", here.machine_id("d"), body(here, "d", "small"))
    assert (answer.status, answer.code) == (409, "SubnetIsFull")


async def test_joining_a_subnet_needs_the_right_to(here: Site) -> None:
    _, reader = await here.plane.principal("Reader")
    answer = await here.send("PUT", here.machine_id(), body(here), token=reader)
    assert (answer.status, answer.code) == (403, "AuthorizationFailed")


async def test_while_the_world_is_away_creating_a_vm_is_a_long_running_operation(here: Site) -> None:
    here.world.away = True
    answer = await here.send("PUT", here.machine_id(), body(here))
    assert answer.status == 201
    assert answer.json["properties"]["provisioningState"] == "Updating"
    assert "Azure-AsyncOperation" in answer.headers


async def test_a_group_is_deleted_with_its_vms(here: Site) -> None:
    await here.make(here.machine_id(), body(here))
    assert (await here.send("DELETE", here.group)).status in (200, 202)
    assert here.world.hosts == {}
