"""Auto-registration: VMs of networks that are linked so have A records in the zone, by their names, as long as they are there.

As Azure documents it: a record that somebody writes by hand takes the place of the registered one, and when that is deleted the VM is
registered again; unlinking takes the records away. Ours to decide: VMs of one name in several networks share the record set, each
with its address; a zone that is full takes no more, and the VM is made all the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence

import structlog
from sqlalchemy import Connection, func, select

from undercroft.state.schema import record_sets, zone_links
from undercroft.vnet import interfaces, zones
from undercroft.vnet.allocations import Allocation
from undercroft.vnet.zones import RecordSet, ZoneTarget

__all__ = ["TTL", "follow_network", "follow_zones", "give_way", "registration_zone", "remove_records"]

_log = structlog.get_logger(__name__)

TTL = 10
_LARGEST_SET = 20  # azure-facts section 4


def registration_zone(connection: Connection, network_key: str) -> str | None:
    """Key of the zone in which the network's VMs are registered."""
    return connection.execute(
        select(zone_links.c.zone_key).where(zone_links.c.network_key == network_key.lower(), zone_links.c.registers)
    ).scalar()


def follow_network(connection: Connection, network_key: str) -> frozenset[str]:
    """VMs of the network came or went: write and remove their records. Returns the keys of the zones that changed."""
    zone_key = registration_zone(connection, network_key)
    return frozenset() if zone_key is None else follow_zones(connection, [zone_key])


def follow_zones(connection: Connection, zone_keys: Iterable[str]) -> frozenset[str]:
    """Make the registered records of these zones what they should be: after links changed, or records were written by hand."""
    return frozenset(key.lower() for key in zone_keys if _follow(connection, key.lower()))


def give_way(connection: Connection, zone_key: str, name: str) -> None:
    """A CNAME of this name is about to be written by hand: the registered record goes. (One of type A takes its place.)"""
    before = zones.get_record_set(connection, zone_key, name, "A")
    if before is not None and before.registered:
        zones.delete_record_set(connection, zone_key, name, "A")


def remove_records(connection: Connection, targets: Sequence[ZoneTarget], gone: Sequence[Allocation]) -> frozenset[str]:
    """``zones.remove_records``, and the VMs whose names those records had are registered again."""
    changed = zones.remove_records(connection, targets, gone)
    if changed:
        registering = select(zone_links.c.zone_key).where(zone_links.c.zone_key.in_(changed), zone_links.c.registers)
        follow_zones(connection, set(connection.execute(registering).scalars()))
    return changed


def _follow(connection: Connection, zone_key: str) -> bool:
    wanted = _wanted(connection, zone_key)
    by_hand, registered = _present(connection, zone_key)
    changed = False
    for name in sorted(registered.keys() - wanted.keys()):
        changed = zones.delete_record_set(connection, zone_key, name, "A") or changed
    new = wanted.keys() - by_hand - registered.keys()
    room = max(0, zones.LARGEST_SETS - _record_sets(connection, zone_key)) if new else 0
    for name in sorted(wanted.keys() - by_hand):
        if registered.get(name) == wanted[name]:
            continue
        if name in new:
            if not room:
                _log.warning("VM not registered: the zone is full", zone=zone_key, name=name)
                continue
            room -= 1
        value = RecordSet(name, "A", TTL, wanted[name], (), str(uuid.uuid4()), registered=True)
        zones.put_record_set(connection, zone_key, value)
        changed = True
    return changed


def _present(connection: Connection, zone_key: str) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """Names that are taken by hand, and what is registered."""
    rows = connection.execute(
        select(record_sets.c.name, record_sets.c.registered, record_sets.c["values"]).where(
            record_sets.c.zone_key == zone_key, record_sets.c.type.in_(("A", "CNAME"))
        )
    ).all()
    by_hand = {name for name, registered, _ in rows if not registered}
    return by_hand, {name: tuple(json.loads(values)) for name, registered, values in rows if registered}


def _wanted(connection: Connection, zone_key: str) -> dict[str, tuple[str, ...]]:
    networks = connection.execute(
        select(zone_links.c.network_key)
        .where(zone_links.c.zone_key == zone_key, zone_links.c.registers)
        .order_by(zone_links.c.network_key)
    ).scalars()
    found: dict[str, list[str]] = {}
    for network_key in networks.all():
        for host in interfaces.hosts(connection, network_key):
            addresses = found.setdefault(host.name.lower(), [])
            if str(host.address) not in addresses and len(addresses) < _LARGEST_SET:
                addresses.append(str(host.address))
    return {name: tuple(addresses) for name, addresses in found.items()}


def _record_sets(connection: Connection, zone_key: str) -> int:
    query = select(func.count()).select_from(record_sets).where(record_sets.c.zone_key == zone_key)
    return connection.execute(query).scalar_one()
