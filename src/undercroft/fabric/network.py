"""One VNet: a namespace that routes between its VMs and answers for the addresses that Azure and the endpoints own.

Layout. Every VM hangs on a veth of its own with a /32 route to it; the VNet's end answers ARP for everything that it can route to
(proxy ARP, without delay) and always has the MAC that Azure's VMs see, so a VM believes in a plain subnet while each packet
is routed. The gateways (first address of each subnet), 168.63.129.16, 169.254.169.254, the endpoints' and the public side's
addresses are /32s on ``lo``. The prefixes are unreachable but for what exists. Source addresses are checked (rp_filter). Links to
other networks are ``links``'s.

``apply`` asks the kernel what is there, in the VNet and in each VM, compares, and sends the difference. It looks at links, their
state, MAC and per-link settings, IPv4 addresses and the main routing table. In the VNet everything of that must be as planned,
except links that somebody added; in a VM further routes and links are the VM's own affair. The VNet's own packet filters (``ruleset``)
are looked at too, not those that others add. It does not look at policy rules, other routing tables or neighbour entries. Name files
are compared too.

Making packet filters is the one step that may take seconds. It is done in another thread, while the loop goes on: VMs of this network
run, and others change. Nobody else calls ``apply`` or ``close`` of this one meanwhile (``process`` sees to it), but the ``apply`` of another may end
links that lead here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Executor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from undercroft.errors import InvalidParameter, LocalProblem
from undercroft.fabric import occupants
from undercroft.fabric.host import Host
from undercroft.fabric.links import Links
from undercroft.fabric.namespace import Namespace
from undercroft.fabric.nftables import Table
from undercroft.fabric.plan import LinkPlan, Plan, Step, compare, observe
from undercroft.fabric.rtnetlink import (
    LOOPBACK,
    Address,
    Message,
    Route,
    RouteKind,
    Setting,
    add_pair,
    delete_link,
    set_arp_timing,
    set_link,
)
from undercroft.fabric.ruleset import ruleset
from undercroft.fabric.specification import (
    METADATA_ADDRESS,
    WIRE_ADDRESS,
    Drift,
    HostSpecification,
    NetworkSpecification,
)

__all__ = ["GATEWAY_MAC", "Network", "check"]

GATEWAY_MAC = bytes.fromhex("123456789abc")
"""What every Azure VM sees as its neighbour."""

_FIRST_LINK = 1000
"""Above the indexes that the kernel gives to fallback tunnels (tunl0, sit0) in a new namespace."""
_HOST_LINK = 1000
_ROUNDS = 4
_ARP_RETRY = 100
"""Milliseconds. An endpoint that a VM is already asking for is found this soon after its address appears, not after 1 s."""
_HOST_LINK_NAME = "eth0"
_SETTINGS: Mapping[int, int] = {
    Setting.FORWARDING: 1,
    Setting.PROXY_ARP: 1,
    Setting.RP_FILTER: 1,
    Setting.SEND_REDIRECTS: 0,
}
_EVERYWHERE = IPv4Network("0.0.0.0/0")
_LOCALHOST = Address(LOOPBACK, IPv4Address("127.0.0.1"), 8)


class Network:
    """The kernel's side of one ``NetworkSpecification``, while this process lives."""

    def __init__(self, id: str, vms: Path, mark: str, changed: Callable[[], None], slow: Executor) -> None:
        """``changed`` is called when the set of VMs' namespaces has changed, before anything runs in a new one. ``slow`` is where
        packet filters are made."""
        self.id = id
        self.namespace = Namespace(forwarding=True)
        self.hosts: dict[str, Host] = {}
        self.links = Links(id, self.namespace)
        self._specification: NetworkSpecification | None = None
        self._vms = vms
        self._mark = mark
        self._changed = changed
        self._slow = slow
        self._table = Table(self.namespace)
        self._filtered: object = ((), (), (), ())
        self._rules: tuple[str, ...] = ()
        """The table for ``_filtered``: what it was made from."""
        self._plan: Plan | None = None
        self._host_plans: dict[str, Plan] = {}

    async def apply(self, specification: NetworkSpecification, others: Mapping[str, Network]) -> list[Drift]:
        """The specification has passed ``check``. ``others`` are the networks that links may lead to, by id, always as they are."""
        drifts: list[Drift] = []
        if self._plan is None:
            drifts.append(Drift(self.id, "network", created=True))
        drifts += self._end_hosts(self.hosts.keys() - {host.id for host in specification.hosts})
        drifts += self._make_hosts(specification)
        # Before a new VM has a link: no packet passes unfiltered.
        drifts += await self._filter(specification)
        drifts += self._connect_hosts()
        self._specification = specification
        self.links.want(specification.links)
        joined, changed = self.links.connect({id: other.links for id, other in others.items()})
        drifts += joined
        drifts += self.route()
        for other in sorted(changed):
            drifts += others[other].route()
        for id, host in self.hosts.items():
            name, plan = host.specification.name, _host_plan(host)
            steps = _converge(host.namespace, plan, self._host_plans.get(id), f"VM {name}")
            self._host_plans[id] = plan
            drifts += [Drift(self.id, f"{step.what} in VM {name}", step.created) for step in steps]
        return drifts

    def route(self) -> list[Drift]:
        """Make this namespace's tables as they should be, for the links and VMs there are."""
        if self._specification is None:
            return []
        # A VM that came since, or was taken away, has no link (any more).
        hosts = [self.hosts[host.id] for host in self._specification.hosts if host.id in self.hosts]
        plan = _network_plan(self._specification, hosts, self.links)
        steps = _converge(self.namespace, plan, self._plan, f"network {self.id}")
        self._plan = plan
        return [Drift(self.id, step.what, step.created) for step in steps]

    def _make_hosts(self, specification: NetworkSpecification) -> list[Drift]:
        drifts = []
        made = False
        try:
            for wanted in specification.hosts:
                subnet = _subnet_of(wanted, specification)
                host = self.hosts.get(wanted.id)
                if host is None:
                    self.hosts[wanted.id] = Host(wanted, subnet, self._vms, self._free_link(), self._mark)
                    made = True
                    drifts.append(Drift(self.id, f"VM {wanted.name}", created=True))
                else:
                    changed = host.specification != wanted
                    host.specification, host.subnet = wanted, subnet
                    drifts += [Drift(self.id, f"{file} of VM {wanted.name}", changed) for file in host.write_files()]
        finally:
            if made:
                self._changed()
        return drifts

    async def _filter(self, specification: NetworkSpecification) -> list[Drift]:
        links = {id: _link_name(host.link) for id, host in self.hosts.items()}
        filtered = tuple((host.id, links[host.id], host.filters) for host in specification.hosts if host.filters)
        wanted = specification.address_sets, specification.filters, specification.guards, filtered
        same = wanted == self._filtered
        if same and self._table.untouched:
            return []

        def make() -> tuple[tuple[str, ...], bool | None]:
            rules = self._rules if same else ruleset(specification, links)
            return rules, self._table.apply(rules, f"network {self.id}")

        self._rules, changed = await asyncio.get_running_loop().run_in_executor(self._slow, make)
        self._filtered = wanted
        return [] if changed is None else [Drift(self.id, "security rules", created=changed)]

    def _connect_hosts(self) -> list[Drift]:
        """Make the links of which either end is missing or is not what we made; also delete links left from before."""
        here = self.namespace.netlink.links()
        drifts, messages, connected = [], [], []
        used = {host.link for host in self.hosts.values()}
        for index, link in here.items():
            if link.name == _link_name(index) and index not in used:
                messages.append(delete_link(index))
                drifts.append(Drift(self.id, f"stray link {link.name}", created=False))
        for id, host in self.hosts.items():
            there = host.namespace.netlink.links()
            inside, outside = there.get(_HOST_LINK), here.get(host.link)
            good = inside is not None and inside.name == _HOST_LINK_NAME
            if good and outside is not None and outside.name == _link_name(host.link):
                continue
            name = host.specification.name
            if inside is not None:  # its other end is elsewhere; deleting one end deletes both
                host.namespace.netlink.send([delete_link(_HOST_LINK)], f"VM {name}")
            if outside is not None:
                messages.append(delete_link(host.link))
            messages += [_pair(host), set_link(host.link, settings=_SETTINGS), set_arp_timing(host.link, proxy_delay=0)]
            connected.append(host)
            drifts.append(Drift(self.id, f"link of VM {name}", created=id not in self._host_plans))
        self.namespace.netlink.send(messages, f"network {self.id}")
        for host in connected:
            timing = set_arp_timing(_HOST_LINK, retry=_ARP_RETRY)
            host.namespace.netlink.send([timing], f"VM {host.specification.name}")
        return drifts

    def _free_link(self) -> int:
        used = {host.link for host in self.hosts.values()}
        return next(index for index in range(_FIRST_LINK, _FIRST_LINK + len(used) + 1) if index not in used)

    def _end_hosts(self, ids: Set[str]) -> list[Drift]:
        """Processes first, then links, then namespaces."""
        if not ids:
            return []
        hosts = [self.hosts[id] for id in sorted(ids)]
        occupants.end({host.namespace.inode for host in hosts})
        self.namespace.netlink.send([delete_link(host.link) for host in hosts], f"network {self.id}")
        for host in hosts:
            host.close()
            host.remove_files()
            del self.hosts[host.specification.id]
            self._host_plans.pop(host.specification.id, None)
        self._changed()
        return [Drift(self.id, f"stray VM {host.specification.name}", created=True) for host in hosts]

    def close(self, *, keep_files: bool) -> None:
        """End the VMs and let go of everything. The files of VMs stay when the VMs will be built again.

        VMs' links go with their namespaces, in which nobody is left; the kernel does that by and by. Links to networks that stay
        are closed before (``links.close``).
        """
        occupants.end({host.namespace.inode for host in self.hosts.values()})
        for host in self.hosts.values():
            host.close()
            if not keep_files:
                host.remove_files()
        self.hosts.clear()
        self._host_plans.clear()
        self._table.close()
        self.namespace.close()


