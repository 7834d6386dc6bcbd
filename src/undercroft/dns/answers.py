"""The values that pass between handlers, chain and wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dns.edns import EDECode
from dns.name import Name
from dns.rcode import Rcode
from dns.rdataset import Rdataset
from dns.rdatatype import RdataType

__all__ = [
    "Absent",
    "Alias",
    "Answer",
    "Denial",
    "Inquiry",
    "Outcome",
    "Placed",
    "Question",
    "Records",
    "UpstreamReply",
]

Placed: TypeAlias = tuple[Name, Rdataset]
"""Records with the name they belong to."""


@dataclass(frozen=True, slots=True)
class Question:
    name: Name
    """As the client spelled it: the answer repeats the spelling (0x20, draft-vixie-dnsext-dns0x20)."""
    type: RdataType
    recursion_desired: bool = True


@dataclass(frozen=True, slots=True)
class Denial:
    """The SOA that goes with a negative answer, its TTL being how long the answer may be remembered (RFC 2308 section 3)."""

    owner: Name
    soa: Rdataset


@dataclass(frozen=True, slots=True)
class Records:
    records: Rdataset


@dataclass(frozen=True, slots=True)
class Alias:
    records: Rdataset
    target: Name


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

    name: Name
    type: RdataType


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
