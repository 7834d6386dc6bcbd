"""Peerings through the API: their states, what is refused, and what the fabric is told."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.providers.site import Site, site
from undercroft.vnet import reach


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    """``spoke`` is 10.1.0.0/16; ``hub`` 10.2.0.0/16 in another region, ``other`` 10.3.0.0/16."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await network(made, "hub", "10.2.0.0/16", location="northeurope")
        await network(made, "other", "10.3.0.0/16")
        yield made


async def network(here: Site, name: str, *prefixes: str, location: str = "westeurope", **more: Any) -> Any:
    subnets = [{"name": "work", "properties": {"addressPrefix": prefixes[0].replace(".0.0/16", ".1.0/24")}}]
    properties = {"addressSpace": {"addressPrefixes": prefixes}, "subnets": subnets, **more}
    return await here.make(f"{here.network}/virtualNetworks/{name}", {"location": location, "properties": properties})


def side(here: Site, name: str, remote: str) -> str:
    return f"{here.network}/virtualNetworks/{name}/virtualNetworkPeerings/to-{remote}"


def wanted(here: Site, remote: str, **more: Any) -> dict[str, Any]:
    """What ``az network vnet peering create`` sends."""
    properties = {
        "allowForwardedTraffic": False,
        "allowGatewayTransit": False,
        "allowVirtualNetworkAccess": True,
        "peerCompleteVnets": True,
        "remoteVirtualNetwork": {"id": f"{here.network}/virtualNetworks/{remote}"},
        "useRemoteGateways": False,
        **more,
    }
    return {"name": f"to-{remote}", "properties": properties}


async def peer(here: Site, name: str, remote: str, **more: Any) -> Any:
    return (await here.make(side(here, name, remote), wanted(here, remote, **more)))["properties"]


async def state(here: Site, name: str, remote: str) -> str:
    properties = (await here.get(side(here, name, remote))).json["properties"]
    return f"{properties['peeringState']} {properties['peeringSyncLevel']}"


def reached(here: Site, name: str) -> dict[str, list[str]]:
    """What the fabric is told that the network reaches, by the neighbour's name."""
    key = f"{here.network}/virtualNetworks/{name}".lower()
    with here.database.engine.connect() as connection:
        found = reach.neighbours(connection, key)
    return {one.key.rsplit("/", 1)[-1]: [str(prefix) for prefix in (*one.prefixes, *one.behind)] for one in found}


async def test_a_peering_is_initiated_then_connected_then_disconnected(here: Site) -> None:
    answer = await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "hub"))
    assert answer.status == 201 and answer.json["properties"]["peeringState"] == "Initiated"
    assert reached(here, "spoke") == {}
    shown = await peer(here, "hub", "spoke")
    assert shown["peeringState"] == "Connected" and shown["remoteAddressSpace"] == {"addressPrefixes": ["10.1.0.0/16"]}
    assert await state(here, "spoke", "hub") == "Connected FullyInSync"
    assert reached(here, "spoke") == {"hub": ["10.2.0.0/16"]} and reached(here, "hub") == {"spoke": ["10.1.0.0/16"]}
    listed = (await here.get(f"{here.spoke}/virtualNetworkPeerings")).json["value"]
    assert [one["name"] for one in listed] == ["to-hub"]
    assert (await here.send("DELETE", side(here, "hub", "spoke"))).status == 200
    assert (await here.send("DELETE", side(here, "hub", "spoke"))).status == 204
    assert await state(here, "spoke", "hub") == "Disconnected FullyInSync"
    assert reached(here, "spoke") == {} == reached(here, "hub")


async def test_a_disconnected_side_is_put_again_before_the_other_is_created(here: Site) -> None:
    await peer(here, "spoke", "hub")
    await peer(here, "hub", "spoke")
    await here.send("DELETE", side(here, "hub", "spoke"))
    refused = await here.send("PUT", side(here, "hub", "spoke"), wanted(here, "spoke"))
    assert (refused.status, refused.code) == (400, "RemotePeeringIsDisconnected")
    assert (await peer(here, "spoke", "hub"))["peeringState"] == "Initiated"
    assert (await peer(here, "hub", "spoke"))["peeringState"] == "Connected"


async def test_a_deleted_network_leaves_the_others_disconnected(here: Site) -> None:
    await peer(here, "spoke", "hub")
    await peer(here, "hub", "spoke")
    await peer(here, "other", "hub")
    assert (await here.send("DELETE", f"{here.network}/virtualNetworks/hub")).status == 200
    assert await state(here, "spoke", "hub") == "Disconnected FullyInSync"
    assert await state(here, "other", "hub") == "Initiated FullyInSync"
    gone = await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "hub"))
    assert (gone.status, gone.code) == (404, "InvalidResourceReference")
    await network(here, "hub", "10.2.0.0/16")
    assert (await here.get(f"{here.network}/virtualNetworks/hub")).json["properties"]["virtualNetworkPeerings"] == []