def check(specification: NetworkSpecification) -> None:
    """``InvalidParameter`` for a specification that no kernel could carry out, before anything is touched."""
    ids = [host.id for host in specification.hosts]
    if len(set(ids)) != len(ids):
        raise InvalidParameter(f"Network {specification.id} names a VM twice.", target="hosts")
    places = [host.address for host in specification.hosts]
    taken = _own_addresses(specification)
    for host in specification.hosts:
        _subnet_of(host, specification)
        if host.address in taken or places.count(host.address) > 1:
            raise InvalidParameter(
                f"VM {host.name} cannot have {host.address}: something else in network {specification.id} has it.",
                target="hosts",
            )
    known = {filter.id for filter in specification.filters}
    for wanted in (*(host.filters for host in specification.hosts), *(guard.filters for guard in specification.guards)):
        if unknown := set(wanted) - known:
            raise InvalidParameter(f"Network {specification.id} has no filter {min(unknown)}.", target="filters")
    _check_sets(specification)
    _check_links(specification)


def _check_sets(specification: NetworkSpecification) -> None:
    for number, ranges in enumerate(specification.address_sets):
        before = -2
        for first, last in ranges:
            if not before + 1 < first <= last < 1 << 32:
                raise InvalidParameter(
                    f"Address set {number} of network {specification.id} is not in order.", target="address_sets"
                )
            before = last
    for filter in specification.filters:
        for rule in (*filter.inbound, *filter.outbound, *filter.platform):
            for number in (rule.sources, rule.destinations):
                if not 0 <= number < len(specification.address_sets):
                    raise InvalidParameter(
                        f"Network {specification.id} has no address set {number}.", target="address_sets"
                    )


