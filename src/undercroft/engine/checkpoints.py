"""What makes an interrupted backup cheap to repeat: index objects while it runs, and a local journal between them.

After each acknowledged pack its contents go to the journal; every few packs, or seconds, an index object about them is put and
the journal starts again. So packs are known either to the depot (indexes) or to this machine (journal), and losing both costs
only bandwidth. The tree of the last snapshot is kept here as well, for unchanged files.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from undercroft.clock import Clock
from undercroft.engine.compression import Compressor
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.index import Index, PackContents, decode_contents, encode_contents, open_index, seal_index
from undercroft.engine.repository import Depot, object_id
from undercroft.engine.sealed import SealedWriter, read_sealed
from undercroft.errors import CapabilityMissing, DamagedData, NotFound

__all__ = ["Checkpoints", "LocalCache"]

_PACKS_PER_INDEX = 8
_SECONDS_PER_INDEX = 20.0
_TREES_KEPT = 16


class LocalCache:
    """The folder of sealed files of one container. Everything in it may be deleted."""

    def __init__(self, folder: Path, keys: ContainerKeys) -> None:
        self.folder = folder
        self._keys = keys
        self.journal_path = folder / "journal"
        self._index_path = folder / "index"

    def sweep(self) -> None:
        """Remove what a killed run left half written."""
        for pattern in ("*.new-*", "journal.next", "tree-new"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def load_index(self, depot: Depot, without: Collection[str]) -> tuple[Index, list[str]]:
        """The cache, plus index objects it lacks; and what is wrong with those that cannot be used (their chunks are sent
        again). ``without`` names packs and indexes that turned out to be missing."""
        names = [entry.name for entry in depot.objects("indexes") if entry.name not in without]
        index = None if without else Index.from_segments(read_sealed(self._index_path, b"index", self._keys))
        if index is None or not index.covers <= set(names):
            index = Index()
        unusable = []
        for name in names:
            if name not in index.covers:
                try:
                    index.learn(name, open_index(name, depot.get(name), self._keys), without=without)
                except (DamagedData, NotFound, CapabilityMissing) as error:
                    unusable.append(f"An index object is not used, its content was sent again: {error}")
        return index, unusable

    def load_journal(self) -> list[PackContents]:
        packs: list[PackContents] = []
        for segment in read_sealed(self.journal_path, b"journal", self._keys):
            if segment is not None:
                (size,) = struct.unpack_from("<I", segment)
                packs += decode_contents(segment[4 : 4 + size], segment[4 + size :], "the journal")
        return packs

    def save_index(self, index: Index) -> None:
        writer = SealedWriter(self._index_path, b"index", self._keys)
        try:
            for segment in index.segments():
                writer.append(segment)
            writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _tree_path(self, manifest: str) -> Path:
        return self.folder / f"tree-{object_id(manifest).hex()}"

    def write_tree(self) -> SealedWriter:
        return SealedWriter(self.folder / "tree-new", b"tree", self._keys)

    def keep_tree(self, manifest: str) -> None:
        """Name the tree that ``write_tree`` finished; forget the oldest."""
        (self.folder / "tree-new").replace(self._tree_path(manifest))
        trees = sorted(self.folder.glob("tree-" + "[0-9a-f]" * 32), key=lambda path: path.stat().st_mtime_ns)
        for path in trees[:-_TREES_KEPT]:
            path.unlink(missing_ok=True)

    def read_tree(self, manifest: str) -> Iterator[bytes] | None:
        path = self._tree_path(manifest)
        if not path.exists():
            return None
        return self._pieces(path)

    def _pieces(self, path: Path) -> Iterator[bytes]:
        ended = False
        for segment in read_sealed(path, b"tree", self._keys):
            if segment is None:
                ended = True
            else:
                yield segment
        if not ended:
            raise DamagedData(f"{path} is damaged; unchanged files are read again.", target=str(path))


class Checkpoints:
    """Follows acknowledged packs of one run; several senders may call it at once."""

    def __init__(
        self,
        depot: Depot,
        keys: ContainerKeys,
        cache: LocalCache,
        clock: Clock,
        level: int,
        indexed: Callable[[str, int, list[PackContents]], None],
        left: list[PackContents],
    ) -> None:
        """``indexed(name, size, packs)`` is called after each index object; ``left`` are packs of an earlier journal."""
        self._depot, self._keys, self._cache, self._clock = depot, keys, cache, clock
        self._compressor = Compressor(level)
        self._indexed = indexed
        self._waiting = list(left)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._last = clock.monotonic()
        self._journal = self._new_journal()

    def _new_journal(self) -> SealedWriter:
        """A journal of what is waiting, complete before it replaces the old one."""
        path = self._cache.journal_path
        fresh = SealedWriter(path.with_name("journal.next"), b"journal", self._keys, in_place=True)
        for contents in self._waiting:
            self._record(fresh, contents)
        fresh.path.replace(path)
        return fresh

    @staticmethod
    def _record(journal: SealedWriter, contents: PackContents) -> None:
        public, plain = encode_contents([contents])
        journal.append(struct.pack("<I", len(public)) + public + plain)

    def acknowledged(self, contents: PackContents) -> None:
        """The pack is durable in the depot."""
        with self._lock:
            self._record(self._journal, contents)
            self._waiting.append(contents)
            elapsed = self._clock.monotonic() - self._last
            due = len(self._waiting) >= _PACKS_PER_INDEX or elapsed >= _SECONDS_PER_INDEX
        if due and not self._writing.locked():
            self.write()

    def write(self) -> None:
        """Put an index object about all packs that wait for one."""
        with self._writing:
            with self._lock:
                packs = list(self._waiting)
            if not packs:
                return
            name, body = seal_index(packs, self._keys, self._compressor)
            self._depot.put(name, [body])
            self._indexed(name, len(body), packs)
            with self._lock:
                del self._waiting[: len(packs)]
                self._last = self._clock.monotonic()
                old = self._journal
                self._journal = self._new_journal()
                old.abandon()

    def close(self) -> None:
        self._journal.abandon()
