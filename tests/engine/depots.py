"""A depot in a folder, and one around it that fails as planned."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from undercroft.engine.repository import Bytes, ObjectEntry
from undercroft.errors import NotFound, Unavailable


class FolderDepot:
    """Implements ``engine.repository.Depot`` with files; ``durable`` like the service's, for measurements."""

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self.folder, self._durable = folder, durable
        for kind in ("packs", "indexes", "manifests", "keys"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def put(self, name: str, parts: Sequence[Bytes]) -> None:
        path = self.folder / name
        if path.exists():
            if path.read_bytes() != b"".join(parts):
                raise AssertionError(f"{name} put again with other bytes")
            return
        fresh = path.with_name(f"{path.name}.{threading.get_ident()}")
        with fresh.open("wb", buffering=0) as file:
            for part in parts:
                file.write(part)
            if self._durable:
                os.fdatasync(file.fileno())
        fresh.rename(path)
        if not self._durable:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(-1 if length is None else length) or b""
        except FileNotFoundError as error:
            raise NotFound(f"There is no {name}.", target=name) from error

    def objects(self, kind: str) -> Iterable[ObjectEntry]:
        paths = [path for path in (self.folder / kind).iterdir() if "." not in path.name]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            yield ObjectEntry(f"{kind}/{path.name}", path.stat().st_size)

    def names(self) -> Iterator[str]:
        for kind in ("packs", "indexes", "manifests", "keys"):
            for entry in self.objects(kind):
                yield entry.name


class FaultyDepot:
    """Fails the ``fail_at``-th put (from 1), before or after the bytes arrived."""

    def __init__(self, inner: FolderDepot, fail_at: int, after: bool = False) -> None:
        self.inner, self.fail_at, self.after = inner, fail_at, after
        self.puts = 0
        self.hit = False
        self._lock = threading.Lock()

    def put(self, name: str, parts: Sequence[Bytes]) -> None:
        with self._lock:
            self.puts += 1
            now = self.puts == self.fail_at
            self.hit |= now
        if now and not self.after:
            raise Unavailable(f"planned: {name} refused")
        self.inner.put(name, parts)
        if now:
            raise Unavailable(f"planned: the answer for {name} is lost")

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(name, offset, length)

    def objects(self, kind: str) -> Iterable[ObjectEntry]:
        return self.inner.objects(kind)
