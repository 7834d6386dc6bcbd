"""What travels between the data plane's process and the node that tells it what to serve, as msgpack in frames (``channel``, ``calls``).

Calls are carried out in the order in which they come, and answered in that order: when ``SetDoors`` is answered, a door that was taken
away carries nothing more. Answers with the id 0 are events: something the process says of itself.
"""

from __future__ import annotations

from ipaddress import IPv4Address

import msgspec

from undercroft.channel import Failure, decode_address, encode_address
from undercroft.config import Settings
from undercroft.vnet.doors import Door

__all__ = [
    "Answer",
    "Call",
    "Hold",
    "Listened",
    "Release",
    "Request",
    "Serve",
    "SetDoors",
    "Start",
    "Stop",
    "Take",
    "decode_answer",
    "decode_request",
    "encode",
]


class Start(msgspec.Struct, frozen=True, tag=True):
    """State and keys are ready: open them, and make visible what a crash left. → ``Answer.recovered``; 0 if it was started already.

    ``Conflict`` when it was started with another ``fingerprint`` (of settings and keys): it must be ended, and another started. The
    settings are the node's: the file may have been edited since the node read it.
    """

    settings: Settings
    fingerprint: str


class Hold(msgspec.Struct, frozen=True, tag=True):
    """→ ``Answer.listened`` and ``Answer.networks``: what is listened on, and of which networks doors are known."""


class Serve(msgspec.Struct, frozen=True, tag=True):
    """With one descriptor: a listening socket of that network."""

    network: str


class Take(msgspec.Struct, frozen=True, tag=True):
    """→ a copy of that listening socket, which goes on; none of one that is not there."""

    network: str
    address: str


class Release(msgspec.Struct, frozen=True, tag=True):
    """Close that listening socket; connections go on."""

    network: str
    address: str


class SetDoors(msgspec.Struct, frozen=True, tag=True):
    """Exactly these; connections by doors that vanished are cut before the answer."""

    network: str
    doors: tuple[tuple[IPv4Address, Door], ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Of a network: its listening sockets, its connections and its doors."""

    network: str


Call = Start | Hold | Serve | Take | Release | SetDoors | Stop


class Request(msgspec.Struct, frozen=True):
    id: int
    call: Call


class Listened(msgspec.Struct, frozen=True):
    network: str
    address: str


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    id: int
    failure: Failure | None = None
    recovered: int = 0
    listened: tuple[Listened, ...] = ()
    networks: frozenset[str] = frozenset()
    enqueued: bool = False
    """Event: a transaction here left a task."""
    arrived: str | None = None
    """Event, with a descriptor: a connection by a public door of login or management in this network."""


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
