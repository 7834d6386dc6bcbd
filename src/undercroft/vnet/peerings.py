"""Peerings: which states one goes through, and what may be peered with what. ``reach`` says what follows for packets.

Each side is a resource of its own, in its own network, and knows the other side only by finding the one that faces it:

    (none)       ── put ──> Initiated      nothing faces it yet
    (none)       ── put ──> Connected      what faces it was Initiated, and becomes Connected as well
    Initiated    ── the other side is put ──> Connected
    Connected    ── the other side, or its network, is deleted ──> Disconnected
    Disconnected ── put again ──> Initiated      only then the other side can be created again (RemotePeeringIsDisconnected)

A side keeps the address space of the other as it was when they were connected or last synchronised, and only that is reached: a range
that a network is given later passes when the other side was *synchronised* (Microsoft Learn, 'Update the address space for a
peered virtual network').
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

import msgspec
from sqlalchemy import Connection, select

from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.state.schema import resources
from undercroft.vnet.networks import NETWORK_TYPE, NetworkRecord

__all__ = [
    "PEERING_TYPE",
    "Peering",
    "PeeringRecord",
    "State",
    "SyncLevel",
    "check_pair",
    "check_remote",
    "connect",
    "disconnected",
    "facing",
    "live",
    "of_network",
    "of_networks",
    "sync_level",
]

PEERING_TYPE = "microsoft.network/virtualnetworks/virtualnetworkpeerings"


class State(StrEnum):
    INITIATED = "Initiated"
    CONNECTED = "Connected"
    DISCONNECTED = "Disconnected"


class SyncLevel(StrEnum):
    """Whose knowledge of the other's address space is old; ``local`` is the side that is asked."""

    BOTH_KNOW = "FullyInSync"
    LOCAL_OLD = "LocalNotInSync"
    REMOTE_OLD = "RemoteNotInSync"
    BOTH_OLD = "LocalAndRemoteNotInSync"


class Peering(msgspec.Struct, frozen=True):
    """The stored body of one side."""

    remote_id: str
    resource_guid: str
    remote_prefixes: tuple[str, ...]
    state: str = State.INITIATED
    allow_virtual_network_access: bool = True
    allow_forwarded_traffic: bool = False
    """Kept for clients: no packet exists that it would decide about (docs/peerings.md)."""
    allow_gateway_transit: bool = False
    use_remote_gateways: bool = False

    @property
    def remote_key(self) -> str:
        return self.remote_id.lower()

    @property
    def remote_space(self) -> tuple[IPv4Network, ...]:
        return tuple(IPv4Network(text) for text in self.remote_prefixes)

    @property
    def connected(self) -> bool:
        return self.state == State.CONNECTED


@dataclass(frozen=True, slots=True)
class PeeringRecord:
    key: str
    id: str
    name: str
    network_key: str
    value: Peering


def of_networks(connection: Connection, network_keys: Collection[str]) -> tuple[PeeringRecord, ...]:
    """Every side that is a resource of one of these networks, by key."""
    rows = connection.execute(
        select(resources)
        .where(resources.c.parent_key.in_([key.lower() for key in network_keys]), resources.c.type == PEERING_TYPE)
        .order_by(resources.c.key)
    )
    return tuple(
        PeeringRecord(row.key, row.id, row.name, row.parent_key, msgspec.json.decode(row.body, type=Peering))
        for row in rows
    )


def of_network(connection: Connection, network_key: str) -> tuple[PeeringRecord, ...]:
    return of_networks(connection, [network_key])


def facing(connection: Connection, network_key: str, remote_key: str) -> PeeringRecord | None:
    """The other side: the remote network's peering with this one."""
    found = of_network(connection, remote_key)
    return next((one for one in found if one.value.remote_key == network_key.lower()), None)


def live(connection: Connection, network_key: str) -> tuple[tuple[PeeringRecord, PeeringRecord], ...]:
    """The sides of this network that carry packets, each with the side that faces it: both are Connected, and both give access."""
    own = [one for one in of_network(connection, network_key) if one.value.connected]
    remote = of_networks(connection, [one.value.remote_key for one in own]) if own else ()
    faces = {one.network_key: one for one in remote if one.value.remote_key == network_key.lower()}
    return tuple(
        (one, other)
        for one in own
        if (other := faces.get(one.value.remote_key)) is not None
        and other.value.connected
        and one.value.allow_virtual_network_access
        and other.value.allow_virtual_network_access
    )