async def test_without_access_nothing_is_reached(here: Site) -> None:
    await peer(here, "spoke", "hub", allowVirtualNetworkAccess=False)
    await peer(here, "hub", "spoke")
    assert await state(here, "spoke", "hub") == "Connected FullyInSync"
    assert reached(here, "spoke") == {} == reached(here, "hub")
    await peer(here, "spoke", "hub")
    assert reached(here, "hub") == {"spoke": ["10.1.0.0/16"]}
    await peer(here, "hub", "spoke", allowVirtualNetworkAccess=False)
    assert reached(here, "spoke") == {}


async def test_a_new_range_is_reached_when_the_other_side_is_synchronised(here: Site) -> None:
    await peer(here, "spoke", "hub")
    await peer(here, "hub", "spoke")
    hub = (await here.get(f"{here.network}/virtualNetworks/hub")).json
    hub["properties"]["addressSpace"]["addressPrefixes"] = ["10.2.0.0/16", "10.22.0.0/16"]
    await here.make(hub["id"], hub)
    assert await state(here, "hub", "spoke") == "Connected RemoteNotInSync"
    assert await state(here, "spoke", "hub") == "Connected LocalNotInSync"
    assert reached(here, "spoke") == {"hub": ["10.2.0.0/16"]}
    shown = (await here.get(side(here, "spoke", "hub"))).json
    assert shown["properties"]["remoteVirtualNetworkAddressSpace"]["addressPrefixes"] == ["10.2.0.0/16", "10.22.0.0/16"]
    await here.make(side(here, "spoke", "hub"), shown)  # what is sent back synchronises nothing
    assert await state(here, "spoke", "hub") == "Connected LocalNotInSync"
    answer = await here.send("PUT", side(here, "spoke", "hub"), shown, query="&syncRemoteAddressSpace=true")
    assert answer.status == 200
    assert await state(here, "spoke", "hub") == "Connected FullyInSync" == await state(here, "hub", "spoke")
    assert reached(here, "spoke") == {"hub": ["10.2.0.0/16", "10.22.0.0/16"]}
    wrong = await here.send("PUT", side(here, "spoke", "hub"), shown, query="&syncRemoteAddressSpace=maybe")
    assert wrong.status == 400 and "syncRemoteAddressSpace" in wrong.message


async def test_a_network_that_is_not_the_callers_to_read_is_not_named(here: Site) -> None:
    """It is in the way because somebody else peered it with a network that the caller may peer with."""
    await peer(here, "spoke", "hub")
    await peer(here, "hub", "spoke")
    group = await here.plane.group("rg2")
    someone, token = await here.plane.principal("Network Contributor", group)
    hub = f"{here.network}/virtualNetworks/hub"
    await here.plane.grant(someone, "Network Contributor", hub)
    twin = f"{group}/providers/Microsoft.Network/virtualNetworks/twin"
    properties: dict[str, Any] = {"addressSpace": {"addressPrefixes": ["10.1.0.0/16"]}}
    await here.make(twin, {"location": "westeurope", "properties": properties})
    refused = await here.send("PUT", f"{twin}/virtualNetworkPeerings/to-hub", wanted(here, "hub"), token=token)
    assert refused.code == "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"
    assert (
        f"The address space of {twin} overlaps that of a resource that you may not read, which {hub} is"
        in refused.message
    )
    assert "spoke" not in refused.message


async def test_ranges_that_meet_are_refused(here: Site) -> None:
    await network(here, "twin", "10.1.0.0/16")
    refused = await here.send("PUT", side(here, "twin", "spoke"), wanted(here, "spoke"))
    assert (refused.status, refused.code) == (400, "VnetAddressSpacesOverlap") and "10.1.0.0/16" in refused.message
    await peer(here, "spoke", "hub")
    await peer(here, "hub", "spoke")
    for near, far in (("twin", "hub"), ("hub", "twin")):
        refused = await here.send("PUT", side(here, near, far), wanted(here, far))
        assert refused.code == "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet" and "/spoke" in refused.message
    assert (await peer(here, "twin", "other"))["peeringState"] == "Initiated"
    assert (await peer(here, "other", "twin"))["peeringState"] == "Connected"
    spoke = (await here.get(here.spoke)).json
    for prefix in ("10.2.128.0/17", "10.3.0.0/16"):
        spoke["properties"]["addressSpace"]["addressPrefixes"] = ["10.1.0.0/16", prefix]
        answer = await here.send("PUT", here.spoke, spoke)
        assert answer.status == (400 if prefix == "10.2.128.0/17" else 200), answer.text
        assert answer.status == 200 or answer.code == "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"


