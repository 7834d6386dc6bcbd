"""What travels between the fabric process and its clients, as msgpack in frames (``channel``).

Calls carry an id, answers repeat it, and answers come in any order.
"""

from __future__ import annotations

from ipaddress import IPv4Address

import msgspec

from undercroft.channel import Failure, decode_address, encode_address
from undercroft.fabric.specification import Capabilities, Drift, NetworkSpecification, Transport

__all__ = [
    "Answer",
    "Apply",
    "Call",
    "Cancel",
    "Cookies",
    "Describe",
    "Execute",
    "Listen",
    "Networks",
    "Remove",
    "Request",
    "Stop",
    "decode_answer",
    "decode_request",
    "encode",
]


class Describe(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.capabilities``"""


class Apply(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.drifts``"""

    network: NetworkSpecification


class Remove(msgspec.Struct, frozen=True, tag=True):
    network: str


class Networks(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.networks``"""


class Cookies(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.cookies``"""


class Listen(msgspec.Struct, frozen=True, tag=True):
    """→ one descriptor"""

    network: str
    address: IPv4Address | None
    port: int
    transport: Transport


class Execute(msgspec.Struct, frozen=True, tag=True):
    """With three descriptors; → ``Answer.status`` at the end of the command."""

    host: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: str


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Kill the process group of that execution, which then answers. Unknown is fine: it has just ended."""

    execution: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End every VM, drop every network, answer, exit."""


Call = Describe | Apply | Remove | Networks | Cookies | Listen | Execute | Cancel | Stop


class Request(msgspec.Struct, frozen=True):
    id: int
    call: Call


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    id: int
    failure: Failure | None = None
    capabilities: Capabilities | None = None
    drifts: tuple[Drift, ...] = ()
    networks: frozenset[str] = frozenset()
    cookies: dict[str, int] = {}
    status: int = 0


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_address)
_requests = msgspec.msgpack.Decoder(Request, dec_hook=decode_address)
_answers = msgspec.msgpack.Decoder(Answer, dec_hook=decode_address)


def encode(message: Request | Answer) -> bytes:
    return _encoder.encode(message)


def decode_request(body: bytes) -> Request:
    """``msgspec.DecodeError`` or ``ValueError`` (an address that is none) for what is not one."""
    return _requests.decode(body)


def decode_answer(body: bytes) -> Answer:
    return _answers.decode(body)
