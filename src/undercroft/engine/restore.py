"""Restore: a snapshot's tree, then the frames it needs in the order of packs, verified, then written.

1. manifest → indexes (only those the point names, only packs the point names) → tree stream → what each file needs from which frame;
2. workers take spans of neighbouring frames: one ranged read, then per frame decrypt, decompress, verify chunk ids, write;
3. the target finishes: links, special files, metadata of directories.

Damage (a frame that does not verify, a pack that is gone or cut short) costs the files that need it and nothing else; it is
listed with file, pack and frame. What cannot be helped by going on (no space, depot unavailable) is raised.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from undercroft.clock import Clock, SystemClock
from undercroft.engine.crew import Crew
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.frames import FrameReader
from undercroft.engine.index import Index, open_index
from undercroft.engine.repository import Bytes, Depot
from undercroft.engine.snapshots import (
    Directory,
    Entry,
    Problem,
    Snapshot,
    checked,
    joined,
    open_manifest,
    read_records,
)
from undercroft.errors import DamagedData, NotFound

__all__ = ["DamagedFile", "PointReader", "RestoreProgress", "RestoreResult", "Span", "Target", "restore", "spans_of"]

_SPAN_LIMIT = 8 * 1024 * 1024
_SPAN_GAP = 128 * 1024
"""Reading this much for nothing is cheaper than another request."""


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file that was not restored (or, for an index or tree chunk, what it is that cannot be read)."""

    path: bytes
    pack: str
    frame: str
    reason: str


@dataclass(slots=True)
class RestoreProgress:
    files: int = 0
    files_total: int = 0
    bytes: int = 0
    bytes_total: int = 0
    bytes_fetched: int = 0


@dataclass(frozen=True, slots=True)
class RestoreResult:
    snapshot: Snapshot
    files: int
    bytes: int
    damaged: list[DamagedFile]
    problems: list[Problem]
    """What is restored with a reservation, or could not be made here (owners, devices)."""

    @property
    def partial(self) -> bool:
        return bool(self.damaged)


class Target(Protocol):
    """Where restored files go. ``folder`` is the path of the directory from the root, ``entry`` the file in it."""

    def begin(self, snapshot: Snapshot) -> None:
        """Once, before everything else. Raises when this target cannot be written to."""

    def directory(self, directory: Directory) -> list[Entry]:
        """Make room for a directory (parents come first); answers the entries whose content is wanted."""

    def whole(self, folder: bytes, entry: Entry, data: Bytes) -> None:
        """A complete, verified content. From any thread, like the next three."""

    def piece(self, folder: bytes, entry: Entry, offset: int, data: Bytes) -> None:
        """Verified bytes of a content that comes in pieces, in no order. ``offset`` counts content, not holes."""

    def complete(self, folder: bytes, entry: Entry) -> None:
        """All pieces came: the file gets its name."""

    def discard(self, folder: bytes, entry: Entry) -> None:
        """A piece is lost: nothing of this file stays."""

    def finish(self) -> list[Problem]:
        """Once, at the end, in the caller's thread."""

    def close(self) -> None:
        """Instead of ``finish`` when the restore was given up; let go of what is open."""


@dataclass(frozen=True, slots=True)
class Span:
    """Frames that one read fetches. ``frames`` are ordinals in the order of offset."""

    pack: str
    offset: int
    length: int
    frames: tuple[int, ...]


def spans_of(index: Index, frames: Collection[int]) -> Iterator[Span]:
    """Group frames into reads, pack by pack."""
    table = index.frames
    ordered = sorted(frames, key=lambda frame: (table.pack[frame], table.offset[frame]))
    group: list[int] = []
    start = end = 0
    for frame in ordered:
        offset, after = table.offset[frame], table.offset[frame] + table.length[frame]
        if group and (
            table.pack[group[0]] != table.pack[frame] or offset - end > _SPAN_GAP or after - start > _SPAN_LIMIT
        ):
            yield Span(table.pack_name(group[0]), start, end - start, tuple(group))
            group = []
        if not group:
            start = offset
        group.append(frame)
        end = after
    if group:
        yield Span(table.pack_name(group[0]), start, end - start, tuple(group))


