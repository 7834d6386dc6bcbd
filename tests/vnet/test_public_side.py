"""The public side: fixed addresses, and storage names that get a CNAME only while an endpoint is approved."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

from sqlalchemy import Connection

from tests.vnet import world
from undercroft.names import regions
from undercroft.vault import connections, members
from undercroft.vault.connections import Status
from undercroft.vnet import publicside

RANGE = "203.0.113.0/24"


def test_every_service_has_a_public_door() -> None:
    doors = publicside.public_doors("/net", RANGE)
    assert {str(address): door.service for address, door in doors.items()} == {
        "203.0.113.10": "backup",
        "203.0.113.11": "blob",
        "203.0.113.12": "queue",
        "203.0.113.20": "login",
        "203.0.113.21": "management",
    }
    assert all(door.public and door.network == "/net" for door in doors.values())


def test_login_and_management_can_be_closed() -> None:
    assert set(publicside.public_addresses(RANGE, False)) == {"backup", "blob", "queue"}
    assert world.SUFFIXES.login not in publicside.public_hosts(world.SUFFIXES, RANGE, False)


def test_the_backup_service_of_every_region_has_its_eight_names() -> None:
    hosts = publicside.public_hosts(world.SUFFIXES, RANGE)
    assert hosts["pod01-id1.we.backup.windowsazure.com"] == IPv4Address("203.0.113.10")
    assert hosts["login.undercroft.internal"] == IPv4Address("203.0.113.20")
    assert len(hosts) == 8 * len({place.geo_code for place in regions().values()}) + 2


def test_the_cname_of_a_storage_name_follows_approval(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        subnet = world.subnet(connection, world.network(connection))
        endpoint = world.endpoint(connection, subnet, vault, approved=False)
        members.add_account(connection, vault.key, "abc12345ecs01")
        name = "abc12345ecs01.blob.core.windows.net"
        other = world.vault(connection, "other")
        members.add_account(connection, other.key, "def12345ecs01")

        def names() -> tuple[dict[str, IPv4Address], dict[str, str]]:
            return publicside.public_accounts(connection, world.SUFFIXES, RANGE, [vault.key])[vault.key]

        assert set(publicside.public_accounts(connection, world.SUFFIXES, RANGE)) == {vault.key, other.key}
        assert publicside.public_accounts(connection, world.SUFFIXES, RANGE, ["nobody"]) == {}
        hosts, aliases = names()
        assert hosts[name] == IPv4Address("203.0.113.11") and aliases == {}
        state = connections.of_endpoint(connection, endpoint.key)
        assert state is not None
        state = connections.transition(connection, state, Status.APPROVED)
        _, aliases = names()
        assert aliases[name] == "abc12345ecs01.privatelink.blob.core.windows.net"
        connections.transition(connection, state, Status.REJECTED)
        assert names()[1] == {}

    with world.database(tmp_path) as state_database:
        state_database.transact(check)