def _check_links(specification: NetworkSpecification) -> None:
    """Every link leads to another network, and no range is in two places."""
    networks = [specification.id, *(link.network for link in specification.links)]
    if len(set(networks)) != len(networks):
        raise InvalidParameter(f"Network {specification.id} is linked with one twice, or with itself.", target="links")
    ranges = [(prefix, link.network) for link in specification.links for prefix in link.prefixes]
    ranges += [(prefix, specification.id) for prefix in specification.prefixes]
    # In order, a range that overlaps an earlier one overlaps the one that reaches farthest.
    ranges.sort(key=lambda item: (int(item[0].network_address), item[0].prefixlen))
    farthest = None
    for prefix, where in ranges:
        if farthest is not None and prefix.network_address <= farthest[0].broadcast_address:
            raise InvalidParameter(
                f"Network {specification.id} cannot reach {prefix} in {where}: it overlaps {farthest[0]} in {farthest[1]}.",
                target="links",
            )
        farthest = (prefix, where)


def _subnet_of(host: HostSpecification, specification: NetworkSpecification) -> IPv4Network:
    for subnet in specification.subnets:
        if host.address in subnet:
            return subnet
    raise InvalidParameter(
        f"VM {host.name} has {host.address}, which is in no subnet of network {specification.id}.", target="hosts"
    )


