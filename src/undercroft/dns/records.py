"""Record sets: from zone-file form, or from an upstream's message, to what is copied into answers."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import dns.rdata
import dns.rdatatype
from dns.exception import DNSException
from dns.name import root
from dns.rdata import Rdata
from dns.rdataclass import IN

from undercroft.dns.answers import Denial, NameData, RecordSet
from undercroft.dns.labels import of_name
from undercroft.dns.views import RecordSetView
from undercroft.errors import InvalidParameter

__all__ = ["alias", "denial_at", "of_rdatas", "ordinary_soa", "parsed", "record_data", "soa_of", "type_text"]

A: Final = int(dns.rdatatype.A)
CNAME: Final = int(dns.rdatatype.CNAME)
MX: Final = int(dns.rdatatype.MX)
PTR: Final = int(dns.rdatatype.PTR)
SOA: Final = int(dns.rdatatype.SOA)
_SOA: Final = "azureprivatedns.net. azureprivatedns-host.microsoft.com. 1 3600 300 2419200 10"
_SOA_TTL: Final = 3600
"""As real private zones have it (azure-facts section 2: serial 1, minimum 10, TTL 3600)."""
_LONGEST_TTL: Final = 2**31 - 1  # RFC 2181 section 8


@lru_cache(maxsize=1024)
def type_text(kind: int) -> str:
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(kind))


def record_data(value: Rdata) -> bytes | NameData:
    """Names that may be compressed are kept apart; all other types are opaque (RFC 3597 section 4)."""
    rdata: Any = value  # dnspython's types do not tell what fields a type of record has
    kind = int(value.rdtype)
    if kind in (CNAME, PTR):
        return NameData(b"", (of_name(rdata.target),))
    if kind == MX:
        return NameData(rdata.preference.to_bytes(2, "big"), (of_name(rdata.exchange),))
    wire = value.to_wire()
    assert wire is not None  # only with a file is there nothing to return
    if kind == SOA:
        return NameData(b"", (of_name(rdata.mname), of_name(rdata.rname)), wire[-20:])
    return wire


def parsed(where: str, kind: int, records: RecordSetView) -> RecordSet:
    """Raises ``InvalidParameter`` beginning with ``where`` and naming the value."""
    if not 0 <= records.ttl <= _LONGEST_TTL:
        raise InvalidParameter(f"{where}: the TTL {records.ttl} is not within 0 and {_LONGEST_TTL}.", target="ttl")
    data = tuple(dict.fromkeys(_value(where, kind, value) for value in records.values))
    if kind in (CNAME, SOA) and len(data) > 1:
        raise InvalidParameter(
            f"{where}: a {type_text(kind)} record set has exactly one value, not {len(data)}.", target=where
        )
    return RecordSet(kind, records.ttl, data, _target(kind, data))


def _value(where: str, kind: int, value: str) -> bytes | NameData:
    if kind == A:
        try:
            return socket.inet_pton(socket.AF_INET, value)
        except (OSError, ValueError):
            pass  # dnspython says what is wrong with it
    try:
        # The root as origin: a name in a value is fully qualified, with or without its dot (see views).
        rdata = dns.rdata.from_text(IN, dns.rdatatype.RdataType.make(kind), value, origin=root, relativize=False)
    except (DNSException, UnicodeError, ValueError) as error:
        message = f"{where}: the value {value!r} is not a {type_text(kind)} record in zone-file form: {error}"
        raise InvalidParameter(message, target=where) from error
    return record_data(rdata)


def _target(kind: int, data: Sequence[bytes | NameData]) -> bytes:
    if kind == CNAME and data and isinstance(data[0], NameData):
        return data[0].names[0]
    return b""


def alias(target: bytes, ttl: int) -> RecordSet:
    return RecordSet(CNAME, ttl, (NameData(b"", (target,)),), target)


def of_rdatas(kind: int, ttl: int, rdatas: Sequence[Rdata]) -> RecordSet:
    data = tuple(map(record_data, rdatas))
    return RecordSet(int(kind), ttl, data, _target(kind, data))


def ordinary_soa() -> RecordSet:
    """The SOA that a zone has when nobody gave it one."""
    return parsed("SOA", SOA, RecordSetView(_SOA_TTL, (_SOA,)))


def soa_of(owner: bytes, soa: RecordSet) -> Denial:
    """A denial with this SOA: for as long as the smaller of its TTL and its minimum (RFC 2308 section 5)."""
    (data,) = soa.data
    assert isinstance(data, NameData)
    minimum = int.from_bytes(data.after[-4:], "big")
    return Denial(owner, replace(soa, ttl=min(soa.ttl, minimum)))


@lru_cache(maxsize=4096)
def denial_at(owner: bytes) -> Denial:
    """A denial with the SOA of private zones, for names that no published zone holds."""
    return soa_of(owner, ordinary_soa())
