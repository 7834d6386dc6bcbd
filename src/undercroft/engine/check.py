"""Check: is everything a point needs there and whole? Without a key against public hashes, with the key down to every chunk.

``check_public`` needs no key, so the service may run it; ``check_point`` is for the holder of the key and includes it. Neither
stops at the first damage: the report names each damaged object, pack and frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.frames import FrameReader, ciphertext_hash
from undercroft.engine.index import read_public
from undercroft.engine.packs import TRAILER_SIZE, FrameRow, locate_table, read_table
from undercroft.engine.repository import PRELUDE_SIZE, Depot
from undercroft.engine.restore import DamagedFile, PointReader
from undercroft.engine.snapshots import joined, read_frames
from undercroft.errors import CapabilityMissing, DamagedData, NotFound

__all__ = ["CheckReport", "Finding", "check_pack", "check_point", "check_public"]


@dataclass(frozen=True, slots=True)
class Finding:
    object: str
    """Name of the pack, index or manifest."""
    frame: str
    reason: str


@dataclass(slots=True)
class CheckReport:
    packs: int = 0
    frames: int = 0
    chunks: int = 0
    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    damaged_files: list[DamagedFile] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.findings and not self.damaged_files


def check_pack(depot: Depot, name: str) -> tuple[list[FrameRow], list[Finding]]:
    """One pack, without a key: its rows, and what is damaged."""
    try:
        body = memoryview(depot.get(name))
        offset = locate_table(name, len(body), body[-TRAILER_SIZE:])
        rows = read_table(name, body[:PRELUDE_SIZE], body[offset:], len(body))
    except (DamagedData, NotFound, CapabilityMissing) as error:
        return [], [Finding(name, "", str(error))]
    bad = [row for row in rows if ciphertext_hash(body[row.offset : row.offset + row.length]) != row.hash]
    return rows, [Finding(name, row.name, f"{name} is damaged in frame {row.name}.") for row in bad]


def check_public(depot: Depot, manifest: str, packs: Collection[str], indexes: Collection[str]) -> CheckReport:
    """A point without its key: every pack against its own table and the indexes, every frame of the manifest in some pack."""
    report = CheckReport()
    told: dict[str, dict[tuple[bytes, int], FrameRow]] = {name: {} for name in packs}
    for name in indexes:
        try:
            for pack, rows in read_public(name, depot.get(name)):
                told.setdefault(pack, {}).update({(row.series, row.number): row for row in rows})
        except (DamagedData, NotFound, CapabilityMissing) as error:
            report.findings.append(Finding(name, "", str(error)))
    there: set[tuple[bytes, int]] = set()
    for name in packs:
        rows, findings = check_pack(depot, name)
        report.findings += findings
        report.packs += 1
        report.frames += len(rows)
        there.update((row.series, row.number) for row in rows)
        for row in rows:
            if told[name].get((row.series, row.number), row) != row:
                report.findings.append(Finding(name, row.name, "An index tells something else about this frame."))
    try:
        runs = read_frames(manifest, depot.get(manifest))
    except (DamagedData, NotFound, CapabilityMissing) as error:
        report.findings.append(Finding(manifest, "", str(error)))
        return report
    for series, spans in runs.items():
        for first, count in spans:
            for number in range(first, first + count):
                if (series, number) not in there:
                    frame = f"{series.hex()}:{number}"
                    report.findings.append(Finding(manifest, frame, "The point needs this frame, and no pack has it."))
    return report


def check_point(
    depot: Depot, keys: ContainerKeys, manifest: str, packs: Collection[str], indexes: Collection[str]
) -> CheckReport:
    """Everything ``check_public`` does, and every chunk decrypted, hashed and compared, and every file's content accounted for."""
    report = check_public(depot, manifest, packs, indexes)
    try:
        point = PointReader(depot, keys, manifest, packs, indexes)
    except (DamagedData, NotFound, CapabilityMissing) as error:
        report.findings.append(Finding(manifest, "", str(error)))
        return report
    whole = bytearray(len(point.index.chunks))
    for record in _whole_chunks(point, report):
        whole[record] = 1
        report.chunks += 1
    try:
        for directory in point.directories():
            for entry in directory.entries:
                if entry.kind != "f":
                    continue
                report.files += 1
                path, size = joined(directory.path, entry.name), 0
                for start in range(0, len(entry.chunks), 32):
                    found = point.index.chunks.find(entry.chunks[start : start + 32])
                    if found < 0 or not whole[found]:
                        reason = "A chunk of it is damaged or missing."
                        pack = point.index.frames.pack_name(point.index.chunks.frame(found)) if found >= 0 else ""
                        report.damaged_files.append(DamagedFile(path, pack, "", reason))
                        break
                    size += point.index.chunks.at(found)[2]
                else:
                    extents = entry.extra.extents if entry.extra is not None else None
                    if size != (entry.size if extents is None else sum(length for _, length in extents)):
                        report.damaged_files.append(DamagedFile(path, "", "", "Its chunks do not add up to its size."))
    except DamagedData as error:
        report.findings.append(Finding(manifest, "", str(error)))
    report.damaged_files += point.damaged
    return report


def _whole_chunks(point: PointReader, report: CheckReport) -> Iterator[int]:
    """Ordinals of the chunks whose frame opens and whose bytes have the id that the index says."""
    reader, index = FrameReader(point.keys), point.index
    by_frame: dict[int, list[int]] = {}
    for record in range(len(index.chunks)):
        by_frame.setdefault(index.chunks.frame(record), []).append(record)
    for frame, records in sorted(by_frame.items(), key=lambda item: (index.frames.pack[item[0]], item[0])):
        row, pack = index.frames.row(frame), index.frames.pack_name(frame)
        try:
            data, _ = reader.open(
                point.depot.get(pack, row.offset, row.length), row.series, row.number, f"frame {row.name}"
            )
        except (DamagedData, NotFound) as error:
            report.findings.append(Finding(pack, row.name, str(error)))
            continue
        view = memoryview(data)
        for record in records:
            _, offset, length = index.chunks.at(record)
            if point.keys.chunk_id(view[offset : offset + length]) == index.chunks.id(record):
                yield record
            else:
                report.findings.append(Finding(pack, row.name, "A chunk in it is not the one that the index says."))
