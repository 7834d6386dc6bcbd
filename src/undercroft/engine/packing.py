"""Packing: workers that compress and encrypt frames into packs, senders that put packs. Frames in, acknowledged packs out.

A worker reserves a place in the current pack within the monitor, encrypts into it outside, and records it; a full pack goes to
a sender when its last frame is recorded. Pack memory is reused; when all of it waits to be sent, the workers wait, then the reader.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from undercroft.engine.checkpoints import Checkpoints
from undercroft.engine.compression import DEFAULT_LEVEL, Compressor
from undercroft.engine.crew import Arena, ArenaPool, Crew
from undercroft.engine.crypto import TAG_SIZE, ContainerKeys
from undercroft.engine.frames import ciphertext_hash, encrypt_payload, payload
from undercroft.engine.index import Index, PackContents, frame_directory
from undercroft.engine.packs import PACK_OVERHEAD, PACK_SIZE, PackBuffer
from undercroft.engine.repository import Depot

__all__ = ["Job", "Packing", "Progress", "Tuning"]


@dataclass(frozen=True, slots=True)
class Tuning:
    level: int = DEFAULT_LEVEL
    workers: int = 2
    senders: int = 2
    arenas: int = 5
    pack_buffers: int = 3
    pack_size: int = PACK_SIZE
    progress_seconds: float = 0.25
    stall_seconds: float = 120.0
    indexes_per_point: int = 64
    """When a point would need more index objects than this, they are written again as one."""


@dataclass(slots=True)
class Progress:
    """How far a backup is. ``total_bytes`` is not known before the end."""

    files: int = 0
    directories: int = 0
    source_bytes: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    problems: int = 0
    current: bytes = b""


@dataclass(slots=True)
class Job:
    """A frame to be written. ``view`` is the chunks back to back; ``arena`` holds it, if any does."""

    view: memoryview
    ids: list[bytes]
    lengths: list[int]
    frame: int
    arena: Arena | None


@dataclass(slots=True)
class OpenPack:
    buffer: PackBuffer
    directories: dict[int, bytes] = field(default_factory=dict)
    sealed: bool = False


class Packing:
    """Workers and senders: jobs in, acknowledged packs out. State is guarded by the crew's monitor."""

    def __init__(
        self,
        crew: Crew,
        depot: Depot,
        keys: ContainerKeys,
        index: Index,
        tuning: Tuning,
        checkpoints: Checkpoints,
        pool: ArenaPool,
        progress: Progress,
    ) -> None:
        self._crew, self._depot, self._keys, self._index, self._tuning = crew, depot, keys, index, tuning
        self._checkpoints, self._pool, self._progress = checkpoints, pool, progress
        self._jobs: deque[Job] = deque()
        self._current: OpenPack | None = None
        self._ready: deque[OpenPack] = deque()
        self._free: list[bytearray] = []
        self._to_make = tuning.pack_buffers
        self._closing = False
        self._working = tuning.workers

    def start(self) -> None:
        for number in range(self._tuning.workers):
            self._crew.start(f"compress-{number}", self._work)
        for number in range(self._tuning.senders):
            self._crew.start(f"send-{number}", self._send)

    def submit(self, job: Job) -> None:
        with self._crew.monitor:
            if job.arena is not None:
                job.arena.users += 1
            self._crew.wait(lambda: len(self._jobs) < 4 * self._tuning.workers, "frames to be compressed")
            self._jobs.append(job)
            self._crew.moved()

    def close(self) -> None:
        """No more jobs; the crew ends when all is sent."""
        with self._crew.monitor:
            self._closing = True
            self._crew.moved()

    def _work(self) -> None:
        crew, compressor = self._crew, Compressor(self._tuning.level)
        while True:
            with crew.monitor:
                crew.wait(lambda: bool(self._jobs) or self._closing, "frames", idle=True)
                if not self._jobs:
                    self._working -= 1
                    if self._working == 0:
                        self._seal()
                    crew.moved()
                    return
                job = self._jobs.popleft()
                crew.moved()
            plain = payload(job.view, job.lengths, compressor)
            with crew.monitor:
                if job.arena is not None:
                    self._pool.drop(job.arena)
                pack, number, offset, place = self._reserve(len(plain) + TAG_SIZE)
            encrypt_payload(self._keys.series_cipher(pack.buffer.id), pack.buffer.id, number, plain, place)
            digest = ciphertext_hash(place)
            directory = frame_directory(job.ids, job.lengths)
            with crew.monitor:
                row = pack.buffer.record(number, offset, place, digest)
                place.release()
                pack.directories[number] = directory
                self._index.frames.place(job.frame, pack.buffer.id, row)
                if pack.sealed and not pack.buffer.open_places:
                    self._ready.append(pack)
                crew.moved()

    def _reserve(self, size: int) -> tuple[OpenPack, int, int, memoryview]:
        """Within the monitor: a place in the current pack, or in a new one."""
        while True:
            if self._current is not None:
                reserved = self._current.buffer.reserve(size)
                if reserved is not None:
                    return self._current, *reserved
                self._seal()
            self._crew.wait(lambda: self._current is not None or bool(self._free or self._to_make), "a pack to be sent")
            if self._current is None:
                if self._free:
                    memory = self._free.pop()
                else:
                    self._to_make -= 1
                    memory = bytearray(self._tuning.pack_size)
                if len(memory) < size + PACK_OVERHEAD:  # one frame larger than a pack should be
                    memory = bytearray(size + PACK_OVERHEAD)
                self._current = OpenPack(PackBuffer(memory))

    def _seal(self) -> None:
        pack, self._current = self._current, None
        if pack is not None:
            pack.sealed = True
            if not pack.buffer.open_places:
                self._ready.append(pack)
                self._crew.moved()

    def _send(self) -> None:
        crew = self._crew
        while True:
            with crew.monitor:
                crew.wait(lambda: bool(self._ready) or self._working == 0, "packs", idle=True)
                if not self._ready:
                    return
                pack = self._ready.popleft()
            body, rows = pack.buffer.finish()
            with crew.outside():
                self._depot.put(pack.buffer.name, [body])
            size = len(body)
            body.release()
            with crew.monitor:
                self._progress.bytes_sent += size
                self._free.append(pack.buffer.release())
            with crew.outside():
                self._checkpoints.acknowledged(
                    PackContents(pack.buffer.id, rows, [pack.directories[row.number] for row in rows])
                )
