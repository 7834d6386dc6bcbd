"""What an answer must be, worked out again by dnspython alone and without regard to speed: names as ``Name``, a linear search, its
own renderer. The name server is compared with it byte for byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.renderer
from dns.exception import TooBig
from dns.name import Name
from dns.rdataset import Rdataset

from undercroft.dns.views import NetworkView, PublicNames, RecordSetView, ZoneView

__all__ = ["answer"]

SOA = "azureprivatedns.net. azureprivatedns-host.microsoft.com. 1 3600 300 2419200 10"
REDIRECTED = ("A", "AAAA", "CNAME")


@dataclass(frozen=True)
class Said:
    """What one source says: records, or that there are none (``exists``: the name is there), with the zone that says so."""

    records: Rdataset | None = None
    zone: Name | None = None
    soa: Rdataset | None = None
    exists: bool = False
    reason: str = ""


def rdataset(kind: str, ttl: int, values: Iterable[str]) -> Rdataset:
    return dns.rdataset.from_text_list("IN", kind, ttl, list(values), origin=dns.name.root, relativize=False)


def named(text: str, origin: Name = dns.name.root) -> Name:
    return origin if text == "@" else dns.name.from_text(text, origin)


def in_zone(zone: ZoneView, name: Name, kind: str) -> Said:
    apex = named(zone.name)
    held: dict[Name, dict[str, RecordSetView]] = {apex: {}}
    for (relative, type_), records in zone.records.items():
        if records.values:
            held.setdefault(named(relative, apex), {})[type_] = records
    existing = {Name(owner.labels[n:]) for owner in held for n in range(len(owner.labels)) if owner.is_subdomain(apex)}
    existing = {owner for owner in existing if owner.is_subdomain(apex)}
    own = held[apex].get("SOA")
    soa = rdataset("SOA", *((own.ttl, own.values) if own else (3600, (SOA,))))
    node = held.get(name, {}) if name in existing else None
    if node is None:
        closest = name.parent()
        while closest not in existing:
            closest = closest.parent()
        node = held.get(Name((b"*", *closest.labels)))
    if node is None:
        text = apex.to_text(omit_final_dot=True)
        return Said(zone=apex, soa=soa, reason=f"zone {text} is linked to this network and has no such name")
    for found in (kind, "CNAME"):
        if found in node:
            return Said(records=rdataset(found, node[found].ttl, node[found].values))
    if kind == "SOA" and name == apex:
        return Said(records=soa)
    return Said(zone=apex, soa=soa, exists=True, reason=f"the name has no {kind} record")


def in_public(public: PublicNames, name: Name, kind: str) -> Said | None:
    soa = rdataset("SOA", 3600, (SOA,))
    suffixes = [named(text) for text in public.suffixes]
    addresses = {named(text): tuple(map(str, found)) for text, found in public.addresses.items()}
    aliases = {named(text): target for text, target in public.aliases.items()}
    for alias, target in aliases.items():
        if alias in addresses:
            addresses.setdefault(named(target), addresses[alias])
    suffix = max((one for one in suffixes if name.is_subdomain(one)), key=len, default=None)
    if name in aliases:
        return Said(records=rdataset("CNAME", public.alias_ttl, (aliases[name] + ".",)))
    if name in addresses:
        if kind == "A":
            return Said(records=rdataset("A", public.address_ttl, addresses[name]))
        return Said(zone=suffix or name.parent(), soa=soa, exists=True, reason=f"the public name has no {kind} record")
    if suffix is None:
        return None
    if name == suffix and kind == "SOA":
        return Said(records=soa)
    known = (*addresses, *aliases, *suffixes)
    exists = any(one.is_subdomain(name) for one in known)
    return Said(zone=suffix, soa=soa, exists=exists, reason="the deployment has no such name")


def said(view: NetworkView, public: PublicNames, name: Name, kind: str) -> Said:
    zone = max(
        (zone for zone in view.zones if name.is_subdomain(named(zone.name))),
        key=lambda one: len(named(one.name)),
        default=None,
    )
    if zone is not None:
        found = in_zone(zone, name, kind)
        if found.records is not None or found.exists or not (zone.nxdomain_redirect and kind in REDIRECTED):
            return found
    for address, host in view.hosts.items():
        if name == named(address.reverse_pointer):
            if kind == "PTR":
                return Said(records=rdataset("PTR", 10, (host + ".",)))
            soa = rdataset("SOA", 3600, (SOA,))
            return Said(zone=name.parent(), soa=soa, exists=True, reason=f"the name has no {kind} record")
    elsewhere = in_public(public, name, kind)
    if elsewhere is not None:
        return elsewhere
    roots = [named(text) for text in (*public.addresses, *public.aliases, *public.aliases.values(), *public.suffixes)]
    roots += [named(one.name) for one in view.zones]
    exists = name == dns.name.root or any(one != name and one.is_subdomain(name) for one in roots)
    reason = "no linked zone or public name, and no upstream resolver is configured"
    return Said(zone=dns.name.root, soa=rdataset("SOA", 3600, (SOA,)), exists=exists, reason=reason)


def answer(view: NetworkView, public: PublicNames, query: dns.message.Message, *, stream: bool) -> bytes:
    """The bytes that a query of one question of class IN and an ordinary type gets, without cookies."""
    kind = dns.rdatatype.to_text(query.question[0].rdtype)
    name = query.question[0].name
    records: list[tuple[Name, Rdataset]] = []
    last = None
    rcode = dns.rcode.NOERROR
    while True:
        found = said(view, public, name, kind)
        if found.records is None:
            last = found
            rcode = dns.rcode.NOERROR if found.exists else dns.rcode.NXDOMAIN
            break
        records.append((name, found.records))
        if found.records.rdtype != dns.rdatatype.CNAME or kind == "CNAME":
            break
        if len(records) > 16:
            last = Said(
                reason=f"more than 16 CNAMEs lead on from {query.question[0].name.to_text(omit_final_dot=True)}"
            )
            records, rcode = [], dns.rcode.SERVFAIL
            break
        name = found.records[0].target
    limit = 65535 if stream else min(max(query.payload, 512), 1232) if query.edns >= 0 else 512
    for cut, reason in ((False, last.reason if last else ""), (False, ""), (True, "")):
        try:
            return rendered(query, [] if cut else records, None if cut else last, rcode, limit, reason, cut)
        except TooBig:
            continue
    raise AssertionError("a question always fits")


def rendered(
    query: dns.message.Message,
    records: list[tuple[Name, Rdataset]],
    last: Said | None,
    rcode: dns.rcode.Rcode,
    limit: int,
    reason: str,
    cut: bool,
) -> bytes:
    copied = query.flags & (dns.flags.RD | dns.flags.CD)
    flags = dns.flags.QR | dns.flags.RA | copied | rcode | (dns.flags.TC if cut else 0)
    renderer = dns.renderer.Renderer(query.id, flags, limit)  # type: ignore[no-untyped-call]
    question = query.question[0]
    renderer.add_question(question.name, question.rdtype)  # type: ignore[no-untyped-call]
    for owner, found in records:
        renderer.add_rdataset(dns.renderer.ANSWER, owner, found, want_shuffle=False)  # type: ignore[no-untyped-call]
    if last is not None and last.soa is not None:
        denial = dns.rdataset.from_rdata(min(last.soa.ttl, last.soa[0].minimum), last.soa[0])
        renderer.add_rdataset(dns.renderer.AUTHORITY, last.zone, denial)  # type: ignore[no-untyped-call]
    if query.edns >= 0:
        options = [dns.edns.EDEOption(dns.edns.EDECode.OTHER, reason)] if reason else []
        renderer.add_edns(0, query.ednsflags & dns.flags.DO, 1232, options)  # type: ignore[no-untyped-call]
    renderer.write_header()  # type: ignore[no-untyped-call]
    wire: bytes = renderer.get_wire()  # type: ignore[no-untyped-call]
    return wire
