"""Addresses of a subnet: who has which. The table's unique constraints are the last word; this is the order of giving out.

The lowest free address first. An endpoint's address is ``Reserved`` until address, door and record are made, then ``Ready``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from undercroft.errors import Conflict
from undercroft.state.schema import allocations
from undercroft.vnet.networks import SubnetRecord, usable

__all__ = [
    "Allocation",
    "account_ready",
    "allocate",
    "capacity",
    "extend",
    "free_count",
    "of_network",
    "of_owner",
    "release",
    "set_ready",
    "subnet_owners",
]


@dataclass(frozen=True, slots=True)
class Allocation:
    id: int
    subnet_key: str
    network_key: str
    address: IPv4Address
    owner_key: str
    member_fqdn: str | None
    ready: bool


def _free(connection: Connection, subnet_key: str, prefix: IPv4Network) -> Iterator[IPv4Address]:
    taken = {
        int(IPv4Address(text))
        for text in connection.execute(
            select(allocations.c.address).where(allocations.c.subnet_key == subnet_key)
        ).scalars()
    }
    return (IPv4Address(candidate) for candidate in usable(prefix) if candidate not in taken)


def capacity(prefix: IPv4Network) -> int:
    """How many addresses a subnet of this size can give out."""
    return len(usable(prefix))


def free_count(connection: Connection, subnet: SubnetRecord) -> int:
    used = connection.execute(
        select(func.count()).select_from(allocations).where(allocations.c.subnet_key == subnet.key)
    ).scalar_one()
    return capacity(subnet.value.prefix) - used


def allocate(
    connection: Connection, subnet: SubnetRecord, owner_key: str, members: Sequence[str | None]
) -> tuple[Allocation, ...]:
    """One address for each of ``members`` (None: a network interface), or ``SubnetIsFull`` and none at all."""
    free = free_count(connection, subnet)
    if free < len(members):
        raise Conflict(
            f"Subnet {subnet.id} ({subnet.value.address_prefix}) is full: {len(members)} addresses are needed and {free} are "
            f"free. Use a larger subnet (a /25 is recommended for the endpoints of vaults) or free addresses in this one.",
            code="SubnetIsFull",
            target=subnet.id,
        )
    return _give(connection, subnet, owner_key, members)


def extend(
    connection: Connection, subnet: SubnetRecord, owner_key: str, members: Sequence[str]
) -> tuple[tuple[Allocation, ...], int]:
    """As many addresses for ``members`` as there are; and how many are missing."""
    possible = members[: max(0, free_count(connection, subnet))]
    return _give(connection, subnet, owner_key, possible), len(members) - len(possible)


def _give(
    connection: Connection, subnet: SubnetRecord, owner_key: str, members: Sequence[str | None]
) -> tuple[Allocation, ...]:
    given = []
    for member, free in zip(members, _free(connection, subnet.key, subnet.value.prefix), strict=False):
        identity = connection.execute(
            insert(allocations)
            .values(
                subnet_key=subnet.key,
                network_key=subnet.network_key,
                address=str(free),
                owner_key=owner_key.lower(),
                member_fqdn=member,
                state="Reserved",
            )
            .returning(allocations.c.id)
        ).scalar_one()
        given.append(Allocation(identity, subnet.key, subnet.network_key, free, owner_key.lower(), member, False))
    return tuple(given)


def _read(row: Row[Any]) -> Allocation:
    return Allocation(
        row.id,
        row.subnet_key,
        row.network_key,
        IPv4Address(row.address),
        row.owner_key,
        row.member_fqdn,
        row.state == "Ready",
    )


def of_owner(connection: Connection, owner_key: str) -> tuple[Allocation, ...]:
    """In the order in which they were given."""
    rows = connection.execute(
        select(allocations).where(allocations.c.owner_key == owner_key.lower()).order_by(allocations.c.id)
    )
    return tuple(_read(row) for row in rows)


def of_network(connection: Connection, network_key: str) -> tuple[Allocation, ...]:
    rows = connection.execute(
        select(allocations).where(allocations.c.network_key == network_key.lower()).order_by(allocations.c.id)
    )
    return tuple(_read(row) for row in rows)


def subnet_owners(connection: Connection, subnet_key: str) -> tuple[str, ...]:
    """Keys of the endpoints and interfaces that hold addresses of the subnet."""
    rows = connection.execute(
        select(allocations.c.owner_key)
        .where(allocations.c.subnet_key == subnet_key.lower())
        .distinct()
        .order_by(allocations.c.owner_key)
    )
    return tuple(rows.scalars())


def set_ready(connection: Connection, ids: Collection[int], ready: bool) -> None:
    if ids:
        connection.execute(
            update(allocations).where(allocations.c.id.in_(tuple(ids))).values(state="Ready" if ready else "Reserved")
        )


def release(connection: Connection, owner_key: str) -> None:
    connection.execute(delete(allocations).where(allocations.c.owner_key == owner_key.lower()))


def account_ready(connection: Connection, endpoint_key: str, fqdns: Collection[str]) -> bool:
    """Whether every one of ``fqdns`` has address, door and record on this endpoint (DESIGN section 6, rule 3)."""
    ready = connection.execute(
        select(func.count())
        .select_from(allocations)
        .where(
            allocations.c.owner_key == endpoint_key.lower(),
            allocations.c.member_fqdn.in_(tuple(fqdns)),
            allocations.c.state == "Ready",
        )
    ).scalar_one()
    return ready == len(set(fqdns))
