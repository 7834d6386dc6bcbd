"""Which chunks exist and where: compact tables in memory, index objects in the depot, a sealed cache on disk.

``ChunkTable`` takes about 55 bytes per chunk (44 of record, the rest slots), where a dict of objects takes several hundred.
``FrameTable`` has one row per frame, so per 0.5 to 4 MiB. ``Index`` is both, with the names of the index objects they came from.
Format of index objects: ``docs/format.md`` section 7.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag

from undercroft.engine.compression import Compressor, Decompressor
from undercroft.engine.crypto import ZERO_NONCE, ContainerKeys
from undercroft.engine.frames import FRAME_LIMIT
from undercroft.engine.packs import ROW, FrameRow, pack_rows, unpack_rows
from undercroft.engine.repository import (
    PRELUDE_SIZE,
    Bytes,
    new_id,
    object_id,
    object_name,
    prelude,
    seal_parts,
    split_parts,
)
from undercroft.errors import DamagedData

__all__ = [
    "CHUNK_ROW",
    "ChunkTable",
    "FrameTable",
    "Index",
    "PackContents",
    "decode_contents",
    "encode_contents",
    "frame_directory",
    "open_index",
    "read_public",
    "seal_index",
]

CHUNK_ROW = struct.Struct("<32sI")
_U32 = struct.Struct("<I")
_PACK_HEAD = struct.Struct("<16sI")
_RECORD = struct.Struct("<32sIII")
_RECORD_SIZE = _RECORD.size
_PLAIN_LIMIT = 1 << 30


class ChunkTable:
    """chunk id → (frame ordinal, offset in the frame, length); open addressing. Ids are keyed hashes, so uniformly spread
    already. Not locked: one thread adds and finds."""

    def __init__(self, expected: int = 1000) -> None:
        size = 1024
        while size < expected * 2:
            size *= 2
        self.records = bytearray()
        self.slots = array("I", bytes(4 * size))
        self._mask = size - 1
        self._limit = size * 2 // 3
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, chunk_id: Bytes) -> int:
        """The record's ordinal, or -1."""
        slots, mask = self.slots, self._mask
        slot = int.from_bytes(chunk_id[:8], "little") & mask
        while entry := slots[slot]:
            if self.records.startswith(chunk_id, (entry - 1) * _RECORD_SIZE):
                return entry - 1
            slot = (slot + 1) & mask
        return -1

    def add(self, chunk_id: bytes, frame: int, offset: int, length: int) -> int:
        """The caller has made sure that it is not there."""
        if self._count >= self._limit:
            self._grow()
        self.records += _RECORD.pack(chunk_id, frame, offset, length)
        self._count += 1
        self._place(int.from_bytes(chunk_id[:8], "little"), self._count)
        return self._count - 1

    def at(self, ordinal: int) -> tuple[int, int, int]:
        """(frame ordinal, offset, length)"""
        _, frame, offset, length = _RECORD.unpack_from(self.records, ordinal * _RECORD_SIZE)
        return frame, offset, length

    def id(self, ordinal: int) -> bytes:
        return bytes(self.records[ordinal * _RECORD_SIZE : ordinal * _RECORD_SIZE + 32])

    def frame(self, ordinal: int) -> int:
        return int(_U32.unpack_from(self.records, ordinal * _RECORD_SIZE + 32)[0])

    def _place(self, spread: int, entry: int) -> None:
        slots, mask = self.slots, self._mask
        slot = spread & mask
        while slots[slot]:
            slot = (slot + 1) & mask
        slots[slot] = entry

    def _grow(self) -> None:
        size = len(self.slots) * 2
        self.slots = array("I", bytes(4 * size))
        self._mask = size - 1
        self._limit = size * 2 // 3
        for entry, (spread,) in enumerate(struct.iter_unpack("<Q36x", self.records), 1):
            self._place(spread, entry)

    def restore(self, records: bytearray, slots: array[int]) -> bool:
        """Take over saved tables; false when they do not fit each other."""
        size, count = len(slots), len(records) // _RECORD_SIZE
        if size < 1024 or size & (size - 1) or len(records) % _RECORD_SIZE or count > size * 2 // 3:
            return False
        self.records, self.slots, self._count = records, slots, count
        self._mask, self._limit = size - 1, size * 2 // 3
        return True


