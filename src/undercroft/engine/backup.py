"""Backup: a source's files in, packs, indexes and a manifest out.

    source ─▶ Sink (reader: read, cut, hash, drop what is known, group) ─▶ workers (compress, encrypt into a pack)
                                                                       ─▶ senders (put pack, journal, index) ─▶ manifest

The caller's thread is the reader. Memory is bounded: a few arenas to read into, a few packs, a short list of frames between. The
order of writing is ``docs/format.md`` section 9. What the index knows may be stale; the commit check finds that, and the caller
runs ``back_up`` again with what is ``missing``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

import undercroft
from undercroft.clock import Clock, SystemClock, timestamp
from undercroft.engine.checkpoints import Checkpoints, LocalCache
from undercroft.engine.compression import Compressor
from undercroft.engine.crew import ArenaPool, Crew
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.index import Index, PackContents, open_index, seal_index
from undercroft.engine.packing import Packing, Progress, Tuning
from undercroft.engine.packs import FrameRow
from undercroft.engine.repository import Depot, object_id, object_name
from undercroft.engine.sealed import SealedWriter, writing_locally
from undercroft.engine.sink import Sink
from undercroft.engine.snapshots import (
    Entry,
    FrameRuns,
    ParentTree,
    Problem,
    Snapshot,
    Statistics,
    read_records,
    seal_manifest,
)
from undercroft.errors import Conflict, DamagedData, LocalProblem, NotFound

__all__ = ["BackupResult", "Progress", "Sink", "Source", "Tuning", "back_up"]

_ARENA_SIZE = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What to commit. ``packs`` and ``indexes`` name everything the point needs, old and new."""

    manifest: str
    packs: list[str]
    indexes: list[str]
    statistics: Statistics
    problems: list[Problem]


class Source(Protocol):
    """One thing to back up. ``feed`` walks it in the order of the tree, hands contents and directories to the sink, and
    returns the root's own entry. What cannot be read is told to ``sink.problem`` and left out; only what makes the whole
    backup pointless is raised."""

    @property
    def kind(self) -> str: ...

    @property
    def path(self) -> bytes: ...

    def feed(self, sink: Sink, parent: ParentTree) -> Entry: ...


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """One backup at a time per cache; the lock dies with the process."""
    with writing_locally(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"Another backup is running with {folder}. Wait for it, or end it.") from error
        yield
    finally:
        os.close(lock)