class PointReader:
    """One recovery point, opened: snapshot, index of what it names, and its tree. Used by restore and by check."""

    def __init__(
        self, depot: Depot, keys: ContainerKeys, manifest: str, packs: Collection[str], indexes: Collection[str]
    ) -> None:
        self.depot, self.keys = depot, keys
        self.damaged: list[DamagedFile] = []
        body = depot.get(manifest)
        self.snapshot = open_manifest(manifest, body, keys)
        self.index = Index()
        named = frozenset(packs)
        for name in indexes:
            try:
                self.index.learn(name, open_index(name, depot.get(name), keys), only=named)
            except (DamagedData, NotFound) as error:
                self.damaged.append(DamagedFile(b"", "", name, str(error)))

    def directories(self) -> Iterator[Directory]:
        """The tree, checked. A lost chunk is noted in ``damaged`` and costs its own directories."""
        return checked(read_records(self._tree_pieces()), incomplete=lambda: bool(self.damaged))

    def _tree_pieces(self) -> Iterator[bytes]:
        reader, loaded, data = FrameReader(self.keys), -1, b""
        tree = self.snapshot.tree
        for start in range(0, len(tree), 32):
            chunk_id = tree[start : start + 32]
            found = self.index.chunks.find(chunk_id)
            if found < 0:
                self.damaged.append(
                    DamagedFile(b"", "", chunk_id.hex(), "A part of the tree is in no index of this point.")
                )
                continue
            frame, offset, length = self.index.chunks.at(found)
            row, pack = self.index.frames.row(frame), self.index.frames.pack_name(frame)
            try:
                if frame != loaded:
                    data, _ = reader.open(
                        self.depot.get(pack, row.offset, row.length), row.series, row.number, row.name
                    )
                    loaded = frame
                piece = data[offset : offset + length]
                if self.keys.chunk_id(piece) != chunk_id:
                    raise DamagedData(f"{row.name} holds another chunk than the index says.")
            except (DamagedData, NotFound) as error:
                loaded = -1
                self.damaged.append(DamagedFile(b"", pack, row.name, f"A part of the tree cannot be read: {error}"))
                continue
            yield piece


def restore(
    depot: Depot,
    keys: ContainerKeys,
    manifest: str,
    packs: Collection[str],
    indexes: Collection[str],
    target: Target,
    progress: Callable[[RestoreProgress], None] | None = None,
    clock: Clock | None = None,
    workers: int = 3,
) -> RestoreResult:
    """Restore a point. ``packs`` and ``indexes`` are what its commit names. ``result.partial`` says whether anything is lost."""
    return _Restore(
        PointReader(depot, keys, manifest, packs, indexes), target, progress, clock or SystemClock(), workers
    ).run()


@dataclass(slots=True)
class _Plan:
    folders: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    waiting: array[int] = field(default_factory=lambda: array("I"))
    """Per file: pieces that have not come yet; 0 for a file that comes whole."""
    needs: dict[int, array[int]] = field(default_factory=dict)
    """Per frame ordinal, three numbers per use: file, chunk record, offset in the content."""


