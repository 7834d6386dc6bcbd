"""Restores: hostile trees, targets in the way, full disks, lost parts of the tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.engine.workbench import SMALL_PACKS, Bench, described, noise, plant
from undercroft.agent.sources.files_target import FilesTarget
from undercroft.engine.backup import Sink, back_up
from undercroft.engine.restore import restore
from undercroft.engine.snapshots import Entry, Extra, ParentTree
from undercroft.errors import Conflict, DamagedData, LocalProblem, StorageFull

ROOT = Entry(b"", "d", 0o755, 0, 0, 0, 0, 0, 0)


def _entry(name: bytes, kind: str, chunks: bytes = b"", size: int = 0, extra: Extra | None = None) -> Entry:
    return Entry(name, kind, 0o755, os.geteuid(), os.getegid(), 10**18, 0, 1, size, chunks, extra)


class HostileSource:
    """An agent of the same container that was taken over, and writes the tree it likes."""

    kind = "files"
    path = b"/hostile"

    def __init__(self, tree: dict[bytes, list[tuple[bytes, str, bytes]]], payload: Path) -> None:
        self.tree, self.payload = tree, payload

    def feed(self, sink: Sink, parent: ParentTree) -> Entry:
        for folder, names in self.tree.items():
            entries = []
            for name, kind, target in names:
                if kind == "f":
                    file = os.open(self.payload, os.O_RDONLY)
                    chunks, size = sink.content(file, self.payload.stat().st_size)
                    os.close(file)
                    entries.append(_entry(name, "f", chunks, size))
                else:
                    entries.append(_entry(name, kind, extra=Extra(target=target) if target else None))
            sink.directory(folder, entries)
        return ROOT


HOSTILE = {
    "dots": {b"": [(b"..", "f", b"")]},
    "parent folder": {b"": [(b"..", "d", b"")], b"..": [(b"owned", "f", b"")]},
    "slash": {b"": [(b"../owned", "f", b"")]},
    "absolute": {b"": [(b"/OUTSIDE/owned", "f", b"")]},
    "symlink as folder": {b"": [(b"a", "l", b"/OUTSIDE")], b"a": [(b"owned", "f", b"")]},
    "symlink and folder": {b"": [(b"a", "l", b"/OUTSIDE"), (b"a", "d", b"")], b"a": [(b"owned", "f", b"")]},
    "symlink, then folder later": {
        b"": [(b"a", "d", b"")],
        b"a": [(b"b", "l", b"/OUTSIDE")],
        b"a/b": [(b"owned", "f", b"")],
    },
    "undeclared": {b"": [], b"x/../..": [(b"owned", "f", b"")]},
    "hard link out": {b"": [(b"a", "h", b"../secret")]},
    "hard link through a symlink": {b"": [(b"a", "l", b"/OUTSIDE"), (b"b", "h", b"a/secret")]},
}


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_hostile_tree_stays_inside_the_target(bench: Bench, attack: str, damaged: bool) -> None:
    outside = bench.folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (bench.folder / "secret").write_text("secret")
    before = {path: path.stat().st_ino for path in bench.folder.rglob("*") if "depot" not in str(path)}
    tree = {
        folder.replace(b"OUTSIDE", os.fsencode(outside)[1:]): [
            (name.replace(b"/OUTSIDE", os.fsencode(outside)), kind, target.replace(b"/OUTSIDE", os.fsencode(outside)))
            for name, kind, target in names
        ]
        for folder, names in HOSTILE[attack].items()
    }
    result = back_up(HostileSource(tree, outside / "secret"), bench.depot, bench.keys, bench.folder / "cache")
    packs, indexes = list(result.packs), list(result.indexes)
    if damaged:
        indexes.append("indexes/" + "0" * 32)  # one that is not there: the lenient way of reading trees
    target = FilesTarget(bench.folder / "target")
    try:
        restore(bench.depot, bench.keys, result.manifest, packs, indexes, target)
    except (DamagedData, LocalProblem, Conflict):
        pass
    finally:
        target.close()
    skip = ("depot", "cache", "target")
    after = {
        path: path.stat().st_ino
        for path in bench.folder.rglob("*")
        if not any(part in path.relative_to(bench.folder).parts for part in skip)
    }
    assert {path: inode for path, inode in before.items() if "cache" not in str(path)} == after
    assert (outside / "secret").stat().st_nlink == 1
    assert (bench.folder / "secret").stat().st_nlink == 1


def test_a_symlink_in_an_existing_target_is_not_followed(bench: Bench) -> None:
    (bench.source / "a").mkdir()
    (bench.source / "a/file").write_text("x")
    result = bench.back_up()
    target, outside = bench.folder / "target", bench.folder / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "a").symlink_to(outside)
    with pytest.raises(Conflict, match="not a folder"):
        restore(
            bench.depot,
            bench.keys,
            result.manifest,
            result.packs,
            result.indexes,
            FilesTarget(target, into_existing=True),
        )
    assert not list(outside.iterdir())


def test_a_target_that_is_not_empty_is_refused_unless_asked(bench: Bench) -> None:
    (bench.source / "old").write_text("from the vault")
    (bench.source / "new").write_text("from the vault")
    result = bench.back_up()
    target = bench.folder / "target"
    target.mkdir()
    (target / "old").write_text("already there")
    with pytest.raises(Conflict, match="not empty"):
        bench.restore(result, target)
    restored = restore(
        bench.depot, bench.keys, result.manifest, result.packs, result.indexes, FilesTarget(target, into_existing=True)
    )
    assert (target / "old").read_text() == "already there"
    assert (target / "new").read_text() == "from the vault"
    assert [problem.path for problem in restored.problems] == [b"old"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.parametrize("shape", ["many small", "one large"])
def test_a_full_disk_under_the_target_is_told(bench: Bench, shape: str) -> None:
    if shape == "one large":
        (bench.source / "large").write_bytes(noise(5_000_000, 1))
    else:
        for number in range(100):
            (bench.source / f"file{number}").write_bytes(noise(50_000, number))
    result = bench.back_up()
    mount = bench.folder / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], check=True)
    try:
        target = FilesTarget(mount / "target")
        with pytest.raises(StorageFull, match="restore elsewhere"):
            restore(bench.depot, bench.keys, result.manifest, result.packs, result.indexes, target)
        target.close()
        for path in (mount / "target").iterdir():
            assert path.read_bytes() == (bench.source / path.name).read_bytes(), "a part of a file has a final name"
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_lost_part_of_the_tree_costs_its_own_folders(bench: Bench) -> None:
    for number in range(1500):
        folder = bench.source / f"folder{number:04}"
        folder.mkdir()
        for name in range(3):
            (folder / f"{name}-{'x' * 60}").write_text(f"{number}")
    result = bench.back_up(tuning=SMALL_PACKS)
    from undercroft.engine.restore import PointReader

    point = PointReader(bench.depot, bench.keys, result.manifest, result.packs, result.indexes)
    tree = point.snapshot.tree
    assert len(tree) // 32 >= 4
    found = point.index.chunks.find(tree[64:96])
    # An index that tells everything but the third part of the tree.
    point.index.chunks.records[found * 44] ^= 1
    seen = {directory.path for directory in point.directories()}
    assert 300 < len(seen) < 1501
    assert point.damaged


def test_everything_of_a_planted_tree_comes_back(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    bench.assert_restores(result, described(bench.source))
