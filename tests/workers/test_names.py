"""Names as VMs get them: from the real fabric, over the wire address, asked with dig."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from tests.peers import peer
from tests.vnet import world as state_world
from tests.workers.node import Node
from undercroft.names import ResourceId
from undercroft.vault import vaults
from undercroft.vnet import allocations, endpoints, registration, zones

BACKUP_ZONE = "privatelink.we.backup.windowsazure.com"
CORP = "corp.example"
WIRE = "168.63.129.16"


async def dig(world: Node, vm: str, *words: str) -> str:
    output = await world.execute(vm, str(peer("dig")), f"@{WIRE}", "+tries=1", "+time=3", *words)
    return output.out + output.err


async def short(world: Node, vm: str, *words: str) -> list[str]:
    return sorted((await dig(world, vm, "+short", *words)).split())


def two_networks(connection: Connection) -> tuple[str, str, str, str, str]:
    """(hub, its VM, spoke, its VM, zone): the same addresses in both; the hub registers in the zone, the spoke only sees it."""
    hub, spoke = state_world.network(connection, "hub"), state_world.network(connection, "spoke")
    in_hub = state_world.machine(connection, state_world.subnet(connection, hub), "hubvm")
    in_spoke = state_world.machine(connection, state_world.subnet(connection, spoke), "spokevm")
    zone = state_world.zone(connection, CORP)
    for network, registers in ((hub, True), (spoke, False)):
        name = network.rpartition("/")[2]
        zones.add_link(
            connection, f"{zone}/virtualNetworkLinks/{name}", ResourceId.parse(zone), network, False, registers
        )
    registration.follow_network(connection, hub)
    return hub, in_hub, spoke, in_spoke, zone


async def test_auto_registration_is_answered_forwards_and_backwards_while_the_vm_is_there(any_world: Node) -> None:
    world = any_world
    hub, in_hub, spoke, in_spoke, _ = world.state(two_networks)
    assert await world.provisioner.settle([hub, spoke])
    for vm in (in_hub, in_spoke):
        assert await short(world, vm, f"hubvm.{CORP}") == ["10.0.0.4"]
    assert "status: NXDOMAIN" in await dig(world, in_spoke, f"spokevm.{CORP}")
    assert await short(world, in_hub, "-x", "10.0.0.4") == [f"hubvm.{CORP}."]
    reverse = await dig(world, in_spoke, "-x", "10.0.0.4")
    assert "status: NXDOMAIN" in reverse, (
        "reverse names belong to the network of the address, and the spoke registers none"
    )

    def add(connection: Connection) -> None:
        state_world.machine(connection, state_world.subnet(connection, hub), "second")
        registration.follow_network(connection, hub)

    world.state(add)
    assert await world.provisioner.settle([hub])
    assert await short(world, in_spoke, f"second.{CORP}") == ["10.0.0.5"]
    assert await short(world, in_hub, "-x", "10.0.0.5") == [f"second.{CORP}."]

    def remove(connection: Connection) -> None:
        allocations.release(connection, f"{state_world.NETWORK}/networkInterfaces/second-nic".lower())
        registration.follow_network(connection, hub)

    world.state(remove)
    assert await world.provisioner.settle([hub])
    assert "status: NXDOMAIN" in await dig(world, in_spoke, f"second.{CORP}")
    assert "status: NXDOMAIN" in await dig(world, in_hub, "-x", "10.0.0.5")


async def test_a_zone_is_not_handed_out_and_cookies_are_answered(any_world: Node) -> None:
    """By dig from a VM: no transfer; a cookie is answered with ours, and a reason is shown."""
    world = any_world
    hub, in_hub, *_ = world.state(two_networks)
    assert await world.provisioner.settle([hub])
    for words in (("AXFR",), ("IXFR=1",)):
        text = await dig(world, in_hub, CORP, *words)
        assert "Transfer failed" in text, text
        assert "10.0.0.4" not in text
    text = await dig(world, in_hub, f"hubvm.{CORP}")
    assert "(good)" in text and "COOKIE" in text, text
    text = await dig(world, in_hub, f"hubvm.{CORP}", "+tcp", "+nocookie", "+dnssec")
    assert "10.0.0.4" in text and "flags: do" in text
    text = await dig(world, in_hub, f"hubvm.{CORP}", "+ednsopt=65001:0102", "+ednsopt=100")
    assert "10.0.0.4" in text


async def test_two_endpoints_of_one_vault_overwrite_each_others_records_in_a_shared_zone(world: Node) -> None:
    """As in Azure (pains B13): the last one written is what every network sees, and deleting either takes the record away."""

    def lay_out(connection: Connection) -> tuple[str, ...]:
        vault = state_world.vault(connection)
        keys: list[str] = []
        vms: list[str] = []
        for number in (1, 2):
            prefix = f"10.{number}.0"
            network = state_world.network(connection, f"v{number}", [f"{prefix}.0/16"], {"snet": f"{prefix}.0/24"})
            subnet = state_world.subnet(connection, network)
            vms.append(state_world.machine(connection, subnet, f"vm{number}"))
            state_world.endpoint(connection, subnet, vault, f"pe{number}")
            keys.append(network)
        zone = state_world.zone(connection, BACKUP_ZONE, keys)
        for number in (1, 2):
            record = endpoints.get(connection, f"{state_world.NETWORK}/privateEndpoints/pe{number}".lower())
            assert record is not None
            state_world.zone_group(connection, record, [zone])
        vault_id = vaults.require(connection, vault.key).vault_id
        return (*keys, *vms, f"{vault_id}-ab-pod01-id1.{BACKUP_ZONE}")

    first, second, vm1, vm2, name = world.state(lay_out)
    assert await world.provisioner.settle([first])
    (mine,) = await short(world, vm1, name)
    assert mine.startswith("10.1.0.")
    assert await world.provisioner.settle([second])
    for vm in (vm1, vm2):
        (seen,) = await short(world, vm, name)
        assert seen.startswith("10.2.0."), "the second endpoint's address, also where it cannot be reached"

    def gone(connection: Connection) -> None:
        key = f"{state_world.NETWORK}/privateEndpoints/pe1".lower()
        owned = allocations.of_owner(connection, key)
        zones.remove_records(connection, zones.group_of(connection, key), owned)

    world.state(gone)
    assert await world.provisioner.settle([first, second])
    for vm in (vm1, vm2):
        assert "status: NXDOMAIN" in await dig(world, vm, name)


@pytest.mark.parametrize("kind", ["udp", "tcp"])
async def test_dig_repeats_itself_through_the_cache_and_gets_what_is_there_now(world: Node, kind: str) -> None:
    """Random cookies and spellings do not hide a change: the next question sees it."""
    hub, in_hub, _, _, zone = world.state(two_networks)
    assert await world.provisioner.settle([hub])
    for last in ("10.0.0.9", "10.0.0.10"):

        def write(connection: Connection, value: str = last) -> None:
            record = zones.RecordSet("www", "A", 60, (value,), (), "etag")
            zones.put_record_set(connection, zone, record)

        world.state(write)
        assert await world.provisioner.settle([hub])
        for spelling in ("www", "WwW", "WWW"):
            text = await dig(world, in_hub, f"{spelling}.{CORP}", "+tcp" if kind == "tcp" else "+notcp")
            assert f"{spelling}.{CORP}." in text and last in text
