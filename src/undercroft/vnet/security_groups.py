"""Network security groups, and what they are associated with: subnets and interfaces (their *members*), one group each.

Both the group of its subnet and its own stand before an interface. They stand before the endpoints of a subnet only where the subnet's
``privateEndpointNetworkPolicies`` says so, and then only the subnet's group, with its inbound rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, delete, insert, select

from undercroft.errors import Conflict, NotFound
from undercroft.names import ResourceId
from undercroft.state.schema import resources, security_group_associations
from undercroft.vnet.security_rules import SecurityRule

__all__ = [
    "GROUP_TYPE",
    "JOIN",
    "MOST_IN_NETWORK",
    "POLICIES_WITH_GROUPS",
    "GroupRecord",
    "SecurityGroup",
    "associate",
    "check_room",
    "check_unused",
    "in_network",
    "members",
    "networks",
    "of_member",
]

GROUP_TYPE = "microsoft.network/networksecuritygroups"
JOIN = "Microsoft.Network/networkSecurityGroups/join/action"
POLICIES_WITH_GROUPS = ("Enabled", "NetworkSecurityGroupEnabled")
"""Values of ``privateEndpointNetworkPolicies`` by which security groups apply to endpoints."""
MOST_IN_NETWORK = 200_000
"""Addresses and ports that the rules of all groups of one network name together. Ours: the network is told to the fabric in one message
(64 MiB; these are some 10 MiB of it) and carried out as one table."""

_members = security_group_associations


class SecurityGroup(msgspec.Struct, frozen=True):
    """The stored body of a group."""

    resource_guid: str
    rules: tuple[SecurityRule, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupRecord:
    key: str
    id: str
    value: SecurityGroup


def associate(connection: Connection, member_key: str, network_key: str, group: ResourceId | None, region: str) -> None:
    """Make ``group`` the one of this subnet or interface, or leave it without one. The group is in the network's subscription and
    region, or ``InvalidResourceReference`` says so; and the network has room for it (``check_room``)."""
    member_key, network_key = member_key.lower(), network_key.lower()
    connection.execute(delete(_members).where(_members.c.member_key == member_key))
    if group is None:
        return
    row = connection.execute(
        select(resources.c.location).where(resources.c.key == group.key, resources.c.type == GROUP_TYPE)
    ).one_or_none()
    subscription = ResourceId.parse(network_key).subscription
    if row is None or row.location != region or (group.subscription or "").lower() != subscription:
        raise NotFound(
            f"The network security group {group} referenced by {member_key} was not found. Make sure that it exists, in the same "
            f"subscription and region ({region}) as the virtual network.",
            code="InvalidResourceReference",
            target="properties.networkSecurityGroup.id",
        )
    connection.execute(insert(_members).values(member_key=member_key, group_key=group.key, network_key=network_key))
    check_room(connection, [network_key])


def of_member(connection: Connection, member_key: str) -> GroupRecord | None:
    row = connection.execute(
        select(resources.c.key, resources.c.id, resources.c.body)
        .join(_members, _members.c.group_key == resources.c.key)
        .where(_members.c.member_key == member_key.lower())
    ).one_or_none()
    return None if row is None else GroupRecord(row.key, row.id, msgspec.json.decode(row.body, type=SecurityGroup))


def in_network(connection: Connection, network_key: str) -> dict[str, GroupRecord]:
    """The groups that stand somewhere in the network, by the key of what each is associated with."""
    rows = connection.execute(
        select(_members.c.member_key, _members.c.group_key, resources.c.id, resources.c.body)
        .join(resources, resources.c.key == _members.c.group_key)
        .where(_members.c.network_key == network_key.lower())
        .order_by(_members.c.member_key)
    ).all()
    groups = {
        row.group_key: GroupRecord(row.group_key, row.id, msgspec.json.decode(row.body, type=SecurityGroup))
        for row in rows
    }
    return {row.member_key: groups[row.group_key] for row in rows}


def check_room(connection: Connection, network_keys: Iterable[str]) -> None:
    """``Conflict`` for the first of these networks whose groups have more than a network can carry out. A group counts once."""
    for key in network_keys:
        groups = {group.key: group.value.rules for group in in_network(connection, key).values()}
        named = sum(rule.named for rules in groups.values() for rule in rules)
        if named > MOST_IN_NETWORK:
            raise Conflict(
                f"The rules of the {len(groups)} network security groups in {key} would name {named:,} addresses and ports; "
                f"{MOST_IN_NETWORK:,} are possible in one virtual network. Let subnets share a group, or use tags and larger ranges.",
                code="SecurityRulesOfNetworkLimitReached",
            )


def members(connection: Connection, group_key: str) -> tuple[str, ...]:
    """Ids of the subnets and interfaces with this group."""
    query = select(resources.c.id).join(_members, _members.c.member_key == resources.c.key)
    return tuple(connection.execute(query.where(_members.c.group_key == group_key).order_by(resources.c.key)).scalars())


def networks(connection: Connection, group_key: str) -> tuple[str, ...]:
    """Keys of the networks in which this group stands somewhere."""
    query = select(_members.c.network_key).where(_members.c.group_key == group_key).distinct()
    return tuple(connection.execute(query.order_by(_members.c.network_key)).scalars())


def check_unused(connection: Connection, group: ResourceId) -> None:
    users = members(connection, group.key)
    if users:
        raise Conflict(
            f"Network security group {group} cannot be deleted because it is in use by the following resources: "
            f"{', '.join(users)}. Remove the association with them first.",
            code="InUseNetworkSecurityGroupCannotBeDeleted",
            target=str(group),
        )
