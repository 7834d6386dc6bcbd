"""Private DNS zones: names, links, record sets, and the records that zone groups keep.

A network sees a zone through a link. A zone group lists zones in which an endpoint's records are written; a record is
written once, when its address becomes ready (or the group is put), never silently again: two endpoints of one vault that share
a zone overwrite each other, and deleting either removes the record, as in Azure (pains B13).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.state.schema import record_changes, record_sets, resources, zone_links
from undercroft.vnet.allocations import Allocation
from undercroft.vnet.endpoints import EndpointRecord

__all__ = [
    "APEX",
    "GROUP_TYPE",
    "LARGEST_LINKS",
    "LARGEST_REGISTERING",
    "LARGEST_SETS",
    "LARGEST_ZONES",
    "LINK_TYPE",
    "RECORDS",
    "RECORD_TYPES",
    "SOA",
    "ZONE_TYPE",
    "Counts",
    "Link",
    "LinkedZone",
    "RecordSet",
    "ZoneGroup",
    "ZoneTarget",
    "add_link",
    "all_links",
    "changes_after",
    "check_group",
    "check_relative_name",
    "check_zone_name",
    "count",
    "create_zone",
    "delete_record_set",
    "delete_zone",
    "drop_links_of_network",
    "endpoint_records",
    "first_change",
    "forget_changes",
    "get_record_set",
    "group_of",
    "last_change",
    "linked_zones",
    "list_record_sets",
    "put_record_set",
    "relative_name",
    "remove_link",
    "remove_records",
    "write_records",
    "zone_exists",
    "zones_with_records",
]

ZONE_TYPE = "microsoft.network/privatednszones"
LINK_TYPE = "microsoft.network/privatednszones/virtualnetworklinks"
GROUP_TYPE = "microsoft.network/privateendpoints/privatednszonegroups"
RECORD_TYPES = ("A", "AAAA", "CNAME", "MX", "PTR", "SOA", "SRV", "TXT")
APEX = "@"
RECORDS = "records"
"""Among keys of networks that must follow a change: what changed are record sets alone. They are published once, however many networks
see them."""
SOA = "azureprivatedns.net. azureprivatedns-host.microsoft.com. 1 3600 300 2419200 10"
"""As in Azure's private zones (reference: private-dns-zone-real)."""

LARGEST_SETS = 25_000
LARGEST_LINKS = 1000
LARGEST_REGISTERING = 100
LARGEST_ZONES = 1000
"""Record sets and links per zone, registering links per zone, zones per subscription and per network (azure-facts section 4)."""

_RESERVED = frozenset(
    [
        "azclient.ms",
        "azure.com",
        "cloudapp.net",
        "core.windows.net",
        "microsoft.com",
        "msidentity.com",
        "trafficmanager.net",
        "windows.net",
    ]
)
_PARTITION = re.compile(r"z[0-9]{2}")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")


class ZoneTarget(msgspec.Struct, frozen=True):
    """One line of a zone group: the client's name for it, and the zone."""

    name: str
    zone_id: str


class ZoneGroup(msgspec.Struct, frozen=True):
    """The stored body of a ``privateDnsZoneGroups`` resource."""

    targets: tuple[ZoneTarget, ...]


class Link(msgspec.Struct, frozen=True):
    """The stored body of a ``virtualNetworkLinks`` resource."""

    network_id: str
    resolution_policy: str = "Default"
    registration_enabled: bool = False


@dataclass(frozen=True, slots=True)
class RecordSet:
    name: str
    """Relative, lower case; ``@`` for the apex."""
    type: str
    ttl: int
    values: tuple[str, ...]
    """Zone-file form, names absolute."""
    metadata: tuple[tuple[str, str], ...]
    etag: str
    endpoint_key: str | None = None
    registered: bool = False
    """By auto-registration."""


@dataclass(frozen=True, slots=True)
class LinkedZone:
    key: str
    name: str
    nxdomain_redirect: bool
    registers: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """What a zone has."""

    record_sets: int
    links: int
    registering_links: int


def check_zone_name(text: str) -> str:
    name = text.lower().rstrip(".")
    labels = name.split(".")
    if not 2 <= len(labels) <= 34 or len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise InvalidParameter(
            f"'{text}' is not a name for a private DNS zone: 2 to 34 labels of letters, digits, '-' and '_' are needed.",
            code="InvalidZoneName",
            target="privateZoneName",
        )
    if name in _RESERVED:
        raise InvalidParameter(
            f"The zone name '{name}' is reserved. For private endpoints, the zone is called 'privatelink.…'.",
            code="ReservedZoneName",
            target="privateZoneName",
        )
    return name


