"""Links between networks: a veth pair, and in each network routes to what the other is.

A pair exists while the specifications of both networks have the link, so it comes with the second ``apply`` and goes with the first
that lacks it, in either order. It is unnumbered: both ends have one MAC and ask nobody for another (IFF_NOARP), because an ARP question
would be sent from 168.63.129.16, which the other network owns as well and therefore drops. What may pass is a matter of routes: a
network sends over a link only what the specification names, and accepts only from there (rp_filter), so nothing passes through a
network that both of its neighbours have not named, and 168.63.129.16, 169.254.169.254 and the public side, which are every network's own,
are never looked for elsewhere. The other network's gateways are closed by routes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network

from undercroft.fabric.namespace import Namespace
from undercroft.fabric.plan import LinkPlan
from undercroft.fabric.rtnetlink import Message, Route, RouteKind, Setting, add_pair, delete_link
from undercroft.fabric.specification import Drift, LinkSpecification

__all__ = ["Links"]

_FIRST_LINK = 1_000_000
"""Above every VM's link."""
_MAC = bytes.fromhex("123456789abc")
_SETTINGS: Mapping[int, int] = {
    Setting.FORWARDING: 1,
    Setting.PROXY_ARP: 0,
    Setting.RP_FILTER: 1,
    Setting.SEND_REDIRECTS: 0,
}


def _name(index: int) -> str:
    return f"net{index}"


class Links:
    """The ends in one network's namespace."""

    def __init__(self, id: str, namespace: Namespace) -> None:
        self.id = id
        self._namespace = namespace
        self._wanted: tuple[LinkSpecification, ...] = ()
        self._ends: dict[str, int] = {}
        """Index of the end here, by the other network, of every pair that was made."""

    def want(self, links: Sequence[LinkSpecification]) -> None:
        """From now on these; ``connect`` makes it so."""
        self._wanted = tuple(links)

    def wants(self, network: str) -> bool:
        return any(link.network == network for link in self._wanted)

    def connect(self, others: Mapping[str, Links]) -> tuple[list[Drift], set[str]]:
        """Make the pairs that both sides want and that are not there, delete those that one side does not want any more.
        Returns what changed, and the networks whose routes follow from it."""
        live = {
            link.network: others[link.network]
            for link in self._wanted
            if link.network in others and others[link.network].wants(self.id)
        }
        drifts, changed = self._disconnect(self._ends.keys() - live.keys(), others)
        here = self._namespace.netlink.links()
        messages: list[Message] = []
        for index, link in here.items():
            if link.name == _name(index) and index not in self._ends.values():
                messages.append(delete_link(index))
                drifts.append(Drift(self.id, f"stray link {link.name}", created=False))
        for network, other in live.items():
            end = self._ends.get(network)
            if end is not None and end in here and here[end].name == _name(end):
                continue
            drifts.append(Drift(self.id, f"link to network {network}", created=end is None))
            messages += self._pair(other, here)
            changed.add(network)
        self._namespace.netlink.send(messages, f"network {self.id}")
        return drifts, changed

    def _pair(self, other: Links, here: Mapping[int, object]) -> list[Message]:
        near = self._ends.setdefault(other.id, self._free())
        far = other._ends.setdefault(self.id, other._free())
        # What is left of a pair that was damaged: deleting one end deletes both, but an end may have been moved or renamed.
        other._namespace.netlink.send([delete_link(far)], f"network {other.id}")
        left = [delete_link(near)] if near in here else []
        pair = add_pair(
            index=near,
            name=_name(near),
            mac=_MAC,
            peer_index=far,
            peer_name=_name(far),
            peer_mac=_MAC,
            peer_namespace=other._namespace.descriptor,
            arp=False,
        )
        return [*left, pair]

    def _free(self) -> int:
        used = set(self._ends.values())
        return next(index for index in range(_FIRST_LINK, _FIRST_LINK + len(used) + 1) if index not in used)

    def _disconnect(self, networks: set[str], others: Mapping[str, Links]) -> tuple[list[Drift], set[str]]:
        changed = set()
        messages = []
        for network in sorted(networks):
            messages.append(delete_link(self._ends.pop(network)))
            if (other := others.get(network)) is not None:
                other._ends.pop(self.id, None)
                changed.add(network)
        self._namespace.netlink.send(messages, f"network {self.id}")
        return [
            Drift(self.id, f"stray link to network {network}", created=True) for network in sorted(networks)
        ], changed

    def close(self, others: Mapping[str, Links]) -> set[str]:
        """Delete all of them; the networks that lost one."""
        _, changed = self._disconnect(set(self._ends), others)
        return changed

    def plans(self) -> tuple[list[LinkPlan], set[Route]]:
        """What the kernel's tables of this network hold for the pairs that are there."""
        links, routes = [], set()
        for link in self._wanted:
            index = self._ends.get(link.network)
            if index is None:
                continue
            links.append(LinkPlan(index, f"link to network {link.network}", _MAC, _SETTINGS, arp=False))
            routes |= {Route(prefix, link=index) for prefix in link.prefixes}
            routes |= {Route(IPv4Network(address), RouteKind.UNREACHABLE) for address in link.closed}
        return links, routes
