"""Data sets: a tree that exists in two versions and swaps between them in place.

Set *a*: many files, copied from this machine's own (documentation, locales, Python) and filled up with generated text, records and
noise to the wanted count and size. Set *b*: few large files: a tar of set a, a database, noise. In the second version about
4 % of the files (a) or of the content (b) differ, and some files are new or gone. All generated content follows from a seed;
what is copied depends on the machine, so the table tells counts and bytes.

Swapping renames only the files that differ, so all others keep their inode and times, as on a machine that goes on working.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DataSet", "Extent", "differences", "large_files", "many_files"]

SEED = 2026
SOURCES = ("/usr/share", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/local/lib", "/usr/include", "/usr/lib")
LARGEST_COPY = 8 << 20
CHANGED = 0.04
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a data set is to be."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DataSet:
    name: str
    live: Path
    """What is backed up. Starts as the first version."""
    aside: Path
    """The other version of the files that differ."""
    differing: tuple[str, ...]

    def swap(self) -> None:
        """Exchange the two versions. A file that only one of them has moves over."""
        waiting = self.aside.with_name(f"{self.aside.name}-waiting")
        for name in self.differing:
            live, aside = self.live / name, self.aside / name
            has_live, has_aside = os.path.lexists(live), os.path.lexists(aside)
            if has_live:
                live.rename(waiting)
            if has_aside:
                live.parent.mkdir(parents=True, exist_ok=True)
                aside.rename(live)
            if has_live:
                aside.parent.mkdir(parents=True, exist_ok=True)
                waiting.rename(aside)

    def extent(self) -> Extent:
        sizes = [path.lstat().st_size for path in walk(self.live) if path.is_file() and not path.is_symlink()]
        return Extent(len(sizes), sum(sizes))

    def changed(self) -> Extent:
        """Files of the live version that the other lacks or has otherwise."""
        sizes = [(self.live / name).lstat().st_size for name in self.differing if (self.live / name).is_file()]
        return Extent(len(sizes), sum(sizes))


def walk(top: Path) -> Iterator[Path]:
    """Everything below ``top``, in order."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted([*names, *folders]):
            yield Path(folder, name)


# --- set a -----------------------------------------------------------------------------------------------------------


