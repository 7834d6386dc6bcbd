"""What one network should be, read from state in one go; and the two transactions that move its addresses.

An allocation is *moved* to Ready (``advance``) only after its address, door and record are there and published (``announce``), and
back (``retreat``) before the door is closed for good, so a client never sees an address that does not answer, and an agent is never
handed an account whose name does not resolve yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import structlog
from sqlalchemy import Connection

from undercroft.config import Settings
from undercroft.dns.views import AccountNames, PublicNames, RecordChange, RecordSetView, ZoneChange, ZoneLink
from undercroft.fabric.addresses import AddressSets
from undercroft.fabric.specification import (
    WIRE_ADDRESS,
    AddressSet,
    Guard,
    HostSpecification,
    LinkSpecification,
    NetworkSpecification,
    PacketFilter,
)
from undercroft.vault import connections, members, vaults
from undercroft.vault.connections import Status
from undercroft.vault.members import Member
from undercroft.vnet import (
    allocations,
    endpoints,
    interfaces,
    networks,
    publicside,
    reach,
    registration,
    security_groups,
    sites,
    zones,
)
from undercroft.vnet.allocations import Allocation
from undercroft.vnet.doors import Door
from undercroft.vnet.endpoints import EndpointRecord, Group
from undercroft.vnet.security_groups import POLICIES_WITH_GROUPS, GroupRecord
from undercroft.vnet.service_tags import Surroundings
from undercroft.workers.filters import packet_filter

__all__ = [
    "EndpointPlan",
    "NetworkPlan",
    "account_names",
    "advance",
    "all_links",
    "announce",
    "keys",
    "link",
    "public_names",
    "read",
    "retreat_and_grow",
    "whole_zone",
    "withhold",
    "zone_changes",
]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    record: EndpointRecord
    status: Status
    vault_id: int
    members: tuple[Member, ...]
    owned: tuple[Allocation, ...]

    @property
    def approved(self) -> bool:
        return self.status is Status.APPROVED

    @property
    def wanting(self) -> tuple[str, ...]:
        """Members that have no address yet. An endpoint that will never carry traffic again gets no more."""
        if self.status not in (Status.PENDING, Status.APPROVED):
            return ()
        have = {one.member_fqdn for one in self.owned}
        return tuple(member.fqdn for member in self.members if member.fqdn not in have)

    @property
    def lost(self) -> tuple[Allocation, ...]:
        """Addresses that are shown although the approval is gone."""
        return () if self.approved else tuple(one for one in self.owned if one.ready)

    @property
    def reserved(self) -> tuple[Allocation, ...]:
        return tuple(one for one in self.owned if not one.ready) if self.approved else ()


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    network: networks.NetworkRecord
    subnets: tuple[networks.SubnetRecord, ...]
    endpoints: tuple[EndpointPlan, ...]
    hosts: tuple[interfaces.Host, ...]
    neighbours: tuple[reach.Neighbour, ...]
    links: tuple[ZoneLink, ...]
    """The private zones that the network sees."""
    groups: Mapping[str, GroupRecord] = field(default_factory=dict, hash=False)
    """Security groups, by the key of the subnet or interface that has them."""
    refused: frozenset[IPv4Address] = frozenset()
    """Addresses that the network cannot have: they are not announced."""

    @property
    def key(self) -> str:
        return self.network.key

    @property
    def needs_retreat_or_growth(self) -> bool:
        return any(
            one.lost
            or one.wanting
            or (one.record.value.missing_addresses and one.status in (Status.PENDING, Status.APPROVED))
            for one in self.endpoints
        )

    @property
    def reserved(self) -> tuple[Allocation, ...]:
        return tuple(
            allocation
            for one in self.endpoints
            for allocation in one.reserved
            if allocation.address not in self.refused
        )

    @property
    def has_conflicts(self) -> bool:
        return any(one.record.value.conflicts for one in self.endpoints)

    def doors(self, settings: Settings) -> dict[IPv4Address, Door]:
        found = publicside.public_doors(
            self.key, settings.public_range, settings.login_reachable, settings.host_address
        )
        for endpoint in self.endpoints:
            if not endpoint.approved:
                continue
            services = {member.fqdn: member.door_service for member in endpoint.members}
            for one in endpoint.owned:
                if one.member_fqdn in services:
                    found[one.address] = Door(
                        network=self.key,
                        service=services[one.member_fqdn],
                        endpoint=endpoint.record.key,
                        vault_key=endpoint.record.value.vault_key,
                        vault_id=endpoint.vault_id,
                        fqdn=one.member_fqdn,
                        secondary=endpoint.record.value.group is Group.BACKUP_SECONDARY,
                    )
        return found

    def specification(self, settings: Settings) -> NetworkSpecification:
        resolvers = self.network.value.resolvers or (WIRE_ADDRESS,)
        public = publicside.public_addresses(settings.public_range, settings.login_reachable)
        on_interface = settings.host_address is not None
        filters, address_sets = self._filters(settings)
        return NetworkSpecification(
            id=self.key,
            prefixes=self.network.value.prefixes,
            subnets=tuple(subnet.value.prefix for subnet in self.subnets),
            addresses=frozenset(
                one.address for endpoint in self.endpoints if endpoint.approved for one in endpoint.owned
            ),
            public_addresses=frozenset() if on_interface else frozenset(public.values()),
            hosts=tuple(
                HostSpecification(host.machine_key, host.name, host.address, resolvers, self._filters_of(host))
                for host in self.hosts
            ),
            address_sets=address_sets,
            filters=filters,
            guards=self._guards(),
            links=tuple(link(neighbour) for neighbour in self.neighbours),
        )

    def _filters(self, settings: Settings) -> tuple[tuple[PacketFilter, ...], tuple[AddressSet, ...]]:
        around = Surroundings(reach.prefixes(self.network, self.neighbours), settings.public_range)
        groups = {group.key: group for group in self.groups.values()}
        sets = AddressSets()
        return tuple(packet_filter(groups[key], around, sets) for key in sorted(groups)), sets.values

    def _filters_of(self, host: interfaces.Host) -> tuple[str, ...]:
        """Of its subnet and of itself; one and the same group counts once."""
        found = (self.groups.get(key) for key in (host.subnet_key, host.interface_key))
        return tuple(dict.fromkeys(group.key for group in found if group is not None))

    def _guards(self) -> tuple[Guard, ...]:
        """A subnet's group stands before its endpoints if the subnet's policy says so."""
        found = []
        for subnet in self.subnets:
            group = self.groups.get(subnet.key)
            if group is None or subnet.value.private_endpoint_network_policies not in POLICIES_WITH_GROUPS:
                continue
            addresses = frozenset(
                one.address
                for endpoint in self.endpoints
                if endpoint.approved and endpoint.record.value.subnet_key == subnet.key
                for one in endpoint.owned
            )
            if addresses:
                found.append(Guard(addresses, (group.key,)))
        return tuple(found)


def link(neighbour: reach.Neighbour) -> LinkSpecification:
    return LinkSpecification(neighbour.key, (*neighbour.prefixes, *neighbour.behind), neighbour.gateways)


def read(connection: Connection, network_key: str) -> NetworkPlan | None:
    """None when there is no such network (any more). Costs what is in this network, not what is in the deployment."""
    network = networks.get(connection, network_key)
    if network is None:
        return None
    owned: dict[str, list[Allocation]] = {}
    for allocation in allocations.of_network(connection, network.key):
        owned.setdefault(allocation.owner_key, []).append(allocation)
    found = _endpoints(connection, endpoints.in_network(connection, network.key), owned)
    hosts = interfaces.hosts(connection, network.key)
    return NetworkPlan(
        network,
        networks.subnets(connection, network.key),
        found,
        hosts,
        reach.neighbours(connection, network.key),
        _links(zones.linked_zones(connection, network.key), hosts),
        security_groups.in_network(connection, network.key),
    )


def _endpoints(
    connection: Connection, records: Sequence[EndpointRecord], owned: Mapping[str, Sequence[Allocation]]
) -> tuple[EndpointPlan, ...]:
    """One visit for each kind of thing, however many endpoints there are."""
    vault_keys = {record.value.vault_key for record in records}
    states = connections.of_endpoints(connection, tuple(record.key for record in records))
    ids = vaults.ids_of(connection, vault_keys)
    known = members.of_vaults(connection, vault_keys)
    return tuple(
        EndpointPlan(
            record,
            state.status if (state := states.get(record.key)) else Status.DISCONNECTED,
            ids.get(record.value.vault_key, 0),
            known.get((record.value.vault_key, record.value.group.value), ()),
            tuple(owned.get(record.key, ())),
        )
        for record in records
    )


def retreat_and_grow(connection: Connection, plan: NetworkPlan) -> tuple[NetworkPlan, frozenset[str]]:
    """Take back what lost its approval, with its records, and reserve addresses for new members. A full subnet marks the
    endpoint degraded with the count of missing addresses, and stops no other. Returns the new plan and the changed zones."""
    fresh = read(connection, plan.key)
    if fresh is None:
        return replace(plan, endpoints=(), hosts=()), frozenset()
    changed: frozenset[str] = frozenset()
    for endpoint in fresh.endpoints:
        if endpoint.lost:
            allocations.set_ready(connection, [one.id for one in endpoint.lost], False)
            changed |= registration.remove_records(
                connection, zones.group_of(connection, endpoint.record.key), endpoint.lost
            )
        missing = 0
        if endpoint.wanting:
            subnet = networks.get_subnet(connection, endpoint.record.value.subnet_key)
            missing = len(endpoint.wanting)
            if subnet is not None:
                _, missing = allocations.extend(connection, subnet, endpoint.record.key, endpoint.wanting)
        if missing != endpoint.record.value.missing_addresses:
            endpoints.set_missing_addresses(connection, endpoint.record, missing)
            if missing:
                _log.warning("endpoint degraded: its subnet is full", endpoint=endpoint.record.id, missing=missing)
    again = read(connection, plan.key)
    assert again is not None  # same transaction as above
    return again, changed


def announce(connection: Connection, plan: NetworkPlan, ttl: int) -> frozenset[str]:
    """Write the records of what now has address and door, if it is still approved. Returns the changed zones."""
    changed: frozenset[str] = frozenset()
    for endpoint, made in _made(connection, plan):
        if endpoint.approved:
            targets = zones.group_of(connection, endpoint.record.key)
            changed |= zones.write_records(connection, endpoint.record, targets, made, ttl)
    return changed


def advance(connection: Connection, plan: NetworkPlan, ttl: int) -> frozenset[str]:
    """What was announced is Ready, if it is still approved; if not, its records go. A zone group that came meanwhile gets the
    records now. Returns the changed zones."""
    changed: frozenset[str] = frozenset()
    for endpoint, made in _made(connection, plan):
        targets = zones.group_of(connection, endpoint.record.key)
        if endpoint.approved:
            allocations.set_ready(connection, [one.id for one in made], True)
            changed |= zones.write_records(connection, endpoint.record, targets, made, ttl)
        else:
            changed |= registration.remove_records(connection, targets, made)
    return changed


def withhold(connection: Connection, plan: NetworkPlan, refused: Mapping[IPv4Address, str]) -> frozenset[str]:
    """Say of each endpoint which of its addresses are refused, and why; take back those that were Ready, with their records.
    Returns the changed zones."""
    changed: frozenset[str] = frozenset()
    fresh = read(connection, plan.key)
    for endpoint in () if fresh is None else fresh.endpoints:
        hit = [one for one in endpoint.owned if one.address in refused]
        conflicts = tuple(refused[one.address] for one in hit)
        if conflicts != endpoint.record.value.conflicts:
            endpoints.set_conflicts(connection, endpoint.record, conflicts)
        if shown := [one for one in hit if one.ready]:
            allocations.set_ready(connection, [one.id for one in shown], False)
            changed |= registration.remove_records(connection, zones.group_of(connection, endpoint.record.key), shown)
    return changed


def _made(connection: Connection, plan: NetworkPlan) -> list[tuple[EndpointPlan, list[Allocation]]]:
    """The plan's reserved allocations that are still there and not Ready, by their endpoint as it is now."""
    ids = {one.id for one in plan.reserved}
    keys = [one.record.key for one in plan.endpoints if one.reserved]
    owned = {key: allocations.of_owner(connection, key) for key in keys}
    fresh = _endpoints(connection, endpoints.of_vault(connection, keys), owned)
    found = [(one, [own for own in one.owned if own.id in ids and not own.ready]) for one in fresh]
    return [(endpoint, made) for endpoint, made in found if made]


