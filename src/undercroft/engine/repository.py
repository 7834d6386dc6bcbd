"""Where objects are kept: names, the prelude every object starts with, and the narrow Protocol of whoever keeps them."""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from undercroft.errors import CapabilityMissing, DamagedData, InvalidInput

__all__ = [
    "FORMAT_VERSION",
    "ID_SIZE",
    "PRELUDE_SIZE",
    "Bytes",
    "Depot",
    "ObjectEntry",
    "new_id",
    "object_id",
    "object_name",
    "open_prelude",
    "prelude",
    "seal_parts",
    "split_parts",
]

FORMAT_VERSION = 0
ID_SIZE = 16
PRELUDE_SIZE = 24

_KIND_OF_FOLDER = {"packs": b"P", "indexes": b"I", "manifests": b"M", "keys": b"K"}
_PRELUDE = struct.Struct("<4scBH16s")
_NAME = re.compile(r"(packs|indexes|manifests|keys)/([0-9a-f]{32})")

Bytes = bytes | bytearray | memoryview
"""What the engine gives and takes as bytes; given views are valid only until the call returns."""


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    name: str
    size: int


class Depot(Protocol):
    """The objects of one container, by name (``packs/…``, ``indexes/…``, ``manifests/…``, ``keys/…``).

    Synchronous; every method may be called from several threads at once. The engine does not retry: an implementation
    retries what may be retried, with limits, and raises ``Unavailable`` when it gives up, ``StorageFull`` when the other side
    has no room. Whatever it raises ends the backup or, on restore, at most the part that needs the object.
    """

    def put(self, name: str, parts: Sequence[Bytes]) -> None:
        """Keep the concatenation of ``parts`` under ``name``. Durable when this returns. Repeating it with the same bytes is
        success, also when an earlier attempt arrived unnoticed. The buffers are the caller's and change after the return:
        an implementation must not keep them."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """Exactly ``length`` bytes from ``offset`` (all the rest without a length). ``NotFound`` means gone. An answer shorter
        than asked is possible when the object was truncated; the engine names it as damage."""

    def objects(self, kind: str) -> Iterable[ObjectEntry]:
        """All objects of a kind (``indexes`` or ``keys``), committed or not, oldest first."""


def new_id() -> bytes:
    """16 random bytes: an object id or a series. Never derived from content."""
    return secrets.token_bytes(ID_SIZE)


def object_name(folder: str, identity: bytes) -> str:
    return f"{folder}/{identity.hex()}"


def object_id(name: str) -> bytes:
    """The id in a name; ``InvalidInput`` when it is not a name of ours."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidInput(f"'{name}' is not the name of an object (folder/32 hex digits).", target=name)
    return bytes.fromhex(match[2])


def prelude(folder: str, identity: bytes) -> bytes:
    return _PRELUDE.pack(b"UNDC", _KIND_OF_FOLDER[folder], FORMAT_VERSION, 0, identity)


def open_prelude(name: str, body: Bytes) -> bytes:
    """Check that ``body`` starts with the prelude that ``name`` promises, and return the object id."""
    identity = object_id(name)
    folder = name.split("/", 1)[0]
    if len(body) < PRELUDE_SIZE:
        raise DamagedData(f"{name} is cut short: {len(body)} bytes.", target=name)
    magic, kind, version, zero, inside = _PRELUDE.unpack_from(body)
    if magic != b"UNDC" or kind != _KIND_OF_FOLDER[folder] or zero != 0:
        raise DamagedData(f"{name} is damaged: it does not start as such an object does.", target=name)
    if version != FORMAT_VERSION:
        raise CapabilityMissing(
            f"{name} has format version {version}; this program reads version {FORMAT_VERSION}. Use a newer program.",
            target=name,
        )
    if inside != identity:
        raise DamagedData(f"{name} is damaged or not this object: inside it says {inside.hex()}.", target=name)
    return identity


_LENGTH = struct.Struct("<I")
_CHECKSUM_SIZE = 32


def seal_parts(head: bytes, public: bytes, private: bytes) -> bytes:
    """The form of index and manifest: prelude ‖ u32 length ‖ public part ‖ private part ‖ BLAKE3 of everything before."""
    body = b"".join((head, _LENGTH.pack(len(public)), public, private))
    return body + blake3(body).digest()


def split_parts(name: str, body: Bytes) -> tuple[memoryview, memoryview]:
    """The public and the private part of an index or a manifest. The hash at the end finds accidents, also without a key;
    it is no proof against intent."""
    open_prelude(name, body)
    view = memoryview(body)
    start, after = PRELUDE_SIZE + _LENGTH.size, len(view) - _CHECKSUM_SIZE
    if after < start or blake3(view[:after]).digest() != view[after:]:
        raise DamagedData(f"{name} is damaged or cut short ({len(view)} bytes).", target=name)
    end = start + int(_LENGTH.unpack_from(view, PRELUDE_SIZE)[0])
    if end > after:
        raise DamagedData(f"{name} is damaged: its public part is not whole.", target=name)
    return view[start:end], view[end:after]