class _Restore:
    def __init__(
        self,
        point: PointReader,
        target: Target,
        report: Callable[[RestoreProgress], None] | None,
        clock: Clock,
        workers: int,
    ) -> None:
        self._point, self._target, self._callback, self._clock, self._workers = point, target, report, clock, workers
        self._plan = _Plan()
        self._progress = RestoreProgress()
        self._crew = Crew(clock)
        self._spans: Iterator[Span] = iter(())
        self._lost: set[int] = set()

    def run(self) -> RestoreResult:
        plan = self._plan
        try:
            self._target.begin(self._point.snapshot)
            for directory in self._point.directories():
                for entry in self._target.directory(directory):
                    self._add(directory.path, entry)
            self._spans = spans_of(self._point.index, plan.needs.keys())
            self._write_all()
            for file in sorted(self._lost):
                self._target.discard(plan.folders[file], plan.entries[file])
            problems = self._target.finish()
        except BaseException:
            # What has its name is whole; what came in pieces and is not complete goes.
            for file, left in enumerate(plan.waiting):
                if left:
                    self._target.discard(plan.folders[file], plan.entries[file])
            self._target.close()
            raise
        self._report()
        return RestoreResult(
            self._point.snapshot, self._progress.files, self._progress.bytes, self._point.damaged, problems
        )

    def _write_all(self) -> None:
        crew = self._crew
        with crew.leading():
            for number in range(self._workers):
                crew.start(f"restore-{number}", self._work)
            while crew.busy:
                with crew.monitor:
                    crew.pause(0.25)
                self._report()

    def _report(self) -> None:
        if self._callback is not None:
            self._callback(self._progress)

    def _add(self, folder: bytes, entry: Entry) -> None:
        """Plan one file; an empty one, or one that cannot be, is settled at once."""
        plan, chunks = self._plan, self._point.index.chunks
        self._progress.files_total += 1
        self._progress.bytes_total += entry.size
        ids = entry.chunks
        extents = entry.extra.extents if entry.extra is not None else None
        if not ids and entry.size == 0:
            self._target.whole(folder, entry, b"")
            self._progress.files += 1
            return
        file, place, uses = len(plan.entries), 0, []
        for start in range(0, len(ids), 32):
            found = chunks.find(ids[start : start + 32])
            if found < 0:
                self._give_up(
                    folder, entry, "", ids[start : start + 32].hex(), "A part of it is in no index of this point."
                )
                return
            uses.append((found, place))
            place += chunks.at(found)[2]
        expected = entry.size if extents is None else sum(length for _, length in extents)
        if place != expected:
            self._give_up(folder, entry, "", "", f"Its parts have {place} bytes, not {expected}.")
            return
        if not uses:
            self._target.complete(folder, entry)
            self._progress.files += 1
            return
        plan.folders.append(folder)
        plan.entries.append(entry)
        plan.waiting.append(0 if len(uses) == 1 and extents is None else len(uses))
        for found, offset in uses:
            frame = chunks.frame(found)
            if (needs := plan.needs.get(frame)) is None:
                needs = plan.needs[frame] = array("Q")
            needs.extend((file, found, offset))

    def _give_up(self, folder: bytes, entry: Entry, pack: str, frame: str, reason: str) -> None:
        self._point.damaged.append(DamagedFile(joined(folder, entry.name), pack, frame, reason))

    def _work(self) -> None:
        reader = FrameReader(self._point.keys)
        while True:
            with self._crew.monitor:
                self._crew.ensure()
                span = next(self._spans, None)
            if span is None:
                return
            try:
                with self._crew.outside():
                    body = memoryview(self._point.depot.get(span.pack, span.offset, span.length))
            except (DamagedData, NotFound) as error:
                for frame in span.frames:
                    self._lose(frame, span.pack, str(error))
                continue
            for frame in span.frames:
                self._write_frame(reader, span, frame, body)
            with self._crew.monitor:
                self._progress.bytes_fetched += len(body)
                self._crew.moved()

    def _write_frame(self, reader: FrameReader, span: Span, frame: int, body: memoryview) -> None:
        """Verify a frame's chunks and write all uses of them."""
        plan, chunks, target = self._plan, self._point.index.chunks, self._target
        row = self._point.index.frames.row(frame)
        start = row.offset - span.offset
        try:
            data, _ = reader.open(body[start : start + row.length], row.series, row.number, row.name)
        except DamagedData as error:
            self._lose(frame, span.pack, str(error))
            return
        view = memoryview(data)
        needs = plan.needs[frame]
        pieces: dict[int, memoryview] = {}
        for record in set(needs[1::3]):
            _, offset, length = chunks.at(record)
            piece = pieces[record] = view[offset : offset + length]
            if self._point.keys.chunk_id(piece) != chunks.id(record):
                self._lose(frame, span.pack, f"{row.name} holds another chunk than the index says.")
                return
        files = written = 0
        for use in range(0, len(needs), 3):
            file, piece, place = needs[use], pieces[needs[use + 1]], needs[use + 2]
            folder, entry = plan.folders[file], plan.entries[file]
            if plan.waiting[file] == 0:
                target.whole(folder, entry, piece)
                files += 1
                written += entry.size
            elif file not in self._lost:
                target.piece(folder, entry, place, piece)
                with self._crew.monitor:
                    plan.waiting[file] -= 1
                    ended = plan.waiting[file] == 0 and file not in self._lost
                if ended:
                    target.complete(folder, entry)
                    files += 1
                written += len(piece)
        with self._crew.monitor:
            self._progress.files += files
            self._progress.bytes += written

    def _lose(self, frame: int, pack: str, reason: str) -> None:
        """The frame is lost, and with it every file that needs it."""
        plan, name = self._plan, self._point.index.frames.row(frame).name
        with self._crew.monitor:
            for use in range(0, len(plan.needs[frame]), 3):
                file = plan.needs[frame][use]
                if file not in self._lost:
                    self._lost.add(file)
                    path = joined(plan.folders[file], plan.entries[file].name)
                    self._point.damaged.append(DamagedFile(path, pack, name, reason))
            self._crew.moved()