# --- names -----------------------------------------------------------------------------------------------------------


def _links(linked: Iterable[zones.LinkedZone], hosts: Iterable[interfaces.Host]) -> tuple[ZoneLink, ...]:
    named = tuple((host.address, host.name.lower()) for host in hosts)
    return tuple(ZoneLink(one.key, one.name, one.nxdomain_redirect, named if one.registers else ()) for one in linked)


def _change(name: str, kind: str, found: zones.RecordSet | None) -> RecordChange:
    return RecordChange(name, kind, None if found is None else RecordSetView(found.ttl, found.values))


def keys(connection: Connection) -> tuple[str, ...]:
    """Everything that the fabric has as a network: virtual networks, and sites."""
    return (*networks.keys(connection), *sites.keys(connection))


def all_links(connection: Connection) -> dict[str, tuple[ZoneLink, ...]]:
    """What every network sees; one without a link sees nothing, and is in it."""
    linked = zones.all_links(connection)

    def hosts(key: str) -> tuple[interfaces.Host, ...]:
        return interfaces.hosts(connection, key) if any(one.registers for one in linked.get(key, ())) else ()

    return {key: _links(linked.get(key, ()), hosts(key)) for key in keys(connection)}


def zone_changes(connection: Connection, after: int) -> tuple[int, tuple[ZoneChange, ...]]:
    """What changed in private zones after change number ``after``; and the number of the last change."""
    number, found = zones.changes_after(connection, after)
    changes = tuple(
        ZoneChange(key, _zone_name(key), tuple(_change(*which, now) for which, now in sets.items()))
        for key, sets in found.items()
    )
    return number, changes


def whole_zone(connection: Connection, key: str) -> ZoneChange:
    sets = zones.list_record_sets(connection, key)
    return ZoneChange(key, _zone_name(key), tuple(_change(one.name, one.type, one) for one in sets), whole=True)


def _zone_name(key: str) -> str:
    return key.rpartition("/")[2]


def public_names(settings: Settings) -> PublicNames:
    """The deployment's own names, without those of vaults."""
    suffixes = settings.suffixes
    fixed = publicside.public_hosts(suffixes, settings.public_range, settings.login_reachable, settings.host_address)
    return PublicNames(addresses={name: (address,) for name, address in fixed.items()}, suffixes=(suffixes.deployment,))


def account_names(
    connection: Connection, settings: Settings, vault_keys: Collection[str] | None
) -> dict[str, AccountNames]:
    """The storage names of these vaults, or of all; a vault without accounts is not in it."""
    found = publicside.public_accounts(connection, settings.suffixes, settings.public_range, vault_keys)
    return {
        vault: AccountNames(
            {} if settings.host_address else {name: (address,) for name, address in hosts.items()}, aliases
        )
        for vault, (hosts, aliases) in found.items()
    }
