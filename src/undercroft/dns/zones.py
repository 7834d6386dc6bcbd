"""Views made ready to answer: parsed once, when they are published. A view that does not parse is refused whole, by name.

A zone's tree follows RFC 4592: a name exists when it has records or when a name below it has (an empty non-terminal), and a wildcard
answers only for names whose closest existing ancestor is the wildcard's parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address

import dns.rdata
import dns.rdatatype
from dns.exception import DNSException
from dns.name import Name, from_text, root
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdataset import Rdataset, from_rdata, from_rdata_list
from dns.rdatatype import CNAME, SOA, RdataType

from undercroft.dns.answers import Absent, Alias, Denial, Outcome, Records
from undercroft.dns.views import RECORD_TYPES, PublicNames, RecordSetView, ZoneView
from undercroft.errors import InvalidParameter

__all__ = ["PublicSide", "Zone", "ancestors", "denial_at"]

_SOA = "azureprivatedns.net. azureprivatedns-host.microsoft.com. 1 3600 300 2419200 10"
_SOA_TTL = 3600
"""As real private zones have it (azure-facts section 2: serial 1, minimum 10, TTL 3600)."""
_LONGEST_TTL = 2**31 - 1  # RFC 2181 section 8


def _soa() -> Rdataset:
    return from_rdata(_SOA_TTL, dns.rdata.from_text(IN, SOA, _SOA))


def _denial(owner: Name, soa: Rdataset) -> Denial:
    return Denial(owner, from_rdata(min(soa.ttl, soa[0].minimum), soa[0]))


def denial_at(owner: Name) -> Denial:
    """A denial with the SOA of private zones, for names that no published zone holds."""
    return _denial(owner, _soa())


def ancestors(name: Name) -> list[Name]:
    """The names above ``name``, nearest first, without the root."""
    return [Name(name.labels[depth:]) for depth in range(1, len(name.labels) - 1)]


def _name(text: str, what: str, origin: Name = root) -> Name:
    try:
        return from_text(text, origin)
    except (DNSException, UnicodeError, ValueError) as error:
        raise InvalidParameter(f"The {what} '{text}' is not a DNS name: {error}", target=text) from error


@lru_cache(maxsize=16384)
def _rdata(kind: RdataType, value: str) -> Rdata:
    """Remembered, because a view is published whole when one record of it has changed, and once per linked network."""
    # The root as origin: a name in a value is fully qualified, with or without its dot (see views).
    return dns.rdata.from_text(IN, kind, value, origin=root, relativize=False)


def _parse(where: str, kind: RdataType, records: RecordSetView) -> Rdataset:
    """Raises ``InvalidParameter`` beginning with ``where``."""
    if not 0 <= records.ttl <= _LONGEST_TTL:
        raise InvalidParameter(f"{where}: the TTL {records.ttl} is not within 0 and {_LONGEST_TTL}.", target="ttl")
    parsed = []
    for value in records.values:
        try:
            parsed.append(_rdata(kind, value))
        except (DNSException, UnicodeError, ValueError) as error:
            message = f"{where}: the value {value!r} is not a {kind.name} record in zone-file form: {error}"
            raise InvalidParameter(message, target=where) from error
    if kind in (CNAME, SOA) and len(set(parsed)) > 1:
        raise InvalidParameter(
            f"{where}: a {kind.name} record set has exactly one value, not {len(parsed)}.", target=where
        )
    return from_rdata_list(records.ttl, parsed)


def _outcome(node: Mapping[RdataType, Rdataset], kind: RdataType) -> Records | Alias | None:
    found = node.get(kind)
    if found is not None:
        return Records(found)
    alias = node.get(CNAME)
    return Alias(alias, alias[0].target) if alias is not None else None


@dataclass(frozen=True, slots=True)
class Zone:
    name: Name
    nodes: Mapping[Name, Mapping[RdataType, Rdataset]]
    denial: Denial
    redirects: bool

    @classmethod
    def of(cls, view: ZoneView) -> Zone:
        """Raises ``InvalidParameter`` naming zone, record and value when anything in the view cannot be served."""
        apex = _name(view.name, "zone name")
        if apex == root:
            raise InvalidParameter("A private zone cannot be the root of all names.", target="name")
        nodes: dict[Name, dict[RdataType, Rdataset]] = {apex: {}}
        for (relative, kind), records in view.records.items():
            where = f"Zone '{view.name}', record '{relative}' {kind}"
            if kind not in RECORD_TYPES:
                known = ", ".join(sorted(RECORD_TYPES))
                raise InvalidParameter(f"{where}: private zones have {known} records only.", target="type")
            owner = apex if relative == "@" else _name(relative, f"record name in zone '{view.name}'", apex)
            if not relative or relative.endswith("."):
                raise InvalidParameter(f"{where}: the name must be relative to the zone, or '@'.", target="name")
            type_ = RdataType.make(kind)
            if owner is apex and type_ == CNAME:
                raise InvalidParameter(f"{where}: the zone itself cannot be a CNAME (RFC 1034 3.6.2).", target="type")
            if owner is not apex and type_ == SOA:
                raise InvalidParameter(f"{where}: only the zone itself ('@') has an SOA record.", target="name")
            if not records.values:
                continue  # our decision: an empty record set exists for ARM and is unknown to DNS
            parsed = _parse(where, type_, records)
            node = nodes.setdefault(owner, {})
            if type_ in node:
                raise InvalidParameter(f"{where}: given twice (names compare without case).", target="name")
            node[type_] = parsed
            if CNAME in node and len(node) > 1:
                raise InvalidParameter(
                    f"{where}: a CNAME admits no other record at its name (RFC 1034 3.6.2).", target="name"
                )
            for depth in range(1, len(owner.labels) - len(apex.labels)):
                nodes.setdefault(Name(owner.labels[depth:]), {})  # an empty non-terminal, unless it has records too
        soa = nodes[apex].setdefault(SOA, _soa())
        return cls(apex, nodes, _denial(apex, soa), view.nxdomain_redirect)

    def look_up(self, name: Name, kind: RdataType) -> Outcome:
        """``name`` is the zone's own or below it."""
        node = self.nodes.get(name)
        if node is None:
            node = self._wildcard(name)
            if node is None:
                text = self.name.to_text(omit_final_dot=True)
                return Absent(False, self.denial, f"zone {text} is linked to this network and has no such name")
        found = _outcome(node, kind)
        if found is None:
            return Absent(True, self.denial, f"the name has no {dns.rdatatype.to_text(kind)} record")
        return found

    def _wildcard(self, name: Name) -> Mapping[RdataType, Rdataset] | None:
        for above in ancestors(name):
            if above in self.nodes:  # the closest encloser; a wildcard further up does not apply (RFC 4592 3.3.1)
                return self.nodes.get(Name((b"*", *above.labels)))
        return None


