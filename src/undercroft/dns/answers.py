"""The values that pass between handlers, chain and wire. A name is bytes in wire form (see ``labels``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from dns.edns import EDECode
from dns.rcode import Rcode

__all__ = [
    "Absent",
    "Alias",
    "Answer",
    "Denial",
    "Inquiry",
    "NameData",
    "Outcome",
    "Placed",
    "Question",
    "RecordSet",
    "Records",
    "UpstreamReply",
]


class NameData(NamedTuple):
    """Record data with names in it that may be compressed (RFC 3597 section 4: only those of RFC 1035's types)."""

    before: bytes
    names: tuple[bytes, ...]
    after: bytes = b""


@dataclass(frozen=True, slots=True)
class RecordSet:
    """Records of one type at one name, parsed when they were published and ready to be copied into answers."""

    type: int
    ttl: int
    data: tuple[bytes | NameData, ...]
    target: bytes = b""
    """Of a CNAME, as it is spelled."""


Placed: TypeAlias = tuple[bytes, RecordSet]
"""Records with the name they belong to."""


class Question(NamedTuple):
    name: bytes
    """As the client spelled it: the answer repeats the spelling (0x20, draft-vixie-dnsext-dns0x20)."""
    key: bytes
    """In lower case."""
    type: int
    recursion_desired: bool = True


@dataclass(frozen=True, slots=True)
class Denial:
    """The SOA that goes with a negative answer, its TTL being how long the answer may be remembered (RFC 2308 section 3)."""

    owner: bytes
    soa: RecordSet


@dataclass(frozen=True, slots=True)
class Records:
    records: RecordSet


@dataclass(frozen=True, slots=True)
class Alias:
    records: RecordSet


@dataclass(frozen=True, slots=True)
class Absent:
    """``exists``: the name is there and has no record of that type (NODATA); else it is not there at all (NXDOMAIN)."""

    exists: bool
    denial: Denial
    reason: str
    """Shown by dig as an extended error (RFC 8914): which source said no."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Only an upstream resolver can say."""

    name: bytes
    """In lower case."""
    type: int


Outcome: TypeAlias = Records | Alias | Absent | Inquiry


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    rcode: Rcode
    answer: tuple[Placed, ...] = ()
    denial: Denial | None = None
    reason: str | None = None
    """Why there is no answer, when ``rcode`` is SERVFAIL."""


@dataclass(frozen=True, slots=True)
class Answer:
    rcode: Rcode
    records: tuple[Placed, ...] = ()
    denial: Denial | None = None
    error: tuple[EDECode, str] | None = None
    lasting: bool = True
    """Made of published records alone: good until the next publishing. What came from upstream ages instead."""
