"""Network interfaces: of VMs (one address, a host in the fabric) and of private endpoints (one address per member)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from undercroft.names import ResourceId
from undercroft.state.schema import allocations, resources

__all__ = ["INTERFACE_TYPE", "Host", "InterfaceRecord", "NetworkInterface", "get", "hosts"]

INTERFACE_TYPE = "microsoft.network/networkinterfaces"


class NetworkInterface(msgspec.Struct, frozen=True):
    """The stored body of a network interface. Exactly one of ``machine_id`` and ``endpoint_id`` is set."""

    subnet_id: str
    resource_guid: str
    configuration_name: str = "ipconfig1"
    machine_id: str = ""
    endpoint_id: str = ""


@dataclass(frozen=True, slots=True)
class InterfaceRecord:
    key: str
    id: str
    name: str
    region: str
    value: NetworkInterface


@dataclass(frozen=True, slots=True)
class Host:
    """A VM as the fabric needs it."""

    machine_key: str
    name: str
    address: IPv4Address
    interface_key: str = ""
    subnet_key: str = ""


def _read(row: Row[Any]) -> InterfaceRecord:
    value = msgspec.json.decode(row.body, type=NetworkInterface)
    return InterfaceRecord(row.key, row.id, row.name, row.location, value)


def get(connection: Connection, key: str) -> InterfaceRecord | None:
    row = connection.execute(
        select(resources).where(resources.c.key == key.lower(), resources.c.type == INTERFACE_TYPE)
    ).one_or_none()
    return None if row is None else _read(row)


def hosts(connection: Connection, network_key: str) -> tuple[Host, ...]:
    """The VMs of a network, by address."""
    rows = connection.execute(
        select(allocations.c.address, allocations.c.subnet_key, resources.c.key, resources.c.body)
        .join(resources, resources.c.key == allocations.c.owner_key)
        .where(
            allocations.c.network_key == network_key.lower(),
            allocations.c.member_fqdn.is_(None),
            resources.c.type == INTERFACE_TYPE,
        )
        .order_by(allocations.c.id)
    )
    found = []
    for row in rows:
        value = msgspec.json.decode(row.body, type=NetworkInterface)
        if value.machine_id:
            machine = ResourceId.parse(value.machine_id)
            found.append(Host(machine.key, machine.name, IPv4Address(row.address), row.key, row.subnet_key))
    return tuple(found)
