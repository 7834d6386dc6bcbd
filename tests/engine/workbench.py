"""A container on a workbench: a source folder, a depot, a cache; and how to compare two trees exactly."""

from __future__ import annotations

import itertools
import os
import random
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.engine.depots import FolderDepot
from undercroft.agent.sources.files import FilesSource
from undercroft.agent.sources.files_target import FilesTarget
from undercroft.clock import SystemClock
from undercroft.engine.backup import BackupResult, Tuning, back_up
from undercroft.engine.check import check_point
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.repository import Depot
from undercroft.engine.restore import RestoreResult, restore

SMALL_PACKS = Tuning(pack_size=1024 * 1024 + 256 * 1024, progress_seconds=0.0)
"""Packs of little more than one frame, so that few files make several. Chunks of incompressible files must stay below."""


class SettledClock(SystemClock):
    """A second ahead: files made just now count as settled, as they do in every backup but a test's."""

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=1)


@dataclass
class Bench:
    folder: Path
    depot: FolderDepot
    keys: ContainerKeys
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    parent: str | None = None

    @property
    def source(self) -> Path:
        path = self.folder / "source"
        path.mkdir(exist_ok=True)
        return path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def back_up(
        self,
        depot: Depot | None = None,
        tuning: Tuning | None = None,
        check: bool = True,
        missing: Collection[str] = (),
        **kind: Any,
    ) -> BackupResult:
        """Back up, and check what was written."""
        source = FilesSource(self.source, **{"clock": SettledClock(), **kind})
        result = back_up(
            source, depot or self.depot, self.keys, self.cache, self.parent, tuning=tuning, missing=missing
        )
        self.parent = result.manifest
        if check:
            report = check_point(self.depot, self.keys, result.manifest, result.packs, result.indexes)
            assert report.whole, (report.findings, report.damaged_files)
        return result

    def restore(self, result: BackupResult, into: Path | None = None) -> tuple[Path, RestoreResult]:
        into = into or self.folder / f"restored-{next(self.numbers)}"
        return into, restore(self.depot, self.keys, result.manifest, result.packs, result.indexes, FilesTarget(into))

    def assert_restores(self, result: BackupResult, expected: dict[bytes, Any] | None = None) -> None:
        into, restored = self.restore(result)
        assert not restored.partial, restored.damaged
        assert described(into) == (described(self.source) if expected is None else expected)


def described(root: Path) -> dict[bytes, Any]:
    """Everything a backup promises to keep, by path: kind, mode, owner, mtime, content, target, xattrs, shared inodes."""
    found: dict[bytes, Any] = {}
    inodes: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted([b"", *folders, *files] if folder == top else [*folders, *files]):
            path = os.path.join(folder, name) if name else folder
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            what: list[Any] = [kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns]
            if stat.S_ISREG(kind):
                what.append(Path(os.fsdecode(path)).read_bytes())
            if stat.S_ISLNK(kind):
                what[1] = 0
                what.append(os.readlink(path))
            if kind in (stat.S_IFBLK, stat.S_IFCHR):
                what.append(status.st_rdev)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            what.append([(key, os.getxattr(path, key, follow_symlinks=False)) for key in names])
            if status.st_nlink > 1 and not stat.S_ISDIR(kind):
                what.append(inodes.setdefault((status.st_dev, status.st_ino), os.path.relpath(path, top)))
            found[os.path.relpath(path, top)] = what
    return found


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress, the same every time."""
    return random.Random(seed).randbytes(size)


def plant(root: Path, seed: int = 1) -> None:
    """A small tree with several packs' worth of content at ``SMALL_PACKS``."""
    chance = random.Random(seed)
    for number in range(40):
        folder = root / f"folder{number % 7}" / f"below{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(chance.randbytes(chance.choice((0, 1, 900, 40_000, 200_000))))
    (root / "large").write_bytes(chance.randbytes(1_100_000) + bytes(3_000_000))