def check_remote(network_id: ResourceId, remote_id: object) -> ResourceId:
    """The id of the remote network in a request, or the error that says what is wrong with it."""
    target = "properties.remoteVirtualNetwork.id"
    if not isinstance(remote_id, str) or not remote_id:
        raise InvalidParameter("A peering needs the id of the remote virtual network.", target=target)
    found = ResourceId.parse(remote_id)
    if found.type.lower() != NETWORK_TYPE:
        raise InvalidParameter(f"'{remote_id}' is not the id of a virtual network.", target=target)
    if found.key == network_id.key:
        raise InvalidParameter(
            f"The virtual network {network_id.name} cannot be peered with itself.",
            code="VnetCannotBePeeredWithItself",
            target=target,
        )
    return found


def check_pair(
    peering: ResourceId,
    before: PeeringRecord | None,
    siblings: Iterable[PeeringRecord],
    remote: NetworkRecord | None,
    remote_id: ResourceId,
    other: PeeringRecord | None,
) -> NetworkRecord:
    """What Azure refuses before it looks at addresses. ``other`` faces the one that is put. Returns the remote network."""
    if remote is None:
        raise NotFound(
            f"The remote virtual network {remote_id} was not found.",
            code="InvalidResourceReference",
            target="properties.remoteVirtualNetwork.id",
        )
    if before is not None and before.value.remote_key != remote.key:
        raise Conflict(
            f"The peering {peering} is with {before.value.remote_id}, and that cannot be changed. Delete it, and create one with "
            f"{remote.id}.",
            code="PropertyChangeNotAllowed",
            target="properties.remoteVirtualNetwork.id",
        )
    for sibling in siblings:
        if sibling.key != peering.key and sibling.value.remote_key == remote.key:
            raise InvalidParameter(
                f"Peering {sibling.id} already references the remote virtual network {remote.id}. Another peering with the same "
                "remote virtual network cannot be added.",
                code="AnotherPeeringAlreadyReferencesRemoteVnet",
            )
    if before is None and other is not None and other.value.state == State.DISCONNECTED:
        raise InvalidParameter(
            f"The peering {peering} cannot be created because the remote peering {other.id} is Disconnected, which it is since "
            "this side, or its network, was deleted. Update the remote peering (it becomes Initiated), or delete it, then "
            "create this one again.",
            code="RemotePeeringIsDisconnected",
        )
    return remote


def connect(wanted: Peering, other: Peering | None) -> tuple[Peering, Peering | None]:
    """Both sides after ``wanted`` was put; the other one only when it changes."""
    if other is None or other.state == State.DISCONNECTED:
        return msgspec.structs.replace(wanted, state=State.INITIATED), None
    if other.state == State.CONNECTED:
        return msgspec.structs.replace(wanted, state=State.CONNECTED), None
    return (
        msgspec.structs.replace(wanted, state=State.CONNECTED),
        msgspec.structs.replace(other, state=State.CONNECTED),
    )


def disconnected(other: Peering) -> Peering:
    """The side that is left when the one that it faces goes."""
    return msgspec.structs.replace(other, state=State.DISCONNECTED)


def sync_level(own: Peering, other: Peering | None, spaces: Mapping[str, tuple[str, ...]]) -> SyncLevel:
    """``spaces``: the present address space of both networks, by key."""
    local_old = _old(own, spaces)
    remote_old = other is not None and own.connected and _old(other, spaces)
    if local_old:
        return SyncLevel.BOTH_OLD if remote_old else SyncLevel.LOCAL_OLD
    return SyncLevel.REMOTE_OLD if remote_old else SyncLevel.BOTH_KNOW


def _old(side: Peering, spaces: Mapping[str, tuple[str, ...]]) -> bool:
    present = spaces.get(side.remote_key)
    return side.connected and present is not None and set(present) != set(side.remote_prefixes)