class PublicSide:
    """The deployment's public names, ready to answer."""

    def __init__(self, names: PublicNames) -> None:
        self.nodes: dict[Name, Mapping[RdataType, Rdataset]] = {}
        self.suffixes = frozenset(_name(text, "suffix") for text in names.suffixes)
        for text, addresses in names.addresses.items():
            self.nodes[_name(text, "public name")] = _addresses(text, addresses, names.address_ttl)
        for text, target in names.aliases.items():
            self._alias(_name(text, "public name"), _name(target, "CNAME target"), names.alias_ttl)
        self.above = frozenset(above for name in (*self.nodes, *self.suffixes) for above in ancestors(name))

    def _alias(self, name: Name, target: Name, ttl: int) -> None:
        cname = dns.rdata.from_text(IN, CNAME, target.to_text())
        addresses = self.nodes.get(name)
        if target not in self.nodes and addresses is not None:
            self.nodes[target] = addresses
        self.nodes[name] = {CNAME: from_rdata(ttl, cname)}

    def owns(self, name: Name) -> bool:
        return name in self.nodes or self.suffix(name) is not None

    def suffix(self, name: Name) -> Name | None:
        """The longest suffix of the deployment's own that holds the name."""
        return next((above for above in (name, *ancestors(name)) if above in self.suffixes), None)

    def look_up(self, name: Name, kind: RdataType) -> Outcome | None:
        """None: the deployment has nothing to say about the name."""
        suffix = self.suffix(name)
        node = self.nodes.get(name)
        if node is not None:
            zone = suffix or name.parent()
            return _outcome(node, kind) or Absent(
                True, denial_at(zone), f"the public name has no {dns.rdatatype.to_text(kind)} record"
            )
        if suffix is None:
            return None
        if name == suffix and kind == SOA:
            return Records(_soa())
        exists = name == suffix or name in self.above
        return Absent(exists, denial_at(suffix), "the deployment has no such name")


def _addresses(text: str, addresses: tuple[IPv4Address, ...], ttl: int) -> Mapping[RdataType, Rdataset]:
    if not isinstance(addresses, tuple) or not addresses:
        raise InvalidParameter(f"The public name '{text}' needs a tuple of at least one address.", target=text)
    a = RdataType.make("A")
    return {a: _parse(f"Public name '{text}'", a, RecordSetView(ttl, tuple(map(str, addresses))))}
