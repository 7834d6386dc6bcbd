"""Packs: frames back to back with a public table (``docs/format.md`` section 6).

``PackBuffer`` is a pack being filled by several workers at once: a worker reserves a place under the writer's lock, encrypts
into it without, then records the row. ``read_table`` and ``verify_pack`` need no key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from undercroft.engine.frames import ciphertext_hash
from undercroft.engine.repository import PRELUDE_SIZE, Bytes, new_id, object_name, open_prelude, prelude
from undercroft.errors import DamagedData

__all__ = [
    "PACK_OVERHEAD",
    "PACK_SIZE",
    "ROW",
    "TRAILER_SIZE",
    "FrameRow",
    "PackBuffer",
    "locate_table",
    "pack_rows",
    "read_table",
    "unpack_rows",
    "verify_pack",
]

PACK_SIZE = 32 * 1024 * 1024
ROW = struct.Struct("<16sIII32s")
_TRAILER = struct.Struct("<32sII8s")
_SEAL = struct.Struct("<II")
_END = b"UNDCEND0"
TRAILER_SIZE = _TRAILER.size
PACK_OVERHEAD = PRELUDE_SIZE + ROW.size + TRAILER_SIZE
"""What a pack of one frame takes beside it."""


@dataclass(frozen=True, slots=True)
class FrameRow:
    """Where a frame is, in public. ``length`` counts the ciphertext with its tag."""

    series: bytes
    number: int
    offset: int
    length: int
    hash: bytes

    @property
    def name(self) -> str:
        return f"{self.series.hex()}:{self.number}"


def pack_rows(rows: list[FrameRow]) -> bytes:
    return b"".join([ROW.pack(row.series, row.number, row.offset, row.length, row.hash) for row in rows])


def unpack_rows(data: Bytes) -> list[FrameRow]:
    """``data`` is a whole number of rows."""
    return [FrameRow(*values) for values in ROW.iter_unpack(data)]


def _table_hash(head: Bytes, table: Bytes, rows: int, offset: int) -> bytes:
    return blake3(head).update(table).update(_SEAL.pack(rows, offset)).digest()


class PackBuffer:
    """A pack in memory. Not locked: the caller holds its lock around ``reserve`` and ``record``."""

    def __init__(self, memory: bytearray) -> None:
        self.memory = memory
        self.id = new_id()
        self.name = object_name("packs", self.id)
        self._view = memoryview(memory)
        self._view[:PRELUDE_SIZE] = prelude("packs", self.id)
        self._end = PRELUDE_SIZE
        self._given = 0
        self._rows: list[FrameRow] = []

    @property
    def frames(self) -> int:
        return self._given

    @property
    def open_places(self) -> int:
        """Reserved and not yet recorded."""
        return self._given - len(self._rows)

    def reserve(self, size: int) -> tuple[int, int, memoryview] | None:
        """(number, offset, place) for a ciphertext of ``size`` bytes; nothing when the pack is full."""
        after = self._end + size
        if after + (self._given + 1) * ROW.size + TRAILER_SIZE > len(self.memory):
            return None
        number, offset = self._given, self._end
        self._given += 1
        self._end = after
        return number, offset, self._view[offset:after]

    def record(self, number: int, offset: int, place: memoryview, digest: bytes) -> FrameRow:
        row = FrameRow(self.id, number, offset, len(place), digest)
        self._rows.append(row)
        return row

    def adopt(self, rows: list[FrameRow]) -> None:
        """Record frames that keep their ids: copied verbatim into reserved places, without a key."""
        self._rows = list(rows)

    def finish(self) -> tuple[memoryview, list[FrameRow]]:
        """The whole object, and its table. Every reserved place must have been recorded."""
        if self.open_places:
            raise AssertionError("a frame of this pack is still being written")
        self._rows.sort(key=lambda row: row.offset)
        table = pack_rows(self._rows)
        end = self._end + len(table)
        digest = _table_hash(self._view[:PRELUDE_SIZE], table, len(self._rows), self._end)
        self._view[self._end : end] = table
        self._view[end : end + TRAILER_SIZE] = _TRAILER.pack(digest, len(self._rows), self._end, _END)
        return self._view[: end + TRAILER_SIZE], self._rows

    def release(self) -> bytearray:
        """The memory, for another pack; this one is unusable afterwards."""
        self._view.release()
        return self.memory


def locate_table(name: str, size: int, trailer: Bytes) -> int:
    """The offset of the frame table in a pack of ``size`` bytes, from its last ``TRAILER_SIZE`` bytes."""
    if size < PRELUDE_SIZE + TRAILER_SIZE or len(trailer) != TRAILER_SIZE:
        raise DamagedData(f"{name} is cut short: {size} bytes.", target=name)
    _, rows, offset, end = _TRAILER.unpack(trailer)
    if end != _END or offset < PRELUDE_SIZE or offset + rows * ROW.size + TRAILER_SIZE != size:
        raise DamagedData(f"{name} is damaged or cut short: it does not end as a pack does.", target=name)
    return int(offset)


def read_table(name: str, head: Bytes, tail: Bytes, size: int) -> list[FrameRow]:
    """The frame table from the prelude (``head``) and everything from the table's offset on (``tail``). Verified."""
    open_prelude(name, head)
    offset = locate_table(name, size, tail[-TRAILER_SIZE:])
    if len(tail) != size - offset:
        raise DamagedData(f"{name}: the table starts at {offset}.", target=name)
    table = memoryview(tail)[:-TRAILER_SIZE]
    digest, count, _, _ = _TRAILER.unpack(tail[-TRAILER_SIZE:])
    if digest != _table_hash(head[:PRELUDE_SIZE], table, count, offset):
        raise DamagedData(f"{name} is damaged: its frame table does not verify.", target=name)
    rows = unpack_rows(table)
    reached = PRELUDE_SIZE
    for row in rows:
        if row.offset < reached or row.offset + row.length > offset:
            raise DamagedData(f"{name} is damaged: frame {row.name} lies outside its place.", target=name)
        reached = row.offset + row.length
    return rows


def verify_pack(name: str, body: Bytes) -> list[FrameRow]:
    """All frames of a whole pack against its public table, without a key; raises ``DamagedData`` naming the first bad frame."""
    offset = locate_table(name, len(body), body[-TRAILER_SIZE:])
    view = memoryview(body)
    rows = read_table(name, view[:PRELUDE_SIZE], view[offset:], len(body))
    for row in rows:
        if ciphertext_hash(view[row.offset : row.offset + row.length]) != row.hash:
            raise DamagedData(f"{name} is damaged in frame {row.name}.", target=row.name)
    return rows
