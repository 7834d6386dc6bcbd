"""The wire: bytes in, a query or a refusal out; an answer in, bytes out. No socket is touched here.

The ordinary query (one question of class IN, at most an OPT behind it) is read by hand; everything else by dnspython, which decides
what is wrong with it. What is refused, and how: shorter than a header, or a response itself: silence (answering answers lets two
servers talk for ever). Another opcode than QUERY: NOTIMP. What does not parse, or asks other than one question: FORMERR. A class other
than IN, or a question type that asks for more than records (ANY, AXFR, IXFR and their like): REFUSED. EDNS above version 0: BADVERS. A
signature (TSIG): NOTAUTH, since no key is shared with anyone.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

import dns.message
import dns.rdataclass
import dns.rdatatype
from dns import flags as bits_of
from dns.edns import EDECode, OptionType
from dns.exception import DNSException
from dns.opcode import QUERY
from dns.rcode import Rcode

from undercroft.dns import labels
from undercroft.dns.answers import Answer, Question
from undercroft.dns.packer import Packed, pack

__all__ = ["Key", "Query", "Rendered", "failure", "finish", "read", "render", "server_cookie", "truncated"]

# Plain integers: arithmetic on enumerations costs more than all the rest of an answer.
QR: Final = int(bits_of.QR)
RD: Final = int(bits_of.RD)
RA: Final = int(bits_of.RA)
TC: Final = int(bits_of.TC)
DO: Final = int(bits_of.DO)
_COPIED: Final = RD | int(bits_of.CD)
OPT: Final = int(dns.rdatatype.OPT)
IN: Final = int(dns.rdataclass.IN)
COOKIE: Final = int(OptionType.COOKIE)
EDE: Final = int(OptionType.EDE)
_HEADER: Final = struct.Struct("!6H")
_TYPE_CLASS: Final = struct.Struct("!HH")
_OPT: Final = struct.Struct("!BHHBBHH")
"""Root, type, payload, upper bits of the rcode, version, flags, length of the options."""
_PAIR: Final = struct.Struct("!HH")
_PAYLOAD: Final = 1232
"""Largest datagram we send or ask for: it fits every path without fragments (DNS flag day 2020)."""
_SMALLEST_PAYLOAD: Final = 512  # RFC 6891 6.2.3: a smaller announcement counts as this; also the limit without EDNS
_LARGEST_FRAME: Final = 65535
_LONGEST_NAME: Final = 255
_CLIENT_COOKIE: Final = 8
_SERVER_COOKIE: Final = 8
_COOKIE_LENGTHS: Final = frozenset((8, *range(16, 41)))  # RFC 7873 section 5.2.2: anything else is malformed


Key: TypeAlias = tuple[bytes, int, int, int, bool, bool, bool]
"""What two queries with the same answer have in common: the question's name in lower case, its type, flags, room, EDNS, DO, cookie."""


class Query(NamedTuple):
    id: bytes
    flags: int
    """RD and CD only: what the answer repeats."""
    question: Question
    rdclass: int
    limit: int
    """Largest answer in bytes that the client takes by this transport."""
    edns: bool
    dnssec: bool
    """DO, copied into the answer (RFC 3225 section 3)."""
    cookie: bytes = b""
    """The client's own eight bytes (RFC 7873), or nothing."""

    @property
    def key(self) -> Key:
        """Only its id, spelling and cookie are the client's own."""
        _, flags, question, _, limit, edns, dnssec, cookie = self
        return question.key, question.type, flags, limit, edns, dnssec, bool(cookie)


class Rendered(NamedTuple):
    """An answer without what is the client's own."""

    packed: Packed
    opt: bytes
    """The fixed part of OPT up to its length, or nothing when the query had none."""
    options: bytes


def read(wire: bytes, *, stream: bool) -> Query | bytes | None:
    """The query; or the refusal to send; or None for silence. Never raises, whatever the bytes."""
    return _ordinary(wire, stream) or _any(wire, stream)


def _limit(payload: int | None, stream: bool) -> int:
    """``payload`` as the client announced it; None without EDNS."""
    if stream:
        return _LARGEST_FRAME
    return _SMALLEST_PAYLOAD if payload is None else min(max(payload, _SMALLEST_PAYLOAD), _PAYLOAD)


def _ordinary(wire: bytes, stream: bool) -> Query | None:
    """None: it is something else, and ``_any`` says what."""
    # No response, opcode QUERY; one question; at most one additional record.
    if len(wire) < 17 or wire[2] & 0xF8 or wire[4:11] != b"\0\1\0\0\0\0\0" or wire[11] > 1:
        return None
    at = 12
    try:
        while size := wire[at]:
            if size > 63:
                return None
            at += size + 1
    except IndexError:
        return None
    name = wire[12 : at + 1]
    end = at + 5
    if len(name) > _LONGEST_NAME or len(wire) < end:
        return None
    kind, rdclass = _TYPE_CLASS.unpack_from(wire, at + 1)
    if rdclass != IN or _meta(kind):
        return None
    flags = (wire[2] & 1) << 8 | wire[3] & 0x10
    question = Question(name, name.lower(), kind, wire[2] & 1 == 1)
    if not wire[11]:
        if len(wire) != end:
            return None
        return Query(wire[:2], flags, question, rdclass, _limit(None, stream), False, False)
    if len(wire) < end + 11:
        return None
    root, opt, payload, _, version, bits, length = _OPT.unpack_from(wire, end)
    end += 11
    if root or opt != OPT or version or len(wire) != end + length:
        return None
    cookie = _cookie(wire, end) if length else b""
    if cookie is None:
        return None
    return Query(wire[:2], flags, question, rdclass, _limit(payload, stream), True, bool(bits & DO), cookie)


