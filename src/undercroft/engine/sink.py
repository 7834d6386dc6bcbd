"""The sink: what a source pours its contents and directories into. Cuts, hashes, drops what is known, groups the rest."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence

from undercroft.engine.chunker import CONTENT, Chunker
from undercroft.engine.crew import Arena, ArenaPool, Crew
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.frames import GROUP_TARGET
from undercroft.engine.index import Index
from undercroft.engine.packing import Job, Packing, Progress
from undercroft.engine.sealed import SealedWriter
from undercroft.engine.snapshots import RECORD_ENTRIES, Directory, Entry, Problem, encode_record

__all__ = ["Sink"]

_SMALL = CONTENT.least
"""Content of up to this size is one chunk, whatever is in it."""
_TREE_LEAST, _TREE_AVERAGE, _TREE_MOST = 32 * 1024, 96 * 1024, 512 * 1024
"""The tree stream is cut between records only, so that a lost chunk costs its own directories and no others."""
_PROBLEMS_KEPT = 10_000


class Sink:
    """Where a source puts what it reads. Used by one thread."""

    def __init__(
        self,
        crew: Crew,
        keys: ContainerKeys,
        index: Index,
        packing: Packing,
        pool: ArenaPool,
        progress: Progress,
        report: Callable[[], None],
        tree_copy: SealedWriter,
    ) -> None:
        self._crew, self._keys, self._index, self._packing, self._pool = crew, keys, index, packing, pool
        self.progress, self._report, self._tree_copy = progress, report, tree_copy
        self._chunker = Chunker(CONTENT)
        self.used = bytearray(len(index.frames))
        """Per frame ordinal: whether this snapshot needs it."""
        self.problems: list[Problem] = []
        self.problems_left_out = 0
        self.owners: dict[int, str] = {}
        self.groups: dict[int, str] = {}
        self.unreadable = 0
        self.unchanged = 0
        self.new_chunks = 0
        self.tree_ids: list[bytes] = []
        self.tree_length = 0
        self._tree = bytearray()
        with crew.monitor:
            self._group_arena = pool.take()
            self._content_arena = pool.take()
        self._group_start = 0
        self._group_ids: list[bytes] = []
        self._group_lengths: list[int] = []
        self._group_frame = -1
        self._tree_group = _TreeGroup()

    # --- what a source calls ---------------------------------------------------------------------------------------------

    def known(self, ids: bytes) -> bool:
        """Whether all these chunks are in the vault already; if so this snapshot needs them from now on."""
        chunks, used = self._index.chunks, self.used
        if len(ids) == 32:
            found = chunks.find(ids)
            if found < 0:
                return False
            used[chunks.frame(found)] = 1
            return True
        frames = []
        for start in range(0, len(ids), 32):
            found = chunks.find(ids[start : start + 32])
            if found < 0:
                return False
            frames.append(chunks.frame(found))
        for frame in frames:
            used[frame] = 1
        return True

    def content(self, file: int, size: int, extents: Sequence[tuple[int, int]] | None = None) -> tuple[bytes, int]:
        """Read an open file to its end (or just its data ``extents``): the ids of its chunks, and how much was read. ``size`` is
        what to expect; more or less is fine."""
        if extents is not None:
            return self.stream(_extent_reader(file, extents))
        if size > _SMALL:
            return self.stream(lambda place: os.readv(file, [place]))
        arena = self._group_arena
        start = arena.position
        if start + size + 1 > len(arena.memory):
            self._flush_group()
            arena = self._renew(arena)
            self._group_arena, self._group_start, start = arena, 0, 0
        # One byte more than expected is asked for: a file that grew shows itself, and a whole one needs no second read.
        count = os.readv(file, [arena.view[start : start + size + 1]])
        if count < size and count:
            while more := os.readv(file, [arena.view[start + count : start + size + 1]]):
                count += more
                if count > size:
                    break
        if count > size:
            os.lseek(file, 0, os.SEEK_SET)
            return self.stream(lambda place: os.readv(file, [place]))
        self.progress.bytes_read += count
        if count == 0:
            return b"", 0
        chunk_id = self._keys.chunk_id(arena.view[start : start + count])
        chunks = self._index.chunks
        found = chunks.find(chunk_id)
        if found >= 0:
            self.used[chunks.frame(found)] = 1
            return chunk_id, count
        if self._group_frame < 0:
            self._group_frame = self._new_frame()
        end = start + count
        chunks.add(chunk_id, self._group_frame, start - self._group_start, count)
        self.new_chunks += 1
        self._group_ids.append(chunk_id)
        self._group_lengths.append(count)
        arena.position = end
        if end - self._group_start >= GROUP_TARGET:
            self._flush_group()
        return chunk_id, count

    def stream(self, read_into: Callable[[memoryview], int]) -> tuple[bytes, int]:
        """Content of unknown length: ``read_into(place)`` fills from the front and answers how much, 0 at the end."""
        arena = self._content_arena
        capacity = len(arena.memory)
        if capacity - arena.position < CONTENT.most:
            arena = self._content_arena = self._renew(arena)
        ids: list[bytes] = []
        total, start, filled, ended = 0, arena.position, arena.position, False
        while not ended:
            while filled < capacity:
                count = read_into(arena.view[filled:])
                if count == 0:
                    ended = True
                    break
                filled += count
                total += count
                self.progress.bytes_read += count
            for length in self._chunker.lengths(arena.view[start:filled], ended):
                ids.append(self._store_chunk(arena.view[start : start + length], arena))
                start += length
            arena.position = filled
            if not ended:
                rest = filled - start
                fresh = self._take()
                fresh.view[:rest] = arena.view[start:filled]
                self._drop(arena)
                arena = self._content_arena = fresh
                start, filled = 0, rest
            self._report()
        return b"".join(ids), total

    def directory(self, path: bytes, entries: list[Entry]) -> None:
        """A directory's entries, sorted by name; all of one directory in a row, directories in the order of the tree."""
        for start in range(0, max(len(entries), 1), RECORD_ENTRIES):
            record = encode_record(Directory(path, entries[start : start + RECORD_ENTRIES]))
            self.tree_length += len(record)
            if self._tree and len(self._tree) + len(record) > _TREE_MOST:
                self._cut_tree()
            self._tree += record
            if len(self._tree) >= _TREE_LEAST and self._is_boundary(record):
                self._cut_tree()
        self.progress.current = path
        self._report()

    def problem(self, path: bytes, reason: str, unreadable: bool = True) -> None:
        """Something that is not in the snapshot (``unreadable``), or is there with a reservation."""
        if unreadable:
            self.unreadable += 1
        self.progress.problems += 1
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(Problem(path, reason))
        else:
            self.problems_left_out += 1

    # --- inside ----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        self._flush_group()
        self._cut_tree()
        self._flush_tree_group()

    def _new_frame(self) -> int:
        frame = self._index.frames.expect()
        self.used.append(1)
        return frame

    def _take(self) -> Arena:
        with self._crew.monitor:
            return self._pool.take()

    def _drop(self, arena: Arena) -> None:
        with self._crew.monitor:
            self._pool.drop(arena)

    def _renew(self, arena: Arena) -> Arena:
        self._drop(arena)
        return self._take()

    def _store_chunk(self, view: memoryview, arena: Arena) -> bytes:
        chunk_id = self._keys.chunk_id(view)
        chunks = self._index.chunks
        found = chunks.find(chunk_id)
        if found >= 0:
            self.used[chunks.frame(found)] = 1
            return chunk_id
        frame = self._new_frame()
        chunks.add(chunk_id, frame, 0, len(view))
        self.new_chunks += 1
        self._packing.submit(Job(view, [chunk_id], [len(view)], frame, arena))
        return chunk_id

    def _flush_group(self) -> None:
        arena = self._group_arena
        if self._group_ids:
            view = arena.view[self._group_start : arena.position]
            self._packing.submit(Job(view, self._group_ids, self._group_lengths, self._group_frame, arena))
            self._group_ids, self._group_lengths, self._group_frame = [], [], -1
        self._group_start = arena.position

    def _is_boundary(self, record: bytes) -> bool:
        """By the record's own content, so that a change elsewhere in the tree leaves the cut where it is."""
        spread = int.from_bytes(self._keys.chunk_id(record)[:4], "little")
        return spread * _TREE_AVERAGE < len(record) << 32

    def _cut_tree(self) -> None:
        piece = bytes(self._tree)
        self._tree.clear()
        if not piece:
            return
        self._tree_copy.append(piece)
        chunk_id = self._keys.chunk_id(piece)
        self.tree_ids.append(chunk_id)
        found = self._index.chunks.find(chunk_id)
        if found >= 0:
            self.used[self._index.chunks.frame(found)] = 1
            return
        group = self._tree_group
        if group.frame < 0:
            group.frame = self._new_frame()
        self._index.chunks.add(chunk_id, group.frame, group.size, len(piece))
        self.new_chunks += 1
        group.add(chunk_id, piece)
        if group.size >= GROUP_TARGET:
            self._flush_tree_group()

    def _flush_tree_group(self) -> None:
        group, self._tree_group = self._tree_group, _TreeGroup()
        if group.ids:
            lengths = [len(piece) for piece in group.pieces]
            self._packing.submit(Job(memoryview(b"".join(group.pieces)), group.ids, lengths, group.frame, None))


class _TreeGroup:
    """Chunks of the tree stream that will be one frame."""

    __slots__ = ("frame", "ids", "pieces", "size")

    def __init__(self) -> None:
        self.frame = -1
        self.ids: list[bytes] = []
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, chunk_id: bytes, piece: bytes) -> None:
        self.ids.append(chunk_id)
        self.pieces.append(piece)
        self.size += len(piece)


def _extent_reader(file: int, extents: Sequence[tuple[int, int]]) -> Callable[[memoryview], int]:
    remaining = deque(extents)

    def read_into(place: memoryview) -> int:
        while remaining:
            offset, length = remaining[0]
            count = os.preadv(file, [place[: min(length, len(place))]], offset)
            if count == 0:
                # The file shrank: what is missing reads as zeros, so that the extents keep their meaning.
                count = min(length, len(place))
                place[:count] = bytes(count)
            remaining[0] = (offset + count, length - count)
            if count == length:
                remaining.popleft()
            return count
        return 0

    return read_into
