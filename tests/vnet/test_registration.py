"""Auto-registration, as rules on state: whose names are in the zone, and what a record written by hand does to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.vnet import world
from undercroft.errors import Conflict, InvalidParameter
from undercroft.names import ResourceId
from undercroft.vnet import allocations, interfaces, registration, zones
from undercroft.vnet.zones import RecordSet

LINK = f"{world.NETWORK}/privateDnsZones/corp.example/virtualNetworkLinks"


def link(connection: Connection, zone: str, network: str, *, name: str = "auto", registers: bool = True) -> None:
    zones.add_link(connection, f"{zone}/virtualNetworkLinks/{name}", ResourceId.parse(zone), network, False, registers)


def shown(connection: Connection, zone: str) -> dict[str, tuple[tuple[str, ...], int, bool]]:
    return {
        one.name: (one.values, one.ttl, one.registered)
        for one in zones.list_record_sets(connection, zone)
        if one.type != "SOA"
    }


def by_hand(name: str, kind: str = "A", value: str = "192.0.2.1") -> RecordSet:
    return RecordSet(name, kind, 3600, (value,), (), "etag")


def test_the_vms_of_a_registering_network_have_records_while_they_are_there(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        network = world.network(connection)
        subnet = world.subnet(connection, network)
        zone = world.zone(connection, "corp.example")
        world.machine(connection, subnet, "WEB01")
        assert registration.follow_network(connection, network) == frozenset()
        link(connection, zone, network)
        assert registration.registration_zone(connection, network) == zone.lower()
        assert registration.follow_zones(connection, [zone]) == {zone.lower()}
        assert shown(connection, zone) == {"web01": (("10.0.0.4",), 10, True)}
        world.machine(connection, subnet, "db01")
        assert registration.follow_network(connection, network) == {zone.lower()}
        assert registration.follow_network(connection, network) == frozenset(), "nothing new, nothing written"
        assert shown(connection, zone)["db01"] == (("10.0.0.5",), 10, True)
        allocations.release(connection, f"{world.NETWORK}/networkInterfaces/WEB01-nic".lower())
        registration.follow_network(connection, network)
        assert set(shown(connection, zone)) == {"db01"}
        zones.remove_link(connection, f"{zone}/virtualNetworkLinks/auto")
        assert registration.follow_zones(connection, [zone]) == {zone.lower()}
        assert shown(connection, zone) == {}

    with world.database(tmp_path) as state:
        state.transact(check)


def test_an_endpoints_interfaces_are_no_vms(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        network = world.network(connection)
        world.endpoint(connection, world.subnet(connection, network), world.vault(connection))
        zone = world.zone(connection, "corp.example")
        link(connection, zone, network)
        assert registration.follow_zones(connection, [zone]) == frozenset()

    with world.database(tmp_path) as state:
        state.transact(check)


@pytest.mark.parametrize("kind", ["A", "CNAME"])
def test_what_is_written_by_hand_wins_until_it_is_deleted(tmp_path: Path, kind: str) -> None:
    """Azure's own answer to what happens then: overwritten; and registered again when the manual record is deleted."""

    def check(connection: Connection) -> None:
        network = world.network(connection)
        zone = world.zone(connection, "corp.example")
        link(connection, zone, network)
        world.machine(connection, world.subnet(connection, network), "web01")
        registration.follow_network(connection, network)
        record = by_hand("web01", kind, "192.0.2.1" if kind == "A" else "elsewhere.example.")
        registration.give_way(connection, zone, "web01")
        zones.put_record_set(connection, zone, record)
        registration.follow_network(connection, network)
        assert shown(connection, zone)["web01"] == (record.values, 3600, False)
        zones.delete_record_set(connection, zone, "web01", kind)
        registration.follow_zones(connection, [zone])
        assert shown(connection, zone)["web01"] == (("10.0.0.4",), 10, True)

    with world.database(tmp_path) as state:
        state.transact(check)


