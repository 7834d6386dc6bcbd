"""Private zones made ready to answer: parsed when they are published, and only where they changed.

A zone's tree follows RFC 4592: a name exists when it has records or when a name below it has (an empty non-terminal), and a wildcard
answers only for names whose closest existing ancestor is the wildcard's parent. A view that does not parse is refused whole, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import dns.rdatatype

from undercroft.dns.answers import Absent, Alias, Outcome, Records, RecordSet
from undercroft.dns.labels import ROOT, above, encoded, shown
from undercroft.dns.records import ordinary_soa, parsed, soa_of, type_text
from undercroft.dns.views import RECORD_TYPES, RecordSetView, ZoneView
from undercroft.errors import InvalidParameter

__all__ = ["Node", "Zone", "outcome_at"]

Node: TypeAlias = Mapping[int, RecordSet]
"""What one name has, by type."""
CNAME: Final = int(dns.rdatatype.CNAME)
SOA: Final = int(dns.rdatatype.SOA)
_Key: TypeAlias = tuple[str, str]
_TYPES: Final = {text: int(dns.rdatatype.RdataType.make(text)) for text in RECORD_TYPES}


def outcome_at(node: Node, kind: int) -> Records | Alias | None:
    """What the name has for the question; None if nothing."""
    found = node.get(kind)
    if found is not None:
        return Records(found)
    alias = node.get(CNAME)
    return Alias(alias) if alias is not None else None


class Zone:
    """Never changed once it is there; shared by all networks that are linked to it.

    ``owners``: the names with records; ``below``: how many owners lie below each name within the zone.
    """

    __slots__ = ("__weakref__", "below", "denial", "name", "no_such_name", "owners", "records")

    def __init__(self, view: ZoneView, before: Zone | None = None) -> None:
        """``before``: an earlier state of the zone, of which only what differs is parsed anew. Raises ``InvalidParameter`` naming
        zone, record and value when anything in the view cannot be served."""
        self.name = encoded(view.name.lower(), "zone name")
        if self.name == ROOT:
            raise InvalidParameter("A private zone cannot be the root of all names.", target="name")
        self.records: Mapping[_Key, RecordSetView] = view.records
        change = _Change(view.name, self.name, before)
        if before is not None:
            for key in before.records.keys() - view.records.keys():
                change.remove(key, before.records[key])
            changed = [key for key, new in view.records.items() if before.records.get(key) is not new]
            for key in changed:
                if key in before.records:
                    change.remove(key, before.records[key])
        else:
            changed = list(view.records)
        for key in changed:
            change.add(key, view.records[key])
        self.owners: Mapping[bytes, Node] = change.owners
        self.below: Mapping[bytes, int] = change.below
        soa = self.owners.get(self.name, {}).get(SOA)
        self.denial = soa_of(self.name, ordinary_soa() if soa is None else soa)
        self.no_such_name = f"zone {shown(self.name)} is linked to this network and has no such name"

    def look_up(self, name: bytes, kind: int) -> Outcome:
        """``name`` is the key of the zone's own name or of one below it."""
        node = self.owners.get(name)
        if node is None:
            node = self._other(name)
            if node is None:
                return Absent(False, self.denial, self.no_such_name)
        found = outcome_at(node, kind)
        if found is not None:
            return found
        if kind == SOA and name == self.name:
            return Records(ordinary_soa())
        return Absent(True, self.denial, f"the name has no {type_text(kind)} record")

    def _other(self, name: bytes) -> Node | None:
        """A name without records of its own: the zone's own, an empty non-terminal, or a wildcard's."""
        if name == self.name or name in self.below:
            return {}
        for closest in above(name):
            if closest == self.name or closest in self.owners or closest in self.below:
                # The closest encloser; a wildcard further up does not apply (RFC 4592 section 3.3.1).
                return self.owners.get(b"\1*" + closest)
        return None


class _Change:
    """A copy of the zone before, and what is taken out of it and put into it."""

    def __init__(self, text: str, apex: bytes, before: Zone | None) -> None:
        self._text = text
        self._apex = apex
        self.owners: dict[bytes, Node] = {} if before is None else dict(before.owners)
        self.below: dict[bytes, int] = {} if before is None else dict(before.below)

    def remove(self, key: _Key, records: RecordSetView) -> None:
        if not records.values:
            return
        relative, kind = key
        owner = self._owner(relative)
        node = dict(self.owners.pop(owner))
        del node[_TYPES[kind]]
        if node:
            self.owners[owner] = node
        else:
            self._count(owner, -1)

    def add(self, key: _Key, records: RecordSetView) -> None:
        relative, kind = key
        where = f"Zone '{self._text}', record '{relative}' {kind}"
        type_ = _TYPES.get(kind)
        if type_ is None:
            known = ", ".join(sorted(RECORD_TYPES))
            raise InvalidParameter(f"{where}: private zones have {known} records only.", target="type")
        if not relative or relative.endswith("."):
            raise InvalidParameter(f"{where}: the name must be relative to the zone, or '@'.", target="name")
        owner = self._owner(relative)
        if owner == self._apex and type_ == CNAME:
            raise InvalidParameter(f"{where}: the zone itself cannot be a CNAME (RFC 1034 3.6.2).", target="type")
        if owner != self._apex and type_ == SOA:
            raise InvalidParameter(f"{where}: only the zone itself ('@') has an SOA record.", target="name")
        if not records.values:
            return  # our decision: an empty record set exists for ARM and is unknown to DNS
        node = self.owners.get(owner)
        if node is None:
            self._count(owner, 1)
            node = {}
        if type_ in node:
            raise InvalidParameter(f"{where}: given twice (names compare without case).", target="name")
        if node and (type_ == CNAME or CNAME in node):
            raise InvalidParameter(
                f"{where}: a CNAME admits no other record at its name (RFC 1034 3.6.2).", target="name"
            )
        self.owners[owner] = {**node, type_: parsed(where, type_, records)}

    def _owner(self, relative: str) -> bytes:
        if relative == "@":
            return self._apex
        first = encoded(relative.lower(), f"record name in zone '{self._text}'")
        owner = first[:-1] + self._apex
        if len(owner) > 255:
            raise InvalidParameter(
                f"The record name in zone '{self._text}' '{relative}' is too long together with the zone's.",
                target=relative,
            )
        return owner

    def _count(self, owner: bytes, by: int) -> None:
        for name in above(owner):
            if len(name) < len(self._apex):
                return
            left = self.below.get(name, 0) + by
            if left:
                self.below[name] = left
            else:
                del self.below[name]