def _cookie(wire: bytes, at: int) -> bytes | None:
    """The client's cookie among the options from here to the end; None when they are malformed."""
    cookie = b""
    while at < len(wire):
        if len(wire) < at + 4:
            return None
        code, length = _PAIR.unpack_from(wire, at)
        at += 4
        if code == COOKIE and not cookie:
            if length not in _COOKIE_LENGTHS:
                return None
            cookie = wire[at : at + _CLIENT_COOKIE]
        elif code not in _OPAQUE:
            return None
        at += length
    return cookie if at == len(wire) else None


_OPAQUE: Final = frozenset(map(int, (OptionType.NSID, OptionType.KEEPALIVE, OptionType.PADDING)))
"""Options that mean nothing to us, whatever is in them. All others, and a second cookie, are dnspython's to read."""


def _any(wire: bytes, stream: bool) -> Query | bytes | None:
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
    return _accept(wire, message, stream)


def _accept(wire: bytes, message: dns.message.Message, stream: bool) -> Query | bytes:
    asked = message.question[0]
    edns = message.edns >= 0
    cookies = [option.to_wire() or b"" for option in message.options if option.otype == OptionType.COOKIE]
    if any(len(cookie) not in _COOKIE_LENGTHS for cookie in cookies):
        return failure(wire, Rcode.FORMERR)
    name = labels.of_name(asked.name)
    query = Query(
        wire[:2],
        int(message.flags) & _COPIED,
        Question(name, name.lower(), asked.rdtype, bool(message.flags & RD)),
        asked.rdclass,
        _limit(message.payload if edns else None, stream),
        edns,
        bool(int(message.ednsflags) & DO),
        cookies[0][:_CLIENT_COOKIE] if cookies else b"",
    )
    if message.edns > 0:
        return finish(query, render(query, Answer(Rcode.BADVERS)))
    if asked.rdclass != IN or _meta(asked.rdtype):
        error = (EDECode.NOT_SUPPORTED, "only single records of class IN are answered; no ANY, no transfers")
        return finish(query, render(query, Answer(Rcode.REFUSED, error=error)))
    if (
        message.answer or message.authority
    ):  # of a transfer they are a part (RFC 1995 section 3), and it was refused as such
        return failure(wire, Rcode.FORMERR)
    return query


def _meta(kind: int) -> bool:
    """Types that are no records: RFC 6895 section 3.1 sets 128 to 255 aside for them. OPT is one as well, and no question."""
    return kind == 0 or 128 <= kind <= 255 or kind == OPT


def failure(wire: bytes, rcode: Rcode) -> bytes:
    """A bare header: for what could not be read. ``wire`` is at least a header."""
    id_, flags, *_ = _HEADER.unpack_from(wire)
    return _HEADER.pack(id_, QR | (flags & 0x7800) | (flags & RD) | RA | rcode, 0, 0, 0, 0)


def render(query: Query, answer: Answer) -> Rendered:
    """The answer for this query and all with its key. Where it does not fit, the extended error goes first; then everything but
    the question, with TC, so that the client comes back by TCP. What no message can hold is SERVFAIL."""
    denial = answer.denial
    rcode = int(answer.rcode)
    flags = query.flags | rcode & 0xF
    question = query.question
    packed = pack(question.name, question.key, flags, answer.records, (denial.owner, denial.soa) if denial else None)
    opt = options = b""
    if query.edns:
        bits = DO if query.dnssec else 0
        opt = _OPT.pack(0, OPT, _PAYLOAD, rcode >> 4, 0, bits, 0)[:-2]
        if answer.error is not None:
            code, text = answer.error
            said = text.encode("utf-8", "replace")
            options = _PAIR.pack(EDE, 2 + len(said)) + code.to_bytes(2, "big") + said
    size = 12 + len(question.name) + 4 + len(packed.tail)
    if query.edns:
        size += len(opt) + 2 + (4 + _CLIENT_COOKIE + _SERVER_COOKIE if query.cookie else 0)
    if size + len(options) <= query.limit:
        return Rendered(packed, opt, options)
    if size <= query.limit:
        return Rendered(packed, opt, b"")
    if query.limit == _LARGEST_FRAME:
        return render(
            query, Answer(Rcode.SERVFAIL, error=(EDECode.OTHER, "the answer is larger than a message can be"))
        )
    return Rendered(pack(question.name, question.key, flags | TC, (), None), opt, b"")


def finish(query: Query, rendered: Rendered, cookie: bytes = b"") -> bytes:
    """The bytes for this client. ``cookie``: the server's, for a query that has one."""
    packed, opt, options = rendered
    head, tail = packed.head, packed.tail
    question = query.question.name + _TYPE_CLASS.pack(query.question.type, query.rdclass)
    if not opt:
        return b"".join((query.id, head, question, tail))
    if cookie:
        options += _PAIR.pack(COOKIE, _CLIENT_COOKIE + _SERVER_COOKIE) + query.cookie + cookie
    return b"".join((query.id, head[:-1], b"\1", question, tail, opt, len(options).to_bytes(2, "big"), options))


def truncated(query: Query, cookie: bytes = b"") -> bytes:
    """For a client over its limit: nothing but the invitation to come back by TCP."""
    return finish(query, render(query._replace(limit=0), Answer(Rcode.NOERROR)), cookie)


def server_cookie(secret: bytes, client: str, cookie: bytes) -> bytes:
    """The server's half of a cookie (RFC 7873 section 6): what this client, and nobody who guesses, is shown again.

    A client that was shown one takes no answer without its own half any more: forged answers from beside the path are dropped.
    We need not be shown it back: inside a network nobody has another's address (the fabric drops spoofed sources).
    """
    return blake2b(cookie + client.encode(), key=secret, digest_size=_SERVER_COOKIE).digest()
