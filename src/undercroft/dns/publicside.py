"""The deployment's public names made ready to answer, and the reverse names of one network's hosts."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final

import dns.rdatatype

from undercroft.dns.answers import Absent, NameData, Outcome, Records, RecordSet
from undercroft.dns.labels import above, encoded, tails
from undercroft.dns.records import alias, denial_at, ordinary_soa, parsed, type_text
from undercroft.dns.views import PublicNames, RecordSetView
from undercroft.dns.zones import Node, outcome_at
from undercroft.errors import InvalidParameter

__all__ = ["PublicSide", "ReverseNames"]

A: Final = int(dns.rdatatype.A)
CNAME: Final = int(dns.rdatatype.CNAME)
PTR: Final = int(dns.rdatatype.PTR)
SOA: Final = int(dns.rdatatype.SOA)
_REVERSE_TTL = 10
"""As of the records that auto-registration writes."""


class PublicSide:
    """A handler (see ``chain``)."""

    def __init__(self, names: PublicNames) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.suffixes = frozenset(encoded(text.lower(), "suffix") for text in names.suffixes)
        for text, addresses in names.addresses.items():
            self.nodes[encoded(text.lower(), "public name")] = _addresses(text, addresses, names.address_ttl)
        for text, target in names.aliases.items():
            self._alias(encoded(text.lower(), "public name"), encoded(target, "CNAME target"), names.alias_ttl)
        self.above = frozenset(name for known in (*self.nodes, *self.suffixes) for name in above(known))

    def _alias(self, name: bytes, target: bytes, ttl: int) -> None:
        addresses = self.nodes.get(name)
        if target.lower() not in self.nodes and addresses is not None:
            self.nodes[target.lower()] = addresses
        self.nodes[name] = {CNAME: alias(target, ttl)}

    def owns(self, name: bytes) -> bool:
        return name in self.nodes or self._suffix(name) is not None

    def _suffix(self, name: bytes) -> bytes | None:
        """The longest suffix of the deployment's own that holds the name."""
        return next((tail for tail in tails(name) if tail in self.suffixes), None)

    def look_up(self, name: bytes, kind: int) -> Outcome | None:
        """None: the deployment has nothing to say about the name."""
        node = self.nodes.get(name)
        if node is not None:
            found = outcome_at(node, kind)
            if found is not None:
                return found
            zone = self._suffix(name) or name[name[0] + 1 :]
            return Absent(True, denial_at(zone), f"the public name has no {type_text(kind)} record")
        suffix = self._suffix(name)
        if suffix is None:
            return None
        if name == suffix and kind == SOA:
            return Records(ordinary_soa())
        exists = name == suffix or name in self.above
        return Absent(exists, denial_at(suffix), "the deployment has no such name")


def _addresses(text: str, addresses: tuple[IPv4Address, ...], ttl: int) -> Node:
    if not isinstance(addresses, tuple) or not addresses:
        raise InvalidParameter(f"The public name '{text}' needs a tuple of at least one address.", target=text)
    return {A: parsed(f"Public name '{text}'", A, RecordSetView(ttl, tuple(map(str, addresses))))}


class ReverseNames:
    """A handler: the names of the network's own hosts by their addresses; about any other address it says nothing."""

    def __init__(self, hosts: Mapping[IPv4Address, str]) -> None:
        self._nodes = {
            encoded(address.reverse_pointer): RecordSet(
                PTR, _REVERSE_TTL, (NameData(b"", (encoded(name, "name of a host"),)),)
            )
            for address, name in hosts.items()
        }

    def owns(self, name: bytes) -> bool:
        return name in self._nodes

    def look_up(self, name: bytes, kind: int) -> Outcome | None:
        found = self._nodes.get(name)
        if found is None:
            return None
        if kind == PTR:
            return Records(found)
        return Absent(True, denial_at(name[name[0] + 1 :]), f"the name has no {type_text(kind)} record")
