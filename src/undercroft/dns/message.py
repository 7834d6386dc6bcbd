"""The wire: bytes in, a query or a refusal out; an answer in, bytes out. No socket is touched here.

What is refused, and how: shorter than a header, or a response itself: silence (answering answers lets two servers talk for ever).
Another opcode than QUERY: NOTIMP. What does not parse, or asks other than one question: FORMERR. A class other than IN, or a
question type that asks for more than records (ANY, AXFR, IXFR and their like): REFUSED. EDNS above version 0: BADVERS. A signature
(TSIG): NOTAUTH, since no key is shared with anyone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import dns.message
from dns.edns import EDECode, EDEOption
from dns.exception import DNSException, TooBig
from dns.flags import CD, DO, QR, RA, RD, TC
from dns.name import Name
from dns.opcode import QUERY
from dns.rcode import Rcode
from dns.rdataclass import IN, RdataClass
from dns.rdatatype import OPT, RdataType
from dns.renderer import ANSWER, AUTHORITY, Renderer

from undercroft.dns.answers import Answer, Question

__all__ = ["Query", "cache_key", "failure", "read", "write"]

_renderer: Final[Callable[[int, int, int], Any]] = Renderer  # dnspython leaves it without annotations
_HEADER: Final = struct.Struct("!6H")
_PAYLOAD = 1232
"""Largest datagram we send or ask for: it fits every path without fragments (DNS flag day 2020)."""
_SMALLEST_PAYLOAD = 512  # RFC 6891 6.2.3: a smaller announcement counts as this; also the limit without EDNS
_LARGEST_FRAME = 65535


@dataclass(frozen=True, slots=True)
class Query:
    id: int
    flags: int
    question: Question
    edns: bool
    edns_flags: int
    payload: int


def cache_key(wire: bytes) -> bytes:
    """What two queries with the same answer have in common: all but the id, and all but the random cookie of dig and named.

    A client cookie without a server's (RFC 7873) is the last 14 bytes of OPT; without it the length of OPT's data is zero. We ignore
    cookies, so such a query has the answer of the one without.
    """
    if wire[10:12] == b"\0\1" and wire[-14:-8] == b"\0\x0c\0\x0a\0\x08" and wire[-23:-20] == b"\0\0\x29":
        return wire[2:-14] + b"\0\0"
    return wire[2:]


def read(wire: bytes) -> Query | bytes | None:
    """The query; or the refusal to send; or None for silence. Never raises, whatever the bytes."""
    if len(wire) < _HEADER.size:
        return None
    _, flags, questions, *_ = _HEADER.unpack_from(wire)
    if flags & QR:
        return None
    if (flags >> 11) & 0xF != QUERY:
        return failure(wire, Rcode.NOTIMP)
    if questions != 1:  # RFC 9619
        return failure(wire, Rcode.FORMERR)
    try:
        message = dns.message.from_wire(wire)
    except dns.message.UnknownTSIGKey:
        return failure(wire, Rcode.NOTAUTH)
    except (DNSException, ValueError, struct.error):
        return failure(wire, Rcode.FORMERR)
    return _accept(wire, message)


def _accept(wire: bytes, message: dns.message.Message) -> Query | bytes:
    asked = message.question[0]
    question = Question(asked.name, asked.rdtype, bool(message.flags & RD))
    query = Query(message.id, message.flags, question, message.edns >= 0, message.ednsflags, message.payload)
    if message.edns > 0:
        return write(query, Answer(Rcode.BADVERS), stream=False)
    if asked.rdtype == OPT or message.answer or message.authority:
        return failure(wire, Rcode.FORMERR)
    if asked.rdclass != IN or _meta(asked.rdtype):
        return _refuse(query, asked.name, asked.rdclass)
    return query


def _meta(kind: RdataType) -> bool:
    """Types that are no records: RFC 6895 section 3.1 sets 128 to 255 aside for them."""
    return kind == 0 or 128 <= kind <= 255


def _refuse(query: Query, name: Name, rdclass: RdataClass) -> bytes:
    error = (EDECode.NOT_SUPPORTED, "only single records of class IN are answered; no ANY, no transfers")
    return write(query, Answer(Rcode.REFUSED, error=error), stream=False, rdclass=rdclass)


def failure(wire: bytes, rcode: Rcode) -> bytes:
    """A bare header: for what could not be read. ``wire`` is at least a header."""
    id_, flags, *_ = _HEADER.unpack_from(wire)
    return _HEADER.pack(id_, QR | (flags & 0x7800) | (flags & RD) | RA | rcode, 0, 0, 0, 0)


def write(query: Query, answer: Answer, *, stream: bool, rdclass: RdataClass = IN) -> bytes:
    """The answer's bytes; where they do not fit, the question alone with TC, so that the client comes back by TCP."""
    if stream:
        limit = _LARGEST_FRAME
    else:
        limit = min(max(query.payload, _SMALLEST_PAYLOAD), _PAYLOAD) if query.edns else _SMALLEST_PAYLOAD
    try:
        return _render(query, answer, limit, rdclass, 0)
    except TooBig:
        return _render(query, Answer(answer.rcode), limit, rdclass, TC)


def _render(query: Query, answer: Answer, limit: int, rdclass: RdataClass, extra: int) -> bytes:
    flags = QR | RA | extra | (query.flags & (RD | CD)) | (answer.rcode & 0xF)
    renderer = _renderer(query.id, flags, limit)
    renderer.add_question(query.question.name, query.question.type, rdclass)
    for name, records in answer.records:
        renderer.add_rdataset(ANSWER, name, records)
    if answer.denial is not None:
        renderer.add_rdataset(AUTHORITY, answer.denial.owner, answer.denial.soa)
    if query.edns:
        options = [EDEOption(*answer.error)] if answer.error else []
        edns_flags = (query.edns_flags & DO) | ((answer.rcode >> 4) << 24)  # DO is copied: RFC 3225 section 3
        renderer.add_edns(0, edns_flags, _PAYLOAD, options)
    renderer.write_header()
    wire: bytes = renderer.get_wire()
    return wire