def many_files(folder: Path, wanted: Extent) -> DataSet:
    """At least ``wanted`` of files and of bytes."""
    chance = random.Random(SEED)
    live, aside = folder / "a", folder / "a-aside"
    live.mkdir(parents=True)
    aside.mkdir()
    files, size = copy_machine(live, wanted)
    words = vocabulary(chance)
    # The rest of the count takes the rest of the bytes, most of them small, as real trees have it.
    remaining = max(wanted.files - files, 0) + wanted.files // 50
    missing = max(wanted.bytes - size, 0) + wanted.bytes // 100
    number = 0
    while remaining > 0 or missing > 0:
        mean = max(missing // max(remaining, 1), 200)
        length = min(int(chance.expovariate(1 / mean)) + 20, 16 << 20)
        place = live / "generated" / f"{number // 200:04d}"
        if number % 200 == 0:
            place.mkdir(parents=True)
        path = place / f"{number:06d}.{('txt', 'txt', 'rec', 'bin')[number % 4]}"
        path.write_bytes(content(chance, number, length, words))
        number, remaining, missing = number + 1, remaining - 1, missing - length
    return DataSet("a", live, aside, change_files(chance, live, aside, words))


def copy_machine(live: Path, wanted: Extent) -> tuple[int, int]:
    """Files of this machine, at most 9/10 of what is wanted so that the generated kinds are always there as well."""
    files = size = 0
    seen: set[tuple[int, int]] = set()
    for source in map(Path, SOURCES):
        for path in walk(source) if source.is_dir() else ():
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST_COPY or (about.st_dev, about.st_ino) in seen:
                continue
            if not os.access(path, os.R_OK):
                continue
            if (size + about.st_size) * 10 > wanted.bytes * 9 or files * 10 >= wanted.files * 9:
                return files, size
            seen.add((about.st_dev, about.st_ino))
            target = live / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            files, size = files + 1, size + about.st_size
    return files, size


def vocabulary(chance: random.Random) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 1) for rank in range(len(letters))]
    words = ["".join(chance.choices(letters, weights, k=chance.randint(2, 11))) for _ in range(5000)]
    return [word for rank, word in enumerate(words) for _ in range(max(1, 500 // (rank + 1)))]


def content(chance: random.Random, number: int, length: int, words: list[str]) -> bytes:
    """Half text, a quarter records of a fixed form, a quarter noise (media, archives)."""
    kind = number % 4
    if kind < 2:
        return " ".join(chance.choices(words, k=length // 5 + 1)).encode("ascii")[:length]
    if kind == 2:
        lines = (f"{number:08d},{line:08d},{chance.getrandbits(32):08x},ok,0.00\n" for line in range(length // 36 + 1))
        return "".join(lines).encode("ascii")[:length]
    return chance.randbytes(length)


def change_files(chance: random.Random, live: Path, aside: Path, words: list[str]) -> tuple[str, ...]:
    """Write the second version of 4 % of the files: edited, appended to, new, or gone. Files over 1 MiB change in place."""
    names = [str(path.relative_to(live)) for path in walk(live) if path.is_file()]
    differing = []
    for position, name in enumerate(sorted(chance.sample(names, int(len(names) * CHANGED)))):
        differing.append(name)
        old = (live / name).read_bytes()
        kind = position % 20
        if kind == 0:
            continue  # gone in the second version
        if kind == 1:
            new_name = f"{name}.new"
            write(aside / new_name, content(chance, position, max(len(old), 100), words))
            differing.append(new_name)
        start = chance.randrange(len(old) + 1)
        edit = " ".join(chance.choices(words, k=20)).encode("ascii")
        write(aside / name, old + edit if kind % 2 else old[:start] + edit + old[start + len(edit) :])
    return tuple(differing)


def write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


# --- set b -----------------------------------------------------------------------------------------------------------


def large_files(folder: Path, wanted: Extent, source: Path) -> DataSet:
    """``wanted.bytes`` in three files, a third each; ``source`` (set a) fills the tar."""
    chance = random.Random(SEED + 1)
    live, aside = folder / "b", folder / "b-aside"
    live.mkdir()
    aside.mkdir()
    third = wanted.bytes // 3
    for place, version in ((live, 1), (aside, 2)):
        make_tar(place / "sources.tar", source, third, version)
        make_database(place / "orders.db", third, version)
    make_noise(chance, live / "media.bin", aside / "media.bin", third)
    return DataSet("b", live, aside, ("media.bin", "orders.db", "sources.tar"))


def make_tar(path: Path, source: Path, size: int, version: int) -> None:
    """In the second version every 25th member has a line more, so all behind it moves."""
    with tarfile.open(path, "w") as archive:
        for number, member in enumerate(item for item in walk(source) if item.is_file()):
            if archive.offset >= size:
                return
            body = member.read_bytes()
            if version == 2 and number % 25 == 0:
                body += b"\nchanged\n"
            entry = tarfile.TarInfo(str(member.relative_to(source)))
            entry.size, entry.mtime = len(body), 1_700_000_000
            with ReadOnce(body) as stream:
                archive.addfile(entry, stream)


class ReadOnce:
    """The least of a file that tarfile reads from (BytesIO copies)."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)

    def read(self, length: int = -1) -> bytes:
        taken = self._body if length < 0 else self._body[:length]
        self._body = self._body[len(taken) :]
        return bytes(taken)

    def __enter__(self) -> ReadOnce:
        return self

    def __exit__(self, *_: object) -> None:
        self._body.release()


def make_database(path: Path, size: int, version: int) -> None:
    """An SQLite database of orders; in the second version 4 % of the rows are updated, in runs, and some are added."""
    chance = random.Random(SEED + 2)
    words = vocabulary(chance)
    rows = size // 330
    database = sqlite3.connect(path)
    with database:
        database.execute("PRAGMA synchronous=OFF")
        database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, state TEXT, note TEXT)")
        database.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?)",
            (
                (row, f"{chance.getrandbits(64):016x}", "open", " ".join(chance.choices(words, k=55)))
                for row in range(rows)
            ),
        )
        if version == 2:
            later = random.Random(SEED + 3)
            run = max(int(rows * CHANGED) // 100, 1)
            for _ in range(100):
                start = later.randrange(rows)
                database.execute(
                    "UPDATE orders SET state = 'done', customer = ? WHERE id BETWEEN ? AND ?",
                    (f"{later.getrandbits(64):016x}", start, start + run),
                )
            new = ((rows + row, "new", "open", " ".join(later.choices(words, k=55))) for row in range(rows // 200))
            database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", new)
    database.close()


def make_noise(chance: random.Random, first: Path, second: Path, size: int) -> None:
    """Bytes that do not compress; the second version has 4 % overwritten, in runs, and some inserted in the middle."""
    blocks = max(size // BLOCK, 1)
    overwritten = set(chance.sample(range(blocks), max(int(blocks * CHANGED), 1)))
    with first.open("wb") as one, second.open("wb") as other:
        for number in range(blocks):
            block = chance.randbytes(BLOCK)
            one.write(block)
            if number == blocks // 2:
                other.write(b"inserted" * 100)
            other.write(chance.randbytes(BLOCK) if number in overwritten else block)


# --- comparing -------------------------------------------------------------------------------------------------------


def differences(expected: Path, actual: Path) -> list[str]:
    """Names, kinds and content; at most ten are told."""
    here = {str(path.relative_to(expected)) for path in walk(expected)}
    there = {str(path.relative_to(actual)) for path in walk(actual)}
    found = [f"missing: {name}" for name in sorted(here - there)[:5]] + [
        f"extra: {name}" for name in sorted(there - here)[:5]
    ]
    for name in sorted(here & there):
        one, other = expected / name, actual / name
        if stat.S_IFMT(one.lstat().st_mode) != stat.S_IFMT(other.lstat().st_mode):
            found.append(f"kind: {name}")
        elif one.is_file() and not filecmp.cmp(one, other, shallow=False):
            found.append(f"content: {name}")
        if len(found) >= 10:
            break
    filecmp.clear_cache()
    return found
