"""The world follows the state: seen from inside VMs, through the real fabric, name server and data plane."""

from __future__ import annotations

import asyncio
import signal
import time
from ipaddress import IPv4Address
from typing import Any

import pytest
from sqlalchemy import Connection, event

from tests.vnet import world as state_world
from tests.workers.node import Node, until
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView
from undercroft.errors import UndercroftError
from undercroft.state.schema import resources
from undercroft.vault import connections, members, vaults
from undercroft.vault.connections import Status
from undercroft.vnet import allocations, endpoints, zones

RECORD = zones.RecordSet("a", "A", 10, ("10.9.9.9",), (), "etag")
BACKUP_ZONE = "privatelink.we.backup.windowsazure.com"
FIRST = "10.0.0.5"
"""The first endpoint address after the VM's, 10.0.0.4."""


def laid_out(connection: Connection, approved: bool = True, linked: bool = True) -> tuple[str, str, str, str]:
    """(network, VM, endpoint, vault) keys: one of each, and the backup zone with a zone group."""
    network = state_world.network(connection)
    subnet = state_world.subnet(connection, network)
    vm = state_world.machine(connection, subnet)
    vault = state_world.vault(connection)
    endpoint = state_world.endpoint(connection, subnet, vault, approved=approved)
    zone = state_world.zone(connection, BACKUP_ZONE, [network] if linked else [])
    state_world.zone_group(connection, endpoint, [zone])
    return network, vm, endpoint.key, vault.key


def change(connection: Connection, endpoint: str, status: Status) -> None:
    state = connections.of_endpoint(connection, endpoint)
    assert state is not None
    connections.transition(connection, state, status)


def ready(connection: Connection, endpoint: str) -> list[bool]:
    return [one.ready for one in allocations.of_owner(connection, endpoint)]


async def test_an_approved_endpoint_answers_and_resolves(any_world: Node) -> None:
    world = any_world
    network, vm, endpoint, vault = world.state(laid_out)
    started = time.monotonic()
    assert await world.provisioner.settle([network])
    took = time.monotonic() - started
    assert world.state(lambda connection: ready(connection, endpoint)) == [True] * 8
    assert (await world.connect(vm, FIRST)).startswith("open")
    vault_id = world.state(lambda connection: vaults.require(connection, vault)).vault_id
    assert await world.resolve(vm, f"{vault_id}-ab-pod01-fc1.{BACKUP_ZONE}") == FIRST
    assert await world.resolve(vm, "pod01-id1.we.backup.windowsazure.com") == "203.0.113.10"
    assert took < 5
    assert await world.connect(vm, "10.0.0.200") not in ("open", "open closed")