def check_relative_name(text: str, zone: str) -> str:
    """The name of a record set inside ``zone``; wildcards may lead."""
    name = text.lower()
    labels = name.split(".")
    if name == APEX:
        return name
    if labels[0] == "*":
        labels = labels[1:]
    if not all(_LABEL.match(label) for label in labels) or len(name) + 1 + len(zone) > 253:
        raise InvalidParameter(
            f"'{text}' is not a relative record set name in the zone '{zone}'.",
            code="InvalidRecordSetName",
            target="relativeRecordSetName",
        )
    return name


# --- zones and links -------------------------------------------------------------------------------------------------


def zone_exists(connection: Connection, zone_key: str) -> bool:
    return (
        connection.execute(
            select(resources.c.key).where(resources.c.key == zone_key.lower(), resources.c.type == ZONE_TYPE)
        ).scalar()
        is not None
    )


def create_zone(connection: Connection, zone: ResourceId) -> None:
    """The records every zone has: its SOA. Refused beyond Azure's number of zones in one subscription."""
    of_subscription = select(func.count()).where(
        resources.c.type == ZONE_TYPE, resources.c.subscription == zone.subscription
    )
    if connection.execute(of_subscription).scalar_one() > LARGEST_ZONES:
        raise Conflict(
            f"The subscription has {LARGEST_ZONES} private DNS zones, and can have no more.",
            code="ResourceLimitExceeded",
        )
    put_record_set(connection, zone.key, RecordSet(APEX, "SOA", 3600, (SOA,), (), str(uuid.uuid4())))


def delete_zone(connection: Connection, zone_key: str) -> None:
    """Refused while a zone group names it or a network is linked; all of them are named, in the order in which they may go."""
    key = zone_key.lower()
    groups = tuple(f"zone group {name}" for name in _groups_of_zone(connection, key))
    linked = connection.execute(select(zone_links.c.key).where(zone_links.c.zone_key == key).order_by(zone_links.c.key))
    blockers = (*groups, *(f"virtual network link {name}" for name in linked.scalars()))
    if blockers:
        raise Conflict(
            f"The zone cannot be deleted while it is in use. Delete first, in this order: {', then '.join(blockers)}. A zone group "
            "may also be deleted with its private endpoint.",
            code="CannotDeleteResource",
            target=zone_key,
        )
    connection.execute(delete(record_sets).where(record_sets.c.zone_key == key))


def _groups_of_zone(connection: Connection, zone_key: str) -> tuple[str, ...]:
    """Ids of the zone groups that name the zone. Reads every group of the deployment: zones are seldom deleted."""
    rows = connection.execute(
        select(resources.c.id, resources.c.body).where(resources.c.type == GROUP_TYPE).order_by(resources.c.key)
    )
    return tuple(
        row.id
        for row in rows
        if any(one.zone_id.lower() == zone_key for one in msgspec.json.decode(row.body, type=ZoneGroup).targets)
    )


def add_link(
    connection: Connection,
    link_key: str,
    zone: ResourceId,
    network_id: str,
    nxdomain_redirect: bool,
    registers: bool = False,
) -> None:
    """Add or change a link: one per zone and network; and no second zone of the same name for a network (pains B14). A zone and
    one below it may both be linked: Azure's documents tell to, in place of a delegation."""
    if nxdomain_redirect and not zone.name.lower().startswith("privatelink."):
        raise InvalidParameter(
            f"resolutionPolicy NxDomainRedirect is only possible for privatelink zones; this one is '{zone.name}'.",
            code="InvalidResolutionPolicy",
            target="properties.resolutionPolicy",
        )
    _check_room(connection, link_key, zone, network_id, registers)
    taken = connection.execute(
        select(zone_links.c.key, zone_links.c.zone_key).where(
            zone_links.c.network_key == network_id.lower(),
            zone_links.c.zone_name == zone.name.lower(),
            zone_links.c.key != link_key.lower(),
        )
    ).first()
    if taken is not None:
        network = ResourceId.parse(network_id).name
        if taken.zone_key == zone.key:
            raise Conflict(
                f"The virtual network '{network}' is already linked to this zone, by {taken.key}.",
                code="VirtualNetworkLinkAlreadyExists",
            )
        raise InvalidParameter(
            "A virtual network cannot be linked to multiple zones with overlapping namespaces. You tried to link virtual "
            f"network '{network}' with '{zone.name}', which {taken.key} links already.",
            code="BadRequest",
            mentions=(taken.key,),
        )
    connection.execute(delete(zone_links).where(zone_links.c.key == link_key.lower()))
    connection.execute(
        insert(zone_links).values(
            key=link_key.lower(),
            zone_key=zone.key,
            zone_name=zone.name.lower(),
            network_key=network_id.lower(),
            nxdomain_redirect=nxdomain_redirect,
            registers=registers,
        )
    )