def _return_large_blocks() -> None:
    """Have glibc give freed compression buffers back at once instead of keeping them per thread: 20 to 50 MiB less at the peak,
    no measurable time (23 Nov 2026, 1.2 GB, two cores). Other C libraries lack the call."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h; setting it also ends its growth
    try:
        ctypes.CDLL(None).mallopt(mmap_threshold, 1024 * 1024)
    except (OSError, AttributeError):
        pass


def back_up(
    source: Source,
    depot: Depot,
    keys: ContainerKeys,
    cache_dir: Path,
    parent_manifest: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Clock | None = None,
    tuning: Tuning | None = None,
    missing: Collection[str] = (),
) -> BackupResult:
    """Back up ``source``; nothing is visible before the caller commits the result.

    ``parent_manifest`` names the last committed snapshot of the same source; its tree is looked up in ``cache_dir`` (without it
    every file is read). ``missing`` is what a commit answered to be gone: those packs and indexes are not relied upon, and what
    they held is read and sent again. ``progress`` is called in this thread, a few times per second; an exception it raises, like
    KeyboardInterrupt, cancels cleanly. After any failure, running again sends only what did not arrive.
    """
    clock, tuning = clock or SystemClock(), tuning or Tuning()
    _return_large_blocks()
    with _only_run(cache_dir):
        return _Run(source, depot, keys, LocalCache(cache_dir, keys), clock, tuning, progress).run(
            parent_manifest, missing
        )


class _Run:
    def __init__(
        self,
        source: Source,
        depot: Depot,
        keys: ContainerKeys,
        cache: LocalCache,
        clock: Clock,
        tuning: Tuning,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self._source, self._depot, self._keys, self._cache = source, depot, keys, cache
        self._clock, self._tuning, self._callback = clock, tuning, report
        self._progress = Progress()
        self._reported = clock.monotonic()
        self._crew = Crew(clock, tuning.stall_seconds)
        self._index = Index()
        self._first_new = 0

    def run(self, parent_manifest: str | None, missing: Collection[str]) -> BackupResult:
        started = timestamp(self._clock.now())
        self._cache.sweep()
        self._index, unusable = self._cache.load_index(self._depot, missing)
        self._first_new = len(self._index.frames)
        left = [
            contents for contents in self._cache.load_journal() if object_name("packs", contents.pack) not in missing
        ]
        self._index.learn(None, left)
        tree_copy = self._cache.write_tree()
        checkpoints = Checkpoints(
            self._depot, self._keys, self._cache, self._clock, self._tuning.level, self._was_indexed, left
        )
        try:
            sink, root = self._read(checkpoints, tree_copy, parent_manifest)
            for problem in unusable:
                sink.problem(b"", problem, unreadable=False)
            checkpoints.write()
            tree_copy.finish()
            return self._conclude(sink, root, started)
        finally:
            tree_copy.abandon()
            checkpoints.close()

    def _read(
        self, checkpoints: Checkpoints, tree_copy: SealedWriter, parent_manifest: str | None
    ) -> tuple[Sink, Entry]:
        crew, pool = self._crew, ArenaPool(self._crew, self._tuning.arenas, _ARENA_SIZE)
        packing = Packing(crew, self._depot, self._keys, self._index, self._tuning, checkpoints, pool, self._progress)
        pieces = self._cache.read_tree(parent_manifest) if parent_manifest else None
        parent = ParentTree(read_records(pieces) if pieces is not None else iter(()))
        with crew.leading():
            packing.start()
            sink = Sink(crew, self._keys, self._index, packing, pool, self._progress, self._report, tree_copy)
            root = self._source.feed(sink, parent)
            sink.finish()
            packing.close()
            while crew.busy:
                with crew.monitor:
                    crew.pause(self._tuning.progress_seconds)
                self._report()
        return sink, root

    def _report(self) -> None:
        now = self._clock.monotonic()
        if now - self._reported >= self._tuning.progress_seconds:
            self._reported = now
            self._crew.ensure()
            if self._callback is not None:
                self._tell(self._callback)

    def _tell(self, callback: Callable[[Progress], None]) -> None:
        try:
            callback(self._progress)
        except OSError as error:
            # A source takes an OSError for a file that it could not read.
            raise LocalProblem(f"Progress cannot be shown: {error}.") from error

    def _was_indexed(self, name: str, size: int, packs: list[PackContents]) -> None:
        """Note which index tells of the frames of these packs."""
        with self._crew.monitor:
            frames = self._index.frames
            origin = frames.ordinal(object_id(name))
            self._index.covers.add(name)
            indexed = {frames.ordinal(contents.pack) for contents in packs}
            for frame in range(self._first_new, len(frames)):
                if frames.source[frame] == 0 and frames.pack[frame] in indexed:
                    frames.source[frame] = origin
            self._progress.bytes_sent += size

    def _conclude(self, sink: Sink, root: Entry, started: str) -> BackupResult:
        frames, runs = self._index.frames, _FrameCollector()
        packs: set[str] = set()
        indexes: set[str] = set()
        for frame, used in enumerate(sink.used):
            if used:
                packs.add(frames.pack_name(frame))
                indexes.add(self._index.source_name(frame))
                runs.add(frames.row(frame))
        if len(indexes) > self._tuning.indexes_per_point:
            indexes = self._merge(indexes)
        progress = self._progress
        statistics = Statistics(
            files=progress.files,
            directories=progress.directories,
            source_bytes=progress.source_bytes,
            bytes_read=progress.bytes_read,
            bytes_sent=progress.bytes_sent,
            bytes_stored=runs.bytes,
            unreadable=sink.unreadable,
            unchanged_files=sink.unchanged,
            new_chunks=sink.new_chunks,
        )
        snapshot = Snapshot(
            program=f"undercroft {undercroft.__version__}",
            source_kind=self._source.kind,
            source_path=self._source.path,
            host=socket.gethostname(),
            time=started,
            root=root,
            tree=b"".join(sink.tree_ids),
            tree_length=sink.tree_length,
            statistics=statistics,
            owners=sink.owners,
            groups=sink.groups,
            problems=sink.problems,
            problems_left_out=sink.problems_left_out,
        )
        name, body = seal_manifest(snapshot, runs.runs(), self._keys, Compressor(self._tuning.level))
        self._depot.put(name, [body])
        progress.bytes_sent += len(body)
        self._cache.save_index(self._index)
        with writing_locally(self._cache.folder):
            self._cache.keep_tree(name)
        if self._callback is not None:
            self._tell(self._callback)
        return BackupResult(
            name,
            sorted(packs),
            sorted(indexes),
            msgspec.structs.replace(statistics, bytes_sent=progress.bytes_sent),
            sink.problems,
        )

    def _merge(self, indexes: set[str]) -> set[str]:
        """The same, told by one new index object, so that points of a long history stay quick to open. The old ones stay."""
        packs: dict[bytes, PackContents] = {}
        try:
            for name in sorted(indexes):
                for contents in open_index(name, self._depot.get(name), self._keys):
                    if self._index.frames.holds(contents.pack):
                        packs.setdefault(contents.pack, contents)
        except (DamagedData, NotFound):
            return indexes  # the commit check will tell
        name, body = seal_index(list(packs.values()), self._keys, Compressor(self._tuning.level))
        self._depot.put(name, [body])
        frames = self._index.frames
        origin, merged = frames.ordinal(object_id(name)), {frames.ordinal(pack) for pack in packs}
        for frame, pack in enumerate(frames.pack):
            if pack in merged:
                frames.source[frame] = origin
        self._index.covers.add(name)
        self._progress.bytes_sent += len(body)
        return {name}


class _FrameCollector:
    """The public list of frames of a manifest."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, list[int]] = {}
        self.bytes = 0

    def add(self, row: FrameRow) -> None:
        self._numbers.setdefault(row.series, []).append(row.number)
        self.bytes += row.length

    def runs(self) -> FrameRuns:
        runs: FrameRuns = {}
        for series, numbers in self._numbers.items():
            spans: list[tuple[int, int]] = []
            for number in sorted(set(numbers)):
                if spans and spans[-1][0] + spans[-1][1] == number:
                    spans[-1] = (spans[-1][0], spans[-1][1] + 1)
                else:
                    spans.append((number, 1))
            runs[series] = spans
        return runs