@dataclass(slots=True)
class FrameTable:
    """Columns, by frame ordinal. ``series``, ``pack`` and ``source`` are ordinals in ``identities``; ``source`` is the index object
    that tells of the frame (0: none yet)."""

    identities: list[bytes] = field(default_factory=lambda: [bytes(16)])
    series: array[int] = field(default_factory=lambda: array("I"))
    number: array[int] = field(default_factory=lambda: array("I"))
    pack: array[int] = field(default_factory=lambda: array("I"))
    offset: array[int] = field(default_factory=lambda: array("I"))
    length: array[int] = field(default_factory=lambda: array("I"))
    source: array[int] = field(default_factory=lambda: array("I"))
    hashes: bytearray = field(default_factory=bytearray)
    _ordinals: dict[bytes, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.series)

    def ordinal(self, identity: bytes) -> int:
        known = self._ordinals.get(identity)
        if known is None:
            known = self._ordinals[identity] = len(self.identities)
            self.identities.append(identity)
        return known

    def holds(self, pack: bytes) -> bool:
        """Whether frames of this pack are known (and so not given up as missing)."""
        known = self._ordinals.get(pack)
        return known is not None and known in self.pack

    def expect(self) -> int:
        """A frame that is not written yet."""
        for column in (self.series, self.number, self.pack, self.offset, self.length, self.source):
            column.append(0)
        self.hashes += bytes(32)
        return len(self.series) - 1

    def place(self, frame: int, pack: bytes, row: FrameRow) -> None:
        self.series[frame] = self.ordinal(row.series)
        self.number[frame] = row.number
        self.pack[frame] = self.ordinal(pack)
        self.offset[frame] = row.offset
        self.length[frame] = row.length
        self.hashes[frame * 32 : frame * 32 + 32] = row.hash

    def row(self, frame: int) -> FrameRow:
        return FrameRow(
            self.identities[self.series[frame]],
            self.number[frame],
            self.offset[frame],
            self.length[frame],
            bytes(self.hashes[frame * 32 : frame * 32 + 32]),
        )

    def pack_name(self, frame: int) -> str:
        return object_name("packs", self.identities[self.pack[frame]])

    def columns(self) -> tuple[array[int], ...]:
        return (self.series, self.number, self.pack, self.offset, self.length, self.source)

    def restore(self, identities: list[bytes], columns: list[array[int]], hashes: bytearray) -> bool:
        count = len(columns[0])
        if any(len(column) != count for column in columns) or len(hashes) != 32 * count:
            return False
        self.identities, self.hashes = identities, hashes
        self.series, self.number, self.pack, self.offset, self.length, self.source = columns
        self._ordinals = {identity: ordinal for ordinal, identity in enumerate(identities) if ordinal}
        return True


@dataclass(frozen=True, slots=True)
class PackContents:
    """What an index tells of one pack: rows, and for each row the frame's directory (``frame_directory``)."""

    pack: bytes
    rows: list[FrameRow]
    directories: list[bytes]


def frame_directory(ids: list[bytes], lengths: list[int]) -> bytes:
    """u32 count ‖ count × (chunk id ‖ u32 length)"""
    rows = [CHUNK_ROW.pack(chunk_id, length) for chunk_id, length in zip(ids, lengths, strict=True)]
    return _U32.pack(len(rows)) + b"".join(rows)


def encode_contents(packs: list[PackContents]) -> tuple[bytes, bytes]:
    """The public part, and the plain form of the private part."""
    public = [_U32.pack(len(packs))]
    for contents in packs:
        public += (_PACK_HEAD.pack(contents.pack, len(contents.rows)), pack_rows(contents.rows))
    return b"".join(public), b"".join(part for contents in packs for part in contents.directories)


def _decode_public(public: Bytes, what: str) -> list[tuple[bytes, list[FrameRow]]]:
    packs, place = [], _U32.size
    try:
        (count,) = _U32.unpack_from(public)
        for _ in range(count):
            pack, rows = _PACK_HEAD.unpack_from(public, place)
            place += _PACK_HEAD.size
            end = place + rows * ROW.size
            if end > len(public):
                raise struct.error
            packs.append((pack, unpack_rows(memoryview(public)[place:end])))
            place = end
    except struct.error:
        place = -1
    if place != len(public):
        raise DamagedData(f"{what} is damaged: its public part is not whole.", target=what)
    return packs


def decode_contents(public: Bytes, plain: Bytes, what: str) -> list[PackContents]:
    view, place, packs = memoryview(plain), 0, []
    for pack, rows in _decode_public(public, what):
        directories = []
        for _ in rows:
            if place + 4 > len(view):
                raise DamagedData(f"{what} is damaged: fewer frames than promised.", target=what)
            end = place + 4 + CHUNK_ROW.size * int(_U32.unpack_from(view, place)[0])
            directories.append(bytes(view[place:end]))
            place = end
        packs.append(PackContents(pack, rows, directories))
    if place != len(view):
        raise DamagedData(f"{what} is damaged: chunks and frames do not match.", target=what)
    return packs


