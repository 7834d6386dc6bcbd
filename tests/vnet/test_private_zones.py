"""Zones, links, record sets, and what zone groups write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.vnet import world
from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.state import schema
from undercroft.vnet import allocations, zones
from undercroft.vnet.zones import RecordSet, ZoneTarget

BACKUP_ZONE = "privatelink.we.backup.windowsazure.com"


def record(name: str, kind: str = "A", *values: str) -> RecordSet:
    return RecordSet(name, kind, 300, values or ("10.0.0.4",), (), "etag")


@pytest.mark.parametrize("name", ["one", "a..b", "-a.b", "a-.b", "ä.b", "x" * 64 + ".b", ".".join(["a"] * 35)])
def test_wrong_zone_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameter):
        zones.check_zone_name(name)


def test_reserved_zone_names_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="reserved"):
        zones.check_zone_name("Core.Windows.Net")
    assert zones.check_zone_name("PrivateLink.Blob.core.windows.net") == "privatelink.blob.core.windows.net"


def test_relative_names() -> None:
    assert zones.check_relative_name("*.A", "b.c") == "*.a"
    assert zones.check_relative_name("@", "b.c") == "@"
    for wrong in ("", "a b", "*", "a.*", "x" * 64):
        if wrong == "*":
            continue
        with pytest.raises(InvalidParameter):
            zones.check_relative_name(wrong, "b.c")


@pytest.mark.parametrize(
    ("zone", "fqdn", "name"),
    [
        (BACKUP_ZONE, f"7-ab-pod01-fc1.{BACKUP_ZONE}", "7-ab-pod01-fc1"),
        ("privatelink.eus.backup.windowsazure.com", f"7-ab-pod01-fc1.{BACKUP_ZONE}", None),
        ("privatelink.backup.windowsazure.com", f"7-ab-pod01-fc1.{BACKUP_ZONE}", None),
        ("privatelink.blob.core.windows.net", "acct.blob.core.windows.net", "acct"),
        ("privatelink.queue.core.windows.net", "acct.blob.core.windows.net", None),
        ("blob.core.windows.net", "acct.blob.core.windows.net", None),
        ("PrivateLink.Blob.Core.Windows.Net", "Acct.blob.core.windows.net", "acct"),
        ("privatelink.blob.storage.azure.net", "acct.z07.blob.storage.azure.net", "acct.z07"),
        ("privatelink.blob.core.windows.net", "acct.z07.blob.storage.azure.net", None),
        ("privatelink.blob.storage.azure.net", "acct.www.blob.storage.azure.net", None),
        ("privatelink.blob.storage.azure.net", "acct.blob.core.windows.net", None),
    ],
)
def test_a_record_is_placed_in_the_one_zone_that_is_for_it(zone: str, fqdn: str, name: str | None) -> None:
    assert zones.relative_name(zone, fqdn) == name


def test_a_network_is_linked_to_one_zone_of_a_name(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        one, two = world.network(connection), world.network(connection, "vnet2")
        first = ResourceId.parse(world.zone(connection, BACKUP_ZONE, [one]))
        other = ResourceId.parse(str(first).replace("/rg/", "/other/"))
        with pytest.raises(Conflict) as twice:
            zones.add_link(connection, f"{first}/virtualNetworkLinks/again", first, one, False)
        assert twice.value.code == "VirtualNetworkLinkAlreadyExists"
        with pytest.raises(InvalidParameter, match="overlapping namespaces"):
            zones.add_link(connection, f"{other}/virtualNetworkLinks/l", other, one, False)
        zones.add_link(connection, f"{other}/virtualNetworkLinks/l", other, two, True)
        assert {key: [zone.key for zone in seen] for key, seen in zones.all_links(connection).items()} == {
            one: [first.key],
            two: [other.key],
        }
        assert [zone.nxdomain_redirect for zone in zones.linked_zones(connection, two)] == [True]
        zones.add_link(connection, f"{other}/virtualNetworkLinks/l", other, two, False)
        assert [zone.nxdomain_redirect for zone in zones.linked_zones(connection, two)] == [False]
        zones.remove_link(connection, f"{other}/virtualNetworkLinks/L")
        assert zones.linked_zones(connection, two) == ()
        zones.drop_links_of_network(connection, one)
        assert zones.linked_zones(connection, one) == ()

    with world.database(tmp_path) as state:
        state.transact(check)


def test_nxdomain_redirect_is_for_privatelink_zones(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        with pytest.raises(InvalidParameter, match="privatelink"):
            world.zone(connection, "corp.example", [world.network(connection)], redirect=True)

    with world.database(tmp_path) as state:
        state.transact(check)


def test_record_sets_are_kept_listed_and_deleted(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        zone = world.zone(connection, "corp.example")
        zones.put_record_set(connection, zone, record("www"))
        zones.put_record_set(
            connection, zone, replace(record("www", "A", "10.0.0.5", "10.0.0.6"), metadata=(("k", "v"),))
        )
        zones.put_record_set(connection, zone, record("www", "TXT", '"a"'))
        zones.put_record_set(connection, zone, record("mail"))
        found = zones.get_record_set(connection, zone, "WWW", "a")
        assert found is not None and found.values == ("10.0.0.5", "10.0.0.6") and found.metadata == (("k", "v"),)
        listed = zones.list_record_sets(connection, zone)
        assert [(one.name, one.type) for one in listed] == [("@", "SOA"), ("mail", "A"), ("www", "A"), ("www", "TXT")]
        assert [one.name for one in zones.list_record_sets(connection, zone, "A", after=("mail", "A"))] == ["www"]
        assert len(zones.list_record_sets(connection, zone, suffix="w", limit=1)) == 1
        assert zones.count(connection, zone) == zones.Counts(4, 0, 0)
        assert zones.delete_record_set(connection, zone, "www", "A")
        assert not zones.delete_record_set(connection, zone, "www", "A")

    with world.database(tmp_path) as state:
        state.transact(check)


def test_a_cname_stands_alone(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        zone = world.zone(connection, "corp.example")
        zones.put_record_set(connection, zone, record("www"))
        with pytest.raises(Conflict, match="alone"):
            zones.put_record_set(connection, zone, record("www", "CNAME", "a.example."))
        zones.put_record_set(connection, zone, record("alias", "CNAME", "a.example."))
        with pytest.raises(Conflict, match="alone"):
            zones.put_record_set(connection, zone, record("alias"))

    with world.database(tmp_path) as state:
        state.transact(check)


def test_a_zone_group_names_zones_that_exist_and_differ(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        zone = world.zone(connection, BACKUP_ZONE)
        zones.check_group(connection, [ZoneTarget("a", zone)])
        with pytest.raises(NotFound, match="creates no zones") as missing:
            zones.check_group(connection, [ZoneTarget("a", zone.replace(".we.", ".eus."))])
        assert missing.value.code == "PrivateDnsZoneNotFound"
        for targets in (
            [ZoneTarget("a", zone), ZoneTarget("b", zone)],
            [ZoneTarget("a", zone), ZoneTarget("A", zone.replace(".we.", ".eus."))],
        ):
            with pytest.raises(InvalidParameter) as double:
                zones.check_group(connection, targets)
            assert double.value.code == "DuplicateResourceName"
        with pytest.raises(InvalidParameter, match="not a private DNS zone"):
            zones.check_group(connection, [ZoneTarget("a", world.network(connection))])
        with pytest.raises(InvalidParameter, match="at most 5"):
            zones.check_group(connection, [ZoneTarget(str(number), zone) for number in range(6)])

    with world.database(tmp_path) as state:
        state.transact(check)


def test_records_of_an_endpoint_are_written_and_removed(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        network = world.network(connection)
        vault = world.vault(connection)
        endpoint = world.endpoint(connection, world.subnet(connection, network), vault)
        zone = world.zone(connection, BACKUP_ZONE, [network])
        blob = world.zone(connection, "privatelink.blob.core.windows.net")
        targets = world.zone_group(connection, endpoint, [zone, blob])
        assert zones.group_of(connection, endpoint.key) == targets
        owned = allocations.of_owner(connection, endpoint.key)
        assert zones.write_records(connection, endpoint, targets, owned, 10) == {zone.lower()}
        assert zones.write_records(connection, endpoint, targets, owned, 10) == frozenset()
        name = f"{vault.vault_id}-ab-pod01-id1"
        found = zones.get_record_set(connection, zone, name, "A")
        assert found is not None and found.ttl == 10 and found.endpoint_key == endpoint.key
        guid = endpoint.value.resource_guid
        assert dict(found.metadata) == {"creator": f"created by private endpoint pe1 with resource guid {guid}"}
        assert zones.count(connection, zone) == zones.Counts(9, 1, 0) and zones.count(connection, blob) == zones.Counts(
            1, 0, 0
        )
        with pytest.raises(Conflict, match="virtual network link"):
            zones.delete_zone(connection, zone)
        zones.remove_link(connection, f"{zone}/virtualNetworkLinks/link0")
        assert zones.remove_records(connection, targets, owned) == {zone.lower()}
        assert zones.remove_records(connection, targets, owned) == frozenset()
        with pytest.raises(Conflict, match=r"zone group .*/privateDnsZoneGroups/default"):
            zones.delete_zone(connection, zone)
        mine = schema.resources.c.key == f"{endpoint.key}/privatednszonegroups/default"
        connection.execute(schema.resources.delete().where(mine))
        zones.delete_zone(connection, zone)
        assert zones.list_record_sets(connection, zone) == ()

    with world.database(tmp_path) as state:
        state.transact(check)


def test_two_endpoints_of_one_vault_overwrite_each_other_in_a_shared_zone(tmp_path: Path) -> None:
    """As in Azure (pains B13): the last to write has the record, and either's removal takes it away."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        zone = world.zone(connection, BACKUP_ZONE)
        made = []
        for number in ("1", "2"):
            network = world.network(
                connection, f"vnet{number}", [f"10.{number}.0.0/16"], {"snet": f"10.{number}.0.0/24"}
            )
            endpoint = world.endpoint(connection, world.subnet(connection, network), vault, f"pe{number}")
            targets = world.zone_group(connection, endpoint, [zone])
            owned = allocations.of_owner(connection, endpoint.key)
            zones.write_records(connection, endpoint, targets, owned, 10)
            made.append((endpoint, targets, owned))
        name = f"{vault.vault_id}-ab-pod01-id1"
        found = zones.get_record_set(connection, zone, name, "A")
        assert found is not None and found.values[0].startswith("10.2.") and found.endpoint_key == made[1][0].key
        zones.remove_records(connection, made[0][1], made[0][2])
        assert zones.get_record_set(connection, zone, name, "A") is None

    with world.database(tmp_path) as state:
        state.transact(check)