def _gateway(subnet: IPv4Network) -> IPv4Address:
    return subnet.network_address + 1


def _own_addresses(specification: NetworkSpecification) -> frozenset[IPv4Address]:
    gateways = {_gateway(subnet) for subnet in specification.subnets}
    platform = {WIRE_ADDRESS, METADATA_ADDRESS} if specification.platform else set()
    return frozenset({*gateways, *platform, *specification.addresses, *specification.public_addresses})


def _link_name(index: int) -> str:
    return f"vm{index}"


def _pair(host: Host) -> Message:
    return add_pair(
        index=host.link,
        name=_link_name(host.link),
        mac=GATEWAY_MAC,
        peer_index=_HOST_LINK,
        peer_name=_HOST_LINK_NAME,
        peer_mac=host.mac,
        peer_namespace=host.namespace.descriptor,
    )


def _network_plan(specification: NetworkSpecification, hosts: Sequence[Host], joined: Links) -> Plan:
    links = [LinkPlan(LOOPBACK, "loopback link")]
    routes = {Route(prefix, RouteKind.UNREACHABLE) for prefix in specification.prefixes}
    link_plans, link_routes = joined.plans()
    links += link_plans
    routes |= link_routes
    for host in hosts:
        links.append(LinkPlan(host.link, f"link of VM {host.specification.name}", GATEWAY_MAC, _SETTINGS))
        routes.add(Route(IPv4Network(host.specification.address), link=host.link))
    addresses = {Address(LOOPBACK, address, 32) for address in _own_addresses(specification)}
    return Plan(tuple(links), frozenset({_LOCALHOST, *addresses}), frozenset(routes), exact_routes=True)


def _host_plan(host: Host) -> Plan:
    address = Address(_HOST_LINK, host.specification.address, host.subnet.prefixlen)
    near = Route(host.subnet, link=_HOST_LINK)
    default = Route(_EVERYWHERE, link=_HOST_LINK, gateway=_gateway(host.subnet))
    links = (LinkPlan(LOOPBACK, "loopback link"), LinkPlan(_HOST_LINK, "link", host.mac))
    return Plan(links, frozenset({_LOCALHOST, address}), frozenset({near, default}), exact_routes=False)


def _converge(namespace: Namespace, plan: Plan, before: Plan | None, where: str) -> list[Step]:
    """Compare and mend until nothing is left to mend: one change can take others away (the last address of a link takes
    its routes, a primary address its secondaries). A first build needs no second look."""
    done: list[Step] = []
    for _ in range(_ROUNDS):
        steps = compare(plan, before, observe(namespace.netlink))
        if not steps:
            return done
        namespace.netlink.send([message for step in steps for message in step.messages], where)
        done += [step for step in steps if step not in done]
        if before is None:
            return done
    raise LocalProblem(f"The kernel does not keep what it is told in {where}: {', '.join(step.what for step in done)}.")
