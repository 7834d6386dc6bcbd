"""What travels between the name server's process and the node that publishes to it, as msgpack in frames (``channel``).

Calls are carried out in the order in which they come, and answered in that order: a publication that was answered is what the next
question gets.
"""

from __future__ import annotations

import msgspec

from undercroft.channel import Failure, decode_address, encode_address
from undercroft.dns.views import AccountNames, PublicNames, ZoneChange, ZoneLink

__all__ = [
    "Answer",
    "Call",
    "Forget",
    "Hold",
    "KeepZones",
    "PutAccounts",
    "PutLinks",
    "PutPublic",
    "PutZone",
    "Release",
    "Request",
    "Serve",
    "Take",
    "decode_answer",
    "decode_request",
    "encode",
]


class Hold(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.networks``: those that are served, and those that only something was published for."""


class Serve(msgspec.Struct, frozen=True, tag=True):
    """With two descriptors: the bound UDP socket and the listening TCP socket."""

    network: str


class Take(msgspec.Struct, frozen=True, tag=True):
    """→ the two descriptors of a network that is served, which goes on; none of one that is not."""

    network: str


class Release(msgspec.Struct, frozen=True, tag=True):
    """Answered when the network's sockets are closed."""

    network: str


class Forget(msgspec.Struct, frozen=True, tag=True):
    """What was published for a network that is gone."""

    network: str


class PutZone(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.refused``: record sets that cannot be served; the others are."""

    change: ZoneChange


class KeepZones(msgspec.Struct, frozen=True, tag=True):
    """Every other zone is gone."""

    zones: frozenset[str]


class PutLinks(msgspec.Struct, frozen=True, tag=True):
    """The zones that a network sees: exactly these."""

    network: str
    links: tuple[ZoneLink, ...]


class PutPublic(msgspec.Struct, frozen=True, tag=True):
    """The names that do not depend on any vault."""

    names: PublicNames


class PutAccounts(msgspec.Struct, frozen=True, tag=True):
    """Of these vaults, by key; with ``whole`` there are no others."""

    accounts: dict[str, AccountNames]
    whole: bool = False


Call = Hold | Serve | Take | Release | Forget | PutZone | KeepZones | PutLinks | PutPublic | PutAccounts


class Request(msgspec.Struct, frozen=True):
    id: int
    call: Call


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    id: int
    failure: Failure | None = None
    networks: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_address)
_requests = msgspec.msgpack.Decoder(Request, dec_hook=decode_address)
_answers = msgspec.msgpack.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    return _encoder.encode(message)


def decode_request(body: bytes) -> Request:
    """``msgspec.DecodeError`` or ``ValueError`` (an address that is none) for what is not one."""
    return _requests.decode(body)


def decode_answer(body: bytes) -> Answer:
    return _answers.decode(body)
