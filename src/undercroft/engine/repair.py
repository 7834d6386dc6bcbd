"""Repair: make an index again from packs alone, with the key. Every frame carries the lengths of its chunks; ids are recomputed."""

from __future__ import annotations

from collections.abc import Collection

from undercroft.engine.check import check_pack
from undercroft.engine.compression import Compressor
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.frames import FrameReader
from undercroft.engine.index import PackContents, frame_directory, seal_index
from undercroft.engine.repository import Depot, object_id
from undercroft.errors import DamagedData

__all__ = ["rebuild_index"]


def rebuild_index(depot: Depot, keys: ContainerKeys, packs: Collection[str]) -> tuple[str, list[str]]:
    """Put a new index object that tells everything readable in ``packs``; answers its name, and what could not be read."""
    reader, contents, lost = FrameReader(keys), [], []
    for name in packs:
        rows, findings = check_pack(depot, name)
        lost += [finding.reason for finding in findings]
        kept, directories = [], []
        for row in rows:
            try:
                data, lengths = reader.open(
                    depot.get(name, row.offset, row.length), row.series, row.number, f"frame {row.name} of {name}"
                )
            except DamagedData as error:
                lost.append(str(error))
                continue
            kept.append(row)
            directories.append(frame_directory(reader.verify(data, lengths), lengths))
        contents.append(PackContents(object_id(name), kept, directories))
    name, body = seal_index(contents, keys, Compressor())
    depot.put(name, [body])
    return name, lost
