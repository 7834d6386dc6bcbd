"""A small world in state: networks, vaults and endpoints put there as the providers put them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert

from undercroft.clock import timestamp
from undercroft.names import NameSuffixes, ResourceId
from undercroft.state.database import Database
from undercroft.state.schema import resources
from undercroft.vault import connections, members, vaults
from undercroft.vnet import allocations, endpoints, interfaces, networks, zones
from undercroft.vnet.endpoints import EndpointRecord, Group, PrivateEndpoint

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
GROUP = "/subscriptions/5c7a8b1e-0000-0000-0000-000000000001/resourceGroups/rg"
NETWORK = f"{GROUP}/providers/Microsoft.Network"
SUFFIXES = NameSuffixes()


@contextmanager
def database(folder: Path) -> Iterator[Database]:
    opened = Database.open(folder / "state.db")
    try:
        yield opened
    finally:
        opened.close()


def put(connection: Connection, resource_id: str, value: msgspec.Struct, location: str = "westeurope") -> str:
    found = ResourceId.parse(resource_id)
    assert found.parent is not None
    connection.execute(
        insert(resources).values(
            key=found.key,
            id=resource_id,
            type=found.type.lower(),
            subscription=found.subscription,
            group_key=GROUP.lower(),
            parent_key=found.parent.key,
            name=found.name,
            location=location,
            body=msgspec.json.encode(value),
            etag=str(uuid.uuid4()),
            provisioning_state="Succeeded",
            created=timestamp(NOW),
            changed=timestamp(NOW),
        )
    )
    return found.key


def network(
    connection: Connection,
    name: str = "vnet1",
    prefixes: Sequence[str] = ("10.0.0.0/16",),
    subnets: Mapping[str, str] | None = None,
    resolvers: Sequence[str] = (),
) -> str:
    value = networks.VirtualNetwork(tuple(prefixes), str(uuid.uuid4()), tuple(resolvers))
    key = put(connection, f"{NETWORK}/virtualNetworks/{name}", value)
    for subnet, prefix in ({"snet": "10.0.0.0/24"} if subnets is None else subnets).items():
        put(connection, f"{NETWORK}/virtualNetworks/{name}/subnets/{subnet}", networks.Subnet(prefix))
    return key


def subnet(connection: Connection, network_key: str, name: str = "snet") -> networks.SubnetRecord:
    found = networks.get_subnet(connection, f"{network_key}/subnets/{name}")
    assert found is not None
    return found


def vault(connection: Connection, name: str = "vault1", region: str = "westeurope") -> vaults.VaultRecord:
    key = put(connection, f"{GROUP}/providers/Microsoft.RecoveryServices/vaults/{name}", vaults.Vault(), region)
    vaults.create(connection, key, region, SUFFIXES, NOW)
    return vaults.require(connection, key)


def endpoint(
    connection: Connection,
    subnet: networks.SubnetRecord,
    vault: vaults.VaultRecord,
    name: str = "pe1",
    approved: bool = True,
) -> EndpointRecord:
    value = PrivateEndpoint(
        subnet.id, vault.id, Group.BACKUP, not approved, f"{name}conn", str(uuid.uuid4()), f"{name}.nic.{uuid.uuid4()}"
    )
    endpoint_id = f"{NETWORK}/privateEndpoints/{name}"
    key = put(connection, endpoint_id, value)
    allocations.allocate(connection, subnet, key, [one.fqdn for one in members.of_vault(connection, vault.key)])
    connections.open_connection(
        connection,
        vault,
        endpoint_id=endpoint_id,
        endpoint_name=name,
        group=Group.BACKUP,
        approved=approved,
        description="None",
        now=NOW,
    )
    found = endpoints.get(connection, key)
    assert found is not None
    return found


def machine(connection: Connection, subnet: networks.SubnetRecord, name: str = "vm1") -> str:
    machine_id = f"{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}"
    value = interfaces.NetworkInterface(subnet.id, str(uuid.uuid4()), machine_id=machine_id)
    key = put(connection, f"{NETWORK}/networkInterfaces/{name}-nic", value)
    allocations.allocate(connection, subnet, key, [None])
    return machine_id.lower()


class Empty(msgspec.Struct, frozen=True):
    pass


def zone(connection: Connection, name: str, linked: Sequence[str] = (), redirect: bool = False) -> str:
    zone_id = f"{NETWORK}/privateDnsZones/{name}"
    put(connection, zone_id, Empty(), "global")
    zones.create_zone(connection, ResourceId.parse(zone_id))
    for number, network_key in enumerate(linked):
        link = f"{zone_id}/virtualNetworkLinks/link{number}"
        zones.add_link(connection, link, ResourceId.parse(zone_id), network_key, redirect)
        put(connection, link, zones.Link(network_key), "global")
    return zone_id


def zone_group(
    connection: Connection, endpoint: EndpointRecord, zone_ids: Sequence[str]
) -> tuple[zones.ZoneTarget, ...]:
    targets = tuple(zones.ZoneTarget(f"cfg{number}", zone_id) for number, zone_id in enumerate(zone_ids))
    zones.check_group(connection, targets)
    put(connection, f"{endpoint.id}/privateDnsZoneGroups/default", zones.ZoneGroup(targets))
    return targets
