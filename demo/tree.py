"""The files of the journey: copied from this machine, with the hard cases added; changed a little; compared to the last bit."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Comparison", "build", "change", "compare"]

_MEGABYTE = 1_000_000
_SMALL, _LARGE = 120 * _MEGABYTE, 80 * _MEGABYTE


@dataclass(frozen=True)
class Comparison:
    files: int
    bytes: int
    hard_links: int
    symlinks: int
    xattrs: int
    sparse: int
    owners: bool
    differences: tuple[str, ...]


def build(target: Path, source: Path | None, *, as_root: bool) -> tuple[int, int]:
    """Copy ``source`` (or real trees of this machine, some 200 MB) into ``target`` and add the hard cases; files, bytes."""
    target.mkdir()
    if source is not None:
        shutil.copytree(source, target / source.name, symlinks=True, ignore_dangling_symlinks=True, copy_function=_copy)
    else:
        _copy_machine(target)
    odd = target / "odd cases"
    odd.mkdir()
    with (odd / "sparse.img").open("wb") as file:
        file.write(b"begin" * 1000)
        file.seek(64 << 20)
        file.write(os.urandom(200_000))
        file.truncate(100 << 20)
    (odd / "one.bin").write_bytes(os.urandom(3 << 20))
    os.link(odd / "one.bin", odd / "hard link of one.bin")
    os.link(odd / "one.bin", odd / "a second link")
    (odd / "empty").touch()
    (odd / "dangling").symlink_to("nowhere/at all")
    (odd / "naïve Ünïcode — ☃").write_text("snow\n")
    Path(os.fsdecode(os.fsencode(odd) + b"/not utf-8 \xff\xfe")).write_bytes(b"bytes are names, too\n")
    (odd / "set-gid and sticky").mkdir()
    (odd / "set-gid and sticky").chmod(0o3755)
    (odd / "read only").write_text("0444")
    (odd / "read only").chmod(0o444)
    os.mkfifo(odd / "fifo", 0o640)
    try:
        os.setxattr(odd / "one.bin", "user.undercroft.demo", b"\x00binary\xff value")
        os.setxattr(odd, "user.on.a.folder", b"yes")
    except OSError:
        pass  # a file system without user attributes; the table then counts none
    if as_root:
        os.chown(odd / "read only", 1234, 5678)
        os.chown(odd / "dangling", 4321, 8765, follow_symlinks=False)
    os.utime(odd / "empty", ns=(1_000_000_001, 1_234_567_890_123_456_789))
    files = [path for path in _walk(target) if stat.S_ISREG(path.lstat().st_mode)]
    return len(files), sum(path.lstat().st_size for path in files)


def _copy_machine(target: Path) -> None:
    """Many small files and a few large ones that this machine really has."""
    sizes: dict[bool, int] = {False: 0, True: 0}
    roots = [Path(path) for path in ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/share", "/usr/bin", "/usr/lib")]
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                origin = Path(folder, name)
                try:
                    info = origin.lstat()
                    if not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
                        continue
                    large = info.st_size > 4 * _MEGABYTE
                    if sizes[large] + info.st_size > (_LARGE if large else _SMALL):
                        continue
                    copy = target / origin.relative_to("/")
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    _copy(str(origin), str(copy), follow_symlinks=False)
                    sizes[large] += info.st_size
                except OSError:
                    continue  # not readable for us: the tree is made of what is
            if all(sizes[large] > 0.97 * limit for large, limit in ((False, _SMALL), (True, _LARGE))):
                return


def _copy(source: str, target: str, *, follow_symlinks: bool = True) -> str:
    if stat.S_ISREG(os.lstat(source).st_mode) or stat.S_ISLNK(os.lstat(source).st_mode):
        return str(shutil.copy2(source, target, follow_symlinks=False))
    return target


def change(tree: Path, seed: int = 7) -> tuple[int, int]:
    """Change about 3 % of the files (a few bytes, an insertion, an append, a rename, a deletion); files, bytes touched."""
    chance = random.Random(seed)
    touched = size = 0
    for path in sorted(_walk(tree)):
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode) or chance.random() > 0.03 or not os.access(path, os.W_OK):
            continue
        touched += 1
        size += info.st_size
        kind = chance.randrange(5)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            path.rename(path.with_name(path.name + ".moved"))
        else:
            content = bytearray(path.read_bytes())
            place = chance.randrange(len(content) + 1)
            fresh = chance.randbytes(64)
            content[place : place + (64 if kind == 2 else 0)] = fresh
            path.write_bytes(content)
    (tree / "added since").write_bytes(chance.randbytes(500_000))
    return touched + 1, size + 500_000


def compare(expected: Path, actual: Path, *, owners: bool) -> Comparison:
    """Byte for byte, with types, modes, times, links, xattrs, holes and (if asked) owners."""
    differences: list[str] = []
    counts = {"files": 0, "bytes": 0, "hard": 0, "symlinks": 0, "xattrs": 0, "sparse": 0}
    links: dict[tuple[int, int], set[str]] = {}
    links_there: dict[tuple[int, int], set[str]] = {}
    names = {str(path.relative_to(expected)) for path in _walk(expected)}
    names_there = {str(path.relative_to(actual)) for path in _walk(actual)}
    differences += [f"missing: {name!r}" for name in sorted(names - names_there)]
    differences += [f"not in the source: {name!r}" for name in sorted(names_there - names)]
    for name in [*sorted(names & names_there), "."]:
        here, there = expected / name, actual / name
        a, b = here.lstat(), there.lstat()
        differences += [f"{what}: {name!r}" for what in _metadata(here, a, there, b, owners)]
        counts["xattrs"] += len(os.listxattr(here, follow_symlinks=False))
        if stat.S_ISLNK(a.st_mode):
            counts["symlinks"] += 1
        elif stat.S_ISREG(a.st_mode) and stat.S_ISREG(b.st_mode):
            counts["files"] += 1
            counts["bytes"] += a.st_size
            if a.st_size != b.st_size or _digest(here) != _digest(there):
                differences.append(f"content: {name!r}")
            if a.st_blocks * 512 < a.st_size - (1 << 20):
                counts["sparse"] += 1
                if b.st_blocks * 512 > a.st_blocks * 512 + (1 << 20):
                    differences.append(f"no longer sparse: {name!r}")
            if a.st_nlink > 1:
                links.setdefault((a.st_dev, a.st_ino), set()).add(name)
            if b.st_nlink > 1:
                links_there.setdefault((b.st_dev, b.st_ino), set()).add(name)
    groups = sorted(tuple(sorted(group)) for group in links.values() if len(group) > 1)
    if groups != sorted(tuple(sorted(group)) for group in links_there.values() if len(group) > 1):
        differences.append("hard links differ")
    counts["hard"] = sum(len(group) - 1 for group in groups)
    return Comparison(
        counts["files"], counts["bytes"], counts["hard"], counts["symlinks"], counts["xattrs"], counts["sparse"],
        owners, tuple(differences),
    )  # fmt: skip


def _metadata(here: Path, a: os.stat_result, there: Path, b: os.stat_result, owners: bool) -> Iterator[str]:
    if a.st_mode != b.st_mode:
        yield f"mode {stat.filemode(a.st_mode)} became {stat.filemode(b.st_mode)}"
    if a.st_mtime_ns != b.st_mtime_ns:
        yield "modification time"
    if owners and (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        yield f"owner {a.st_uid}:{a.st_gid} became {b.st_uid}:{b.st_gid}"
    if stat.S_ISLNK(a.st_mode) and os.readlink(here) != os.readlink(there):
        yield "symlink target"
    if _xattrs(here) != _xattrs(there):
        yield "extended attributes"


def _xattrs(path: Path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            yield Path(folder, name)