def seal_index(packs: list[PackContents], keys: ContainerKeys, compressor: Compressor) -> tuple[str, bytes]:
    """A new index object: its name and bytes."""
    identity = new_id()
    name = object_name("indexes", identity)
    public, plain = encode_contents(packs)
    head = prelude("indexes", identity)
    associated = head + blake3(public).digest()
    private = keys.index_cipher(name).encrypt(ZERO_NONCE, compressor.compress(plain), associated)
    return name, seal_parts(head, public, private)


def read_public(name: str, body: Bytes) -> list[tuple[str, list[FrameRow]]]:
    """Packs and their frames, without a key (and so without proof: only the holder of the key can verify it)."""
    public, _ = split_parts(name, body)
    return [(object_name("packs", pack), rows) for pack, rows in _decode_public(public, name)]


def open_index(name: str, body: Bytes, keys: ContainerKeys) -> list[PackContents]:
    public, private = split_parts(name, body)
    associated = bytes(memoryview(body)[:PRELUDE_SIZE]) + blake3(public).digest()
    try:
        compressed = keys.index_cipher(name).decrypt(ZERO_NONCE, private, associated)
    except InvalidTag as error:
        raise DamagedData(f"{name} is damaged (or made with another key): it does not verify.", target=name) from error
    return decode_contents(public, Decompressor().decompress(compressed, _PLAIN_LIMIT, name), name)


class Index:
    """Everything known about where chunks are."""

    def __init__(self) -> None:
        self.chunks = ChunkTable()
        self.frames = FrameTable()
        self.covers: set[str] = set()
        """The index objects that were read into the tables."""

    def learn(
        self,
        source: str | None,
        packs: list[PackContents],
        only: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Add what an index object (or, without a ``source``, the journal) tells. ``only`` and ``without`` are names of packs."""
        frames, chunks = self.frames, self.chunks
        origin = 0
        if source is not None:
            origin = frames.ordinal(object_id(source))
            self.covers.add(source)
        for contents in packs:
            name = object_name("packs", contents.pack)
            if name in without or (only is not None and name not in only):
                continue
            for row, directory in zip(contents.rows, contents.directories, strict=True):
                frame = frames.expect()
                frames.place(frame, contents.pack, row)
                frames.source[frame] = origin
                offset = 0
                for chunk_id, length in CHUNK_ROW.iter_unpack(memoryview(directory)[4:]):
                    if chunks.find(chunk_id) < 0:
                        chunks.add(chunk_id, frame, offset, length)
                    offset += length
                    if offset > FRAME_LIMIT:
                        raise DamagedData(f"{source or 'The journal'} is damaged: frame {row.name} would be too large.")

    def source_name(self, frame: int) -> str:
        return object_name("indexes", self.frames.identities[self.frames.source[frame]])

    def segments(self) -> Iterator[bytes]:
        """The tables as bytes, for the cache; ``from_segments`` reads them."""
        frames = self.frames
        names = "\n".join(sorted(self.covers)).encode()
        yield struct.pack("<QQ", len(self.chunks), len(frames))
        blobs: list[Bytes] = [names, b"".join(frames.identities), frames.hashes, self.chunks.records]
        for blob in (*blobs, *(memoryview(column).cast("B") for column in (*frames.columns(), self.chunks.slots))):
            view = memoryview(blob)
            yield struct.pack("<Q", len(view))
            for start in range(0, len(view), _SEGMENT):
                yield bytes(view[start : start + _SEGMENT])

    @classmethod
    def from_segments(cls, segments: Iterator[bytes | None]) -> Index | None:
        """The cached tables; nothing when the file is not whole."""
        blobs: list[bytearray] = []
        if next(segments, None) is None:
            return None
        for _ in range(11):
            head = next(segments, None)
            if head is None or len(head) != 8:
                return None
            (size,) = struct.unpack("<Q", head)
            blob = bytearray()
            while len(blob) < size:
                piece = next(segments, None)
                if piece is None:
                    return None
                blob += piece
            blobs.append(blob)
        if next(segments, b"") is not None:
            return None
        index = cls()
        index.covers = set(blobs[0].decode().split("\n")) if blobs[0] else set()
        identities = [bytes(blobs[1][start : start + 16]) for start in range(0, len(blobs[1]), 16)]
        columns = [array("I", bytes(blob)) for blob in blobs[4:11]]
        whole = index.frames.restore(identities, columns[:6], blobs[2]) and index.chunks.restore(blobs[3], columns[6])
        return index if whole else None


_SEGMENT = 32 * 1024 * 1024