def _check_room(connection: Connection, link_key: str, zone: ResourceId, network_id: str, registers: bool) -> None:
    """Azure's limits of links (azure-facts section 4)."""

    def number(*where: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(zone_links).where(zone_links.c.key != link_key.lower(), *where)
        return connection.execute(query).scalar_one()

    of_zone, of_network = zone_links.c.zone_key == zone.key, zone_links.c.network_key == network_id.lower()
    limits = [
        (number(of_zone), LARGEST_LINKS, f"the zone '{zone.name}' has {LARGEST_LINKS} virtual network links"),
        (number(of_network), LARGEST_ZONES, f"the virtual network is linked to {LARGEST_ZONES} zones"),
    ]
    if registers:
        other = connection.execute(
            select(zone_links.c.zone_key).where(
                of_network, zone_links.c.registers, zone_links.c.key != link_key.lower()
            )
        ).scalar()
        if other is not None:
            raise InvalidParameter(
                "A virtual network can be linked to one private DNS zone with auto-registration only; "
                f"'{ResourceId.parse(network_id).name}' registers in {other} already.",
                code="BadRequest",
                target="properties.registrationEnabled",
            )
        many = f"the zone '{zone.name}' has {LARGEST_REGISTERING} virtual network links with auto-registration"
        limits.append((number(of_zone, zone_links.c.registers), LARGEST_REGISTERING, many))
    for found, largest, what in limits:
        if found >= largest:
            raise Conflict(f"There can be no more links: {what}.", code="ResourceLimitExceeded")


def remove_link(connection: Connection, link_key: str) -> None:
    connection.execute(delete(zone_links).where(zone_links.c.key == link_key.lower()))


def drop_links_of_network(connection: Connection, network_key: str) -> None:
    """Deleting a network deletes its links, as in Azure."""
    keys = select(zone_links.c.key).where(zone_links.c.network_key == network_key.lower())
    connection.execute(delete(resources).where(resources.c.key.in_(keys), resources.c.type == LINK_TYPE))
    connection.execute(delete(zone_links).where(zone_links.c.network_key == network_key.lower()))


def linked_zones(connection: Connection, network_key: str) -> tuple[LinkedZone, ...]:
    rows = connection.execute(
        select(zone_links).where(zone_links.c.network_key == network_key.lower()).order_by(zone_links.c.zone_name)
    )
    return tuple(LinkedZone(row.zone_key, row.zone_name, row.nxdomain_redirect, row.registers) for row in rows)


def all_links(connection: Connection) -> dict[str, tuple[LinkedZone, ...]]:
    """By network: what each network with a link sees."""
    found: dict[str, list[LinkedZone]] = {}
    for row in connection.execute(select(zone_links).order_by(zone_links.c.network_key, zone_links.c.zone_name)):
        found.setdefault(row.network_key, []).append(
            LinkedZone(row.zone_key, row.zone_name, row.nxdomain_redirect, row.registers)
        )
    return {network: tuple(links) for network, links in found.items()}


# --- record sets -----------------------------------------------------------------------------------------------------


def _read(row: Row[Any]) -> RecordSet:
    return RecordSet(
        row.name,
        row.type,
        row.ttl,
        tuple(json.loads(row._mapping["values"])),
        tuple(json.loads(row.metadata).items()),
        row.etag,
        row.endpoint_key,
        row.registered,
    )


def get_record_set(connection: Connection, zone_key: str, name: str, kind: str) -> RecordSet | None:
    row = connection.execute(
        select(record_sets).where(
            record_sets.c.zone_key == zone_key.lower(),
            record_sets.c.name == name.lower(),
            record_sets.c.type == kind.upper(),
        )
    ).one_or_none()
    return None if row is None else _read(row)


def list_record_sets(
    connection: Connection,
    zone_key: str,
    kind: str | None = None,
    suffix: str = "",
    after: tuple[str, str] | None = None,
    limit: int | None = None,
) -> tuple[RecordSet, ...]:
    """In order of (name, type); ``after`` continues a page."""
    query = select(record_sets).where(record_sets.c.zone_key == zone_key.lower())
    if kind is not None:
        query = query.where(record_sets.c.type == kind.upper())
    if suffix:
        query = query.where(record_sets.c.name.endswith(suffix.lower(), autoescape=True))
    if after is not None:
        name, last = after
        query = query.where((record_sets.c.name > name) | ((record_sets.c.name == name) & (record_sets.c.type > last)))
    query = query.order_by(record_sets.c.name, record_sets.c.type)
    return tuple(_read(row) for row in connection.execute(query if limit is None else query.limit(limit)))


def count(connection: Connection, zone_key: str) -> Counts:
    sets = select(func.count()).select_from(record_sets).where(record_sets.c.zone_key == zone_key.lower())
    links = select(func.count()).select_from(zone_links).where(zone_links.c.zone_key == zone_key.lower())
    return Counts(
        connection.execute(sets).scalar_one(),
        connection.execute(links).scalar_one(),
        connection.execute(links.where(zone_links.c.registers)).scalar_one(),
    )


def put_record_set(connection: Connection, zone_key: str, wanted: RecordSet) -> None:
    """Create or replace. A CNAME stands alone at its name (RFC 1034, 3.6.2)."""
    siblings = set(
        connection.execute(
            select(record_sets.c.type).where(
                record_sets.c.zone_key == zone_key.lower(),
                record_sets.c.name == wanted.name,
                record_sets.c.type != wanted.type,
            )
        ).scalars()
    )
    if siblings and (wanted.type == "CNAME" or "CNAME" in siblings):
        raise Conflict(
            f"The name '{wanted.name}' has a record set of type {', '.join(sorted(siblings))}; a CNAME stands alone at its name.",
            code="CNAMEConflict",
        )
    where = (
        record_sets.c.zone_key == zone_key.lower(),
        record_sets.c.name == wanted.name,
        record_sets.c.type == wanted.type,
    )
    values = {
        "ttl": wanted.ttl,
        "metadata": json.dumps(dict(wanted.metadata)),
        "values": json.dumps(list(wanted.values)),
        "endpoint_key": wanted.endpoint_key,
        "etag": wanted.etag,
        "registered": wanted.registered,
    }
    if connection.execute(update(record_sets).where(*where).values(**values)).rowcount == 0:
        connection.execute(
            insert(record_sets).values(zone_key=zone_key.lower(), name=wanted.name, type=wanted.type, **values)
        )


def delete_record_set(connection: Connection, zone_key: str, name: str, kind: str) -> bool:
    done = connection.execute(
        delete(record_sets).where(
            record_sets.c.zone_key == zone_key.lower(),
            record_sets.c.name == name.lower(),
            record_sets.c.type == kind.upper(),
        )
    )
    return done.rowcount > 0


# --- changes ---------------------------------------------------------------------------------------------------------


def last_change(connection: Connection) -> int:
    """The number of the last change of any record set; whoever has read the record sets in this transaction has it."""
    return connection.execute(select(func.max(record_changes.c.number))).scalar() or 0


def changes_after(
    connection: Connection, number: int
) -> tuple[int, dict[str, dict[tuple[str, str], RecordSet | None]]]:
    """What changed after change ``number``, by zone and (name, type), as it is now (None: gone); and the last change's number.

    Costs what changed, not what there is.
    """
    rows = connection.execute(
        select(record_changes).where(record_changes.c.number > number).order_by(record_changes.c.number)
    ).all()
    found: dict[str, dict[tuple[str, str], RecordSet | None]] = {}
    for row in rows:
        in_zone = found.setdefault(row.zone_key, {})
        if (row.name, row.type) not in in_zone:
            in_zone[row.name, row.type] = get_record_set(connection, row.zone_key, row.name, row.type)
    return (rows[-1].number if rows else number), found


def first_change(connection: Connection) -> int | None:
    return connection.execute(select(func.min(record_changes.c.number))).scalar()


def forget_changes(connection: Connection, number: int) -> None:
    """Up to and including ``number``: they are published."""
    connection.execute(delete(record_changes).where(record_changes.c.number <= number))


def zones_with_records(connection: Connection) -> tuple[str, ...]:
    """Their keys."""
    return tuple(
        connection.execute(select(record_sets.c.zone_key).distinct().order_by(record_sets.c.zone_key)).scalars()
    )


# --- zone groups -----------------------------------------------------------------------------------------------------


def check_group(connection: Connection, targets: Sequence[ZoneTarget]) -> None:
    """Every zone exists, none is named twice, and no two have one name (pains B17)."""
    target = "properties.privateDnsZoneConfigs"
    names = [one.name.lower() for one in targets]
    zones = [ResourceId.parse(one.zone_id) for one in targets]
    if len(targets) > 5:
        raise InvalidParameter(
            "A private DNS zone group takes at most 5 zones.", code="InvalidRequestFormat", target=target
        )
    for values, what in ((names, "two configurations"), ([zone.name.lower() for zone in zones], "two zones")):
        double = next((value for value in values if values.count(value) > 1), None)
        if double is not None:
            raise InvalidParameter(
                f"The private DNS zone group has {what} with the same name ({double}).",
                code="DuplicateResourceName",
                target=target,
            )
    for zone in zones:
        if zone.type.lower() != ZONE_TYPE:
            raise InvalidParameter(
                f"'{zone}' is not a private DNS zone.", code="InvalidPrivateDnsZoneId", target=target
            )
        if not zone_exists(connection, zone.key):
            raise NotFound(
                f"The private DNS zone {zone} of the zone group was not found. Undercroft creates no zones by itself: create "
                "it, link it to the virtual networks that shall see it, and repeat.",
                code="PrivateDnsZoneNotFound",
                target=target,
            )


def group_of(connection: Connection, endpoint_key: str) -> tuple[ZoneTarget, ...]:
    """The zones of the endpoint's zone group; empty when it has none."""
    bodies = connection.execute(
        select(resources.c.body).where(resources.c.parent_key == endpoint_key.lower(), resources.c.type == GROUP_TYPE)
    ).scalars()
    return tuple(target for body in bodies for target in msgspec.json.decode(body, type=ZoneGroup).targets)


def relative_name(zone_name: str, fqdn: str) -> str | None:
    """The record that answers for ``fqdn`` in this zone, or None if the zone is not the one for it.

    A backup member's name lies in its zone; a storage name's record lies in ``privatelink.`` before the name's own
    suffix, which is where its public CNAME points. The name of an account in a partition (``{account}.z07.blob.…``) keeps
    both labels.
    """
    zone = zone_name.lower()
    if not zone.startswith("privatelink."):
        return None
    public = zone.removeprefix("privatelink.")
    label, _, rest = fqdn.lower().partition(".")
    if rest in (zone, public):
        return label
    partition, _, rest = rest.partition(".")
    return f"{label}.{partition}" if _PARTITION.fullmatch(partition) and rest == public else None


def endpoint_records(
    targets: Sequence[ZoneTarget], owned: Sequence[Allocation]
) -> tuple[tuple[ZoneTarget, str, Allocation], ...]:
    """Which record each allocation has in which zone of the group."""
    found = []
    for target in targets:
        zone_name = ResourceId.parse(target.zone_id).name
        for allocation in owned:
            if allocation.member_fqdn is not None and (name := relative_name(zone_name, allocation.member_fqdn)):
                found.append((target, name, allocation))
    return tuple(found)


def write_records(
    connection: Connection,
    endpoint: EndpointRecord,
    targets: Sequence[ZoneTarget],
    ready: Sequence[Allocation],
    ttl: int,
) -> frozenset[str]:
    """Write the A records of these allocations into the group's zones; keys of the zones that changed."""
    creator = f"created by private endpoint {endpoint.name} with resource guid {endpoint.value.resource_guid}"
    changed = set()
    for target, name, allocation in endpoint_records(targets, ready):
        zone_key = target.zone_id.lower()
        if not zone_exists(connection, zone_key):
            continue  # deleted after the group was made: nothing to write to, the group shows no record sets
        before = get_record_set(connection, zone_key, name, "A")
        values = (str(allocation.address),)
        if before is not None and (before.values, before.endpoint_key, before.ttl) == (values, endpoint.key, ttl):
            continue
        delete_record_set(connection, zone_key, name, "CNAME")
        wanted = RecordSet(name, "A", ttl, values, (("creator", creator),), str(uuid.uuid4()), endpoint.key)
        put_record_set(connection, zone_key, wanted)
        changed.add(zone_key)
    return frozenset(changed)


def remove_records(connection: Connection, targets: Sequence[ZoneTarget], gone: Sequence[Allocation]) -> frozenset[str]:
    """Remove the A records of these allocations, whoever wrote them last; keys of the zones that changed."""
    return frozenset(
        target.zone_id.lower()
        for target, name, _ in endpoint_records(targets, gone)
        if delete_record_set(connection, target.zone_id, name, "A")
    )