async def test_a_disconnected_peering_stands_in_no_ranges_way(here: Site) -> None:
    await peer(here, "spoke", "hub")
    await peer(here, "hub", "spoke")
    await here.send("DELETE", side(here, "hub", "spoke"))
    spoke = (await here.get(here.spoke)).json
    del spoke["properties"]["virtualNetworkPeerings"]  # they would be put again with it
    spoke["properties"]["addressSpace"]["addressPrefixes"].append("10.2.0.0/17")
    await here.make(here.spoke, spoke)
    again = await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "hub"))
    assert again.code == "VnetAddressSpacesOverlap"


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"remoteVirtualNetwork": None}, 400, "InvalidParameter"),
        ({"remoteVirtualNetwork": {"id": "hub"}}, 400, "InvalidParameter"),
        ({"remoteVirtualNetwork": {"id": "/subscriptions/s/resourceGroups/g"}}, 400, "InvalidParameter"),
        ({"remoteVirtualNetwork": {"id": "SELF"}}, 400, "VnetCannotBePeeredWithItself"),
        ({"remoteVirtualNetwork": {"id": "NONE"}}, 404, "InvalidResourceReference"),
        ({"peerCompleteVnets": False}, 501, "NotImplemented"),
        ({"localSubnetNames": ["work"]}, 501, "NotImplemented"),
        ({"enableOnlyIPv6Peering": True}, 501, "NotImplemented"),
        ({"allowGatewayTransit": True, "useRemoteGateways": True}, 400, "InvalidPeeringGatewayFlags"),
        ({"useRemoteGateways": True}, 400, "RemoteVnetHasNoGateways"),
        ({"allowForwardedTraffic": "yes"}, 400, "InvalidRequestContent"),
        ({"surprise": 1}, 400, "InvalidRequestContent"),
    ],
)
async def test_bad_peerings_are_refused_by_name(here: Site, more: Any, status: int, code: str) -> None:
    body = wanted(here, "hub", **more)
    remote = body["properties"]["remoteVirtualNetwork"]
    if remote and remote["id"] in ("SELF", "NONE"):
        remote["id"] = here.spoke if remote["id"] == "SELF" else f"{here.network}/virtualNetworks/nothing"
    answer = await here.send("PUT", side(here, "spoke", "hub"), body)
    assert (answer.status, answer.code) == (status, code), answer.text
    assert (await here.get(side(here, "spoke", "hub"))).status == 404
    embedded = (await here.get(here.spoke)).json
    embedded["properties"]["virtualNetworkPeerings"] = [body]
    answer = await here.send("PUT", here.spoke, embedded)
    assert (answer.status, answer.code) == (status, code), answer.text
    assert (await here.get(side(here, "spoke", "hub"))).status == 404


async def test_one_network_is_peered_once_and_a_side_keeps_its_network(here: Site) -> None:
    await peer(here, "spoke", "hub")
    again = await here.send("PUT", f"{here.spoke}/virtualNetworkPeerings/second", wanted(here, "hub"))
    assert (again.status, again.code) == (400, "AnotherPeeringAlreadyReferencesRemoteVnet")
    moved = await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "other"))
    assert (moved.status, moved.code) == (409, "PropertyChangeNotAllowed")
    nowhere = await here.send("PUT", f"{here.network}/virtualNetworks/no/virtualNetworkPeerings/p", wanted(here, "hub"))
    assert (nowhere.status, nowhere.code) == (404, "ResourceNotFound")


async def test_peerings_in_the_networks_body(here: Site) -> None:
    """As templates send them, and as a client sends back what it was shown; a body without them leaves them."""
    await network(here, "third", "10.4.0.0/16", virtualNetworkPeerings=[wanted(here, "spoke")])
    assert (await peer(here, "spoke", "third"))["peeringState"] == "Connected"
    third = (await here.get(f"{here.network}/virtualNetworks/third")).json
    (embedded,) = third["properties"]["virtualNetworkPeerings"]
    assert embedded["name"] == "to-spoke" and embedded["properties"]["peeringState"] == "Connected"
    third["tags"] = {"changed": "yes"}
    await here.make(third["id"], third)
    del third["properties"]["virtualNetworkPeerings"]
    await here.make(third["id"], third)
    assert reached(here, "spoke") == {"third": ["10.4.0.0/16"]}
    await here.make(third["id"], third | {"properties": third["properties"] | {"virtualNetworkPeerings": []}})
    assert await state(here, "spoke", "third") == "Disconnected FullyInSync"


async def test_the_remote_networks_owner_is_asked(here: Site) -> None:
    """Network Contributor of one network only: its own side can be made by nobody without a right on the other."""
    _, token = await here.plane.principal("Network Contributor", here.spoke)
    refused = await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "hub"), token=token)
    assert (refused.status, refused.code) == (403, "AuthorizationFailed") and "peer/action" in refused.message
    embedded = (await here.get(here.spoke)).json
    embedded["properties"]["virtualNetworkPeerings"] = [wanted(here, "hub")]
    refused = await here.send("PUT", here.spoke, embedded, token=token)
    assert refused.status == 403 and "peer/action" in refused.message
    _, both = await here.plane.principal("Network Contributor", here.group)
    assert (await here.send("PUT", side(here, "spoke", "hub"), wanted(here, "hub"), token=both)).status == 201