async def test_names_are_published_before_an_address_is_ready(world: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is handed an account looks its name up at once."""
    network, _, endpoint, _ = world.state(laid_out)
    at_publication: list[list[bool]] = []
    publish = NameServer.publish

    def watched(self: NameServer, of: str, view: NetworkView) -> None:
        if any(kind == "A" for zone in view.zones for _, kind in zone.records):
            at_publication.append(world.state(lambda connection: ready(connection, endpoint)))
        publish(self, of, view)

    monkeypatch.setattr(NameServer, "publish", watched)
    assert await world.provisioner.settle([network])
    assert at_publication[0] == [False] * 8
    assert world.state(lambda connection: ready(connection, endpoint)) == [True] * 8


async def test_a_pending_endpoint_carries_nothing_until_it_is_approved(world: Node) -> None:
    network, vm, endpoint, vault = world.state(lambda connection: laid_out(connection, approved=False))
    assert await world.provisioner.settle([network])
    assert world.state(lambda connection: ready(connection, endpoint)) == [False] * 8
    assert "open" not in await world.connect(vm, FIRST)
    vault_id = world.state(lambda connection: vaults.require(connection, vault)).vault_id
    name = f"{vault_id}-ab-pod01-fc1.{BACKUP_ZONE}"
    assert await world.resolve(vm, name) != FIRST
    world.state(lambda connection: change(connection, endpoint, Status.APPROVED))
    assert await world.provisioner.settle([network])
    assert (await world.connect(vm, FIRST)).startswith("open")
    assert await world.resolve(vm, name) == FIRST


async def test_losing_the_approval_cuts_open_connections_and_takes_addresses_and_records_away(world: Node) -> None:
    network, vm, endpoint, vault = world.state(laid_out)
    assert await world.provisioner.settle([network])
    open_one = asyncio.create_task(world.connect(vm, FIRST, stay=20))
    door = world.data.doors.lookup(network, IPv4Address(FIRST))
    assert door is not None and door.vault_key == vault and door.service == "backup"
    await until(lambda: world.data.doors.count(door) == 1)
    world.state(lambda connection: change(connection, endpoint, Status.REJECTED))
    started = time.monotonic()
    assert await world.provisioner.settle([network])
    assert await open_one in ("open closed", "open reset")
    assert time.monotonic() - started < 5
    assert world.state(lambda connection: ready(connection, endpoint)) == [False] * 8
    assert "open" not in await world.connect(vm, FIRST)
    vault_id = world.state(lambda connection: vaults.require(connection, vault)).vault_id
    assert await world.resolve(vm, f"{vault_id}-ab-pod01-fc1.{BACKUP_ZONE}") != FIRST


async def test_an_approval_lost_while_the_fabric_is_away_still_cuts_at_once(world: Node) -> None:
    network, vm, endpoint, vault = world.state(laid_out)
    assert await world.provisioner.settle([network])
    open_one = asyncio.create_task(world.connect(vm, FIRST, stay=20))
    door = world.data.doors.lookup(network, IPv4Address(FIRST))
    assert door is not None
    await until(lambda: world.data.doors.count(door) == 1)
    world.state(lambda connection: change(connection, endpoint, Status.REJECTED))
    world.fabric.countdown = 1
    assert not await world.provisioner.settle([network])
    assert await open_one in ("open closed", "open reset")
    vault_id = world.state(lambda connection: vaults.require(connection, vault)).vault_id
    assert await world.resolve(vm, f"{vault_id}-ab-pod01-fc1.{BACKUP_ZONE}") != FIRST


async def test_a_second_network_with_the_same_addresses_is_another_world(world: Node) -> None:
    network, _, _, vault = world.state(laid_out)
    other = world.state(lambda connection: state_world.network(connection, "lonely"))
    stranger = world.state(
        lambda connection: state_world.machine(connection, state_world.subnet(connection, other), "stranger")
    )
    assert await world.provisioner.settle([network, other])
    assert "open" not in await world.connect(stranger, FIRST)
    assert (await world.connect(stranger, "203.0.113.10")).startswith("open")
    vault_id = world.state(lambda connection: vaults.require(connection, vault)).vault_id
    assert await world.resolve(stranger, f"{vault_id}-ab-pod01-fc1.{BACKUP_ZONE}") != FIRST


async def test_a_new_account_gets_addresses_records_and_a_cname_everywhere(world: Node) -> None:
    network, vm, endpoint, vault = world.state(laid_out)
    blob = world.state(lambda connection: state_world.zone(connection, "privatelink.blob.core.windows.net", [network]))

    def widen(connection: Connection) -> None:
        target = zones.ZoneTarget("blob", blob)
        group = f"{endpoint}/privatednszonegroups/default"
        targets = (*zones.group_of(connection, endpoint), target)
        connection.execute(resources.delete().where(resources.c.key == group))
        found = endpoints.get(connection, endpoint)
        assert found is not None
        state_world.zone_group(connection, found, [one.zone_id for one in targets])

    world.state(widen)
    assert await world.provisioner.settle([network])
    names = ["abcd1234ecs01.blob.core.windows.net", "abcd1234ecs01.queue.core.windows.net"]
    world.state(lambda connection: members.add_account(connection, vault, "abcd1234ecs01"))
    assert not world.state(lambda connection: allocations.account_ready(connection, endpoint, names))
    await world.provisioner.carry_out_vault(vault)
    assert world.state(lambda connection: allocations.account_ready(connection, endpoint, names))
    private = str(world.state(lambda connection: allocations.of_owner(connection, endpoint))[8].address)
    assert await world.resolve(vm, names[0]) == private
    assert await world.resolve(vm, names[1]) == "203.0.113.12"  # no queue zone: the CNAME leads to the public side
    assert (await world.connect(vm, private)).startswith("open")


async def test_a_full_subnet_degrades_its_endpoint_and_no_other(world: Node) -> None:
    def lay_out(connection: Connection) -> tuple[list[str], list[str], str]:
        vault = state_world.vault(connection)
        networks, made = [], []
        for name, prefix in (("small", "10.0.0.0/28"), ("large", "10.0.0.0/24")):
            networks.append(state_world.network(connection, name, subnets={"snet": prefix}))
            subnet = state_world.subnet(connection, networks[-1])
            made.append(state_world.endpoint(connection, subnet, vault, f"pe-{name}").key)
        return networks, made, vault.key

    keys, (small, large), vault = world.state(lay_out)
    assert await world.provisioner.settle(keys)

    def grow(connection: Connection) -> None:
        for account in ("aaaa0000ecs01", "aaaa0000prot01"):
            members.add_account(connection, vault, account)

    world.state(grow)
    await world.provisioner.carry_out_vault(vault)

    def missing(connection: Connection, key: str) -> int:
        found = endpoints.get(connection, key)
        assert found is not None
        return found.value.missing_addresses

    assert world.state(lambda connection: missing(connection, small)) == 1  # 11 addresses for 12 members
    assert world.state(lambda connection: ready(connection, small)) == [True] * 11
    assert world.state(lambda connection: missing(connection, large)) == 0
    assert world.state(lambda connection: ready(connection, large)) == [True] * 12
    assert await world.provisioner.settle(keys)  # and it stays so without doing harm
    assert world.state(lambda connection: ready(connection, small)) == [True] * 11


async def test_a_killed_fabric_is_rebuilt(world: Node) -> None:
    network, vm, _, _ = world.state(laid_out)
    await world.provisioner.start()
    assert (await world.connect(vm, FIRST)).startswith("open")
    await asyncio.to_thread(world.machine.end, signal.SIGKILL)
    assert not await world.provisioner.settle([network])
    await asyncio.to_thread(world.machine.start)
    await until(lambda: world.provisioner.settle([network]))
    assert (await world.connect(vm, FIRST)).startswith("open")
    assert await world.resolve(vm, "pod01-id1.we.backup.windowsazure.com") == "203.0.113.10"


async def test_an_idle_node_notices_that_its_fabric_was_replaced(world: Node) -> None:
    network, vm, _, _ = world.state(laid_out)
    await world.provisioner.start()
    await asyncio.to_thread(world.machine.end, signal.SIGKILL)
    await asyncio.to_thread(world.machine.start)

    async def answers() -> bool:
        return network in await networks_of(world) and (await world.connect(vm, FIRST)).startswith("open")

    await until(answers)


async def networks_of(world: Node) -> frozenset[str]:
    try:
        return await world.fabric.networks()
    except UndercroftError:
        return frozenset()


async def test_a_deleted_network_goes_and_an_unknown_one_as_well(world: Node) -> None:
    network, _, _, _ = world.state(laid_out)
    other = world.state(lambda connection: state_world.network(connection, "vnet2"))
    await world.provisioner.start()
    assert await world.fabric.networks() == {network, other}
    world.state(lambda connection: connection.execute(resources.delete().where(resources.c.key == other)))
    await world.provisioner.converge_all()
    assert await world.fabric.networks() == {network}


async def test_converging_twice_changes_nothing_and_reports_what_it_mended(world: Node) -> None:
    network, _, _, _ = world.state(laid_out)
    drift = await world.provisioner.converge_all()
    assert drift and all(one.created for one in drift)
    assert await world.provisioner.converge_all() == ()
    assert await world.provisioner.converge_network(network) == ()

    def grow(connection: Connection) -> None:
        state_world.machine(connection, state_world.subnet(connection, network), "vm2")

    world.state(grow)
    assert await world.provisioner.converge_all() != ()


async def test_whatever_call_fails_the_next_round_ends_in_the_same_place(world: Node) -> None:
    """The fabric dies at its first call, its second … until a round passes untouched; then the network works."""
    network, vm, endpoint, vault = world.state(laid_out)
    failed = 0
    for number in range(1, 20):
        world.fabric.countdown, world.fabric.hit = number, False
        settled = await world.provisioner.settle([network])
        assert settled is not world.fabric.hit
        if settled:
            break
        failed += 1
        await world.fabric.remove(network)  # and what it built is lost with it
    assert failed >= 5  # networks, apply, and three listeners
    world.fabric.countdown = 0
    assert world.state(lambda connection: ready(connection, endpoint)) == [True] * 8
    assert (await world.connect(vm, FIRST)).startswith("open")
    vault_id = world.state(lambda connection: vaults.require(connection, vault)).vault_id
    assert await world.resolve(vm, f"{vault_id}-ab-pod01-fc1.{BACKUP_ZONE}") == FIRST


async def test_custom_resolvers_reach_the_hosts(world: Node) -> None:
    def lay_out(connection: Connection) -> tuple[str, str]:
        network = state_world.network(connection, resolvers=["10.0.0.77", "10.0.0.78"])
        return network, state_world.machine(connection, state_world.subnet(connection, network))

    network, vm = world.state(lay_out)
    assert await world.provisioner.settle([network])
    output = await world.execute(vm, "cat", "/etc/resolv.conf")
    assert [line.split()[1] for line in output.out.splitlines() if line.startswith("nameserver")] == [
        "10.0.0.77",
        "10.0.0.78",
    ]


async def test_sockets_do_not_outlive_their_network(world: Node) -> None:
    network = world.state(state_world.network)
    await world.provisioner.start()
    world.state(lambda connection: connection.execute(resources.delete().where(resources.c.key == network)))
    assert await world.provisioner.settle([network])
    assert await world.fabric.networks() == frozenset()
    assert world.data.doors.lookup(network, IPv4Address("203.0.113.10")) is None


async def test_one_network_that_cannot_be_built_does_not_keep_the_others_busy(world: Node) -> None:
    good = world.state(lambda connection: state_world.network(connection, "good"))
    bad = world.state(lambda connection: state_world.network(connection, "bad"))
    world.fabric.impossible = bad
    await world.provisioner.start()
    assert good in await world.fabric.networks()
    before = world.fabric.applied
    await asyncio.sleep(8)
    assert world.fabric.applied - before <= 6, "two networks, tried again after 2 and 4 seconds"
    world.fabric.impossible = None

    async def built() -> bool:
        return bad in await world.fabric.networks()

    await until(built, 20)


async def test_what_nothing_was_written_about_is_looked_at_without_reading_its_state(world: Node) -> None:
    """An idle deployment must not read itself every reconcile period; damage is mended all the same."""
    network, vm, _, _ = world.state(laid_out)
    assert await world.provisioner.settle([network])
    for _ in range(2):  # the first one writes: it drops the notes of changes that are published
        await world.provisioner.converge_all()
    read: list[str] = []

    def keep(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        read.append(statement)

    event.listen(world.database.engine, "before_cursor_execute", keep)
    inner = await world.provisioner.converge_all()
    assert inner == ()
    assert not [statement for statement in read if "allocations" in statement or "members" in statement], read
    read.clear()
    world.state(lambda connection: zones.put_record_set(connection, "/zones/z", RECORD))
    await world.provisioner.converge_all()
    assert [statement for statement in read if "allocations" in statement]
    event.remove(world.database.engine, "before_cursor_execute", keep)
    assert (await world.connect(vm, FIRST)).startswith("open")


async def test_closing_while_the_name_server_goes_ends(world: Node) -> None:
    """Supervisor and name server killed at once: the watcher is woken in the turn of the loop in which it is cancelled."""
    await world.provisioner.start()
    await asyncio.sleep(0.05)
    world.provisioner._wake.set()
    await asyncio.sleep(0)
    closing = asyncio.create_task(world.provisioner.close())
    _, pending = await asyncio.wait({closing}, timeout=3)
    closing.cancel()
    assert not pending