def test_a_vm_is_registered_again_when_the_endpoints_record_of_its_name_goes(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        network = world.network(connection)
        subnet = world.subnet(connection, network)
        vault = world.vault(connection)
        zone = world.zone(connection, "privatelink.we.backup.windowsazure.com")
        link(connection, zone, network)
        endpoint = world.endpoint(connection, subnet, vault)
        targets = world.zone_group(connection, endpoint, [zone])
        owned = allocations.of_owner(connection, endpoint.key)
        name = zones.endpoint_records(targets, owned)[0][1]
        world.machine(connection, subnet, name)
        registration.follow_network(connection, network)
        mine = shown(connection, zone)[name]
        assert mine[2]
        zones.write_records(connection, endpoint, targets, owned, 10)
        assert not shown(connection, zone)[name][2]
        assert registration.remove_records(connection, targets, owned) == {zone.lower()}
        assert shown(connection, zone) == {name: mine}

    with world.database(tmp_path) as state:
        state.transact(check)


def test_vms_of_one_name_share_the_record_set(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        zone = world.zone(connection, "corp.example")
        for number in (1, 2):
            prefix = f"10.{number}.0"
            network = world.network(connection, f"vnet{number}", [f"{prefix}.0/16"], {"snet": f"{prefix}.0/24"})
            link(connection, zone, network, name=f"auto{number}")
            subnet = world.subnet(connection, network)
            interface = interfaces.NetworkInterface(
                subnet.id,
                str(number),
                machine_id=f"{world.GROUP}{number}/providers/Microsoft.Compute/virtualMachines/web01",
            )
            key = world.put(connection, f"{world.NETWORK}/networkInterfaces/nic{number}", interface)
            allocations.allocate(connection, subnet, key, [None])
            registration.follow_network(connection, network)
        assert shown(connection, zone) == {"web01": (("10.1.0.4", "10.2.0.4"), 10, True)}

    with world.database(tmp_path) as state:
        state.transact(check)


def test_one_registration_zone_per_network_and_azures_limits_of_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zones, "LARGEST_REGISTERING", 2)
    monkeypatch.setattr(zones, "LARGEST_LINKS", 3)

    def check(connection: Connection) -> None:
        networks = [world.network(connection, f"n{number}") for number in range(5)]
        zone, other = world.zone(connection, "corp.example"), world.zone(connection, "other.example")
        link(connection, zone, networks[0])
        link(connection, zone, networks[0])  # the same link again
        with pytest.raises(InvalidParameter, match=r"registers in .*corp\.example"):
            link(connection, other, networks[0])
        link(connection, other, networks[0], registers=False)
        link(connection, zone, networks[1], name="l1")
        with pytest.raises(Conflict, match="2 virtual network links with auto-registration"):
            link(connection, zone, networks[2], name="l2")
        link(connection, zone, networks[2], name="l2", registers=False)
        with pytest.raises(Conflict, match="3 virtual network links"):
            link(connection, zone, networks[3], name="l3", registers=False)
        assert zones.count(connection, zone) == zones.Counts(1, 3, 2)

    with world.database(tmp_path) as state:
        state.transact(check)


def test_a_full_zone_registers_no_more_and_does_not_stop_the_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zones, "LARGEST_SETS", 2)

    def check(connection: Connection) -> None:
        network = world.network(connection)
        zone = world.zone(connection, "corp.example")
        link(connection, zone, network)
        for name in ("a1", "b2"):
            world.machine(connection, world.subnet(connection, network), name)
            registration.follow_network(connection, network)
        assert set(shown(connection, zone)) == {"a1"}

    with world.database(tmp_path) as state:
        state.transact(check)


def test_a_zone_and_one_below_it_are_linked_side_by_side_and_the_same_name_twice_is_not(tmp_path: Path) -> None:
    """Azure refuses overlapping namespaces of equal name (pains B14); a child zone takes the place of a delegation."""

    def check(connection: Connection) -> None:
        network = world.network(connection)
        for name in ("corp.example", "dev.corp.example", "privatelink.blob.core.windows.net"):
            world.zone(connection, name, [network])
        twin = "/subscriptions/5c7a8b1e-0000-0000-0000-000000000001/resourceGroups/rg2/providers/Microsoft.Network/privateDnsZones"
        with pytest.raises(InvalidParameter, match="overlapping namespaces") as caught:
            link(connection, f"{twin}/privatelink.blob.core.windows.net", network, registers=False)
        assert caught.value.code == "BadRequest"

    with world.database(tmp_path) as state:
        state.transact(check)
