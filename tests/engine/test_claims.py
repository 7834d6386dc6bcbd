"""The claims of docs/format.md section 11, each with its attack."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from tests.engine.depots import FaultyDepot, FolderDepot
from tests.engine.workbench import SMALL_PACKS, Bench, noise, plant
from undercroft.agent.sources.files_target import FilesTarget
from undercroft.engine.backup import BackupResult
from undercroft.engine.check import check_point
from undercroft.engine.compression import Compressor
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.frames import FrameReader, ciphertext_hash
from undercroft.engine.index import PackContents, open_index, read_public, seal_index
from undercroft.engine.packs import FrameRow, PackBuffer, verify_pack
from undercroft.engine.repository import Bytes, Depot, object_id
from undercroft.engine.restore import restore
from undercroft.engine.snapshots import open_manifest
from undercroft.errors import DamagedData, Unavailable


def test_every_claim_names_a_test_that_exists() -> None:
    tests = Path(__file__).parent
    text = (tests.parents[1] / "docs/format.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}" in (tests / file).read_text("utf-8"), (file, test)


def _stored(depot: FolderDepot) -> dict[str, bytes]:
    return {name: bytes(depot.get(name)) for name in depot.names()}


def test_the_service_sees_no_name_and_no_content(bench: Bench) -> None:
    words = [b"salaries-of-everybody", b"a planted sentence that nobody else writes", b"user.planted-attribute"]
    file = bench.source / words[0].decode()
    file.write_bytes(words[1] * 50)
    os.setxattr(file, words[2].decode(), b"planted-value")
    bench.back_up()
    for name, body in _stored(bench.depot).items():
        for word in (*words, b"planted-value", zstandard.compress(words[1] * 50)[12:40]):
            assert word not in body, name
            assert word not in name.encode()
    for path in bench.cache.iterdir():
        assert not any(word in path.read_bytes() for word in words), f"the local file {path} is not encrypted"


def test_equal_files_of_two_containers_have_nothing_in_common(tmp_path: Path) -> None:
    seen: list[set[bytes]] = []
    content = noise(900_000, 1)
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        bench = Bench(
            tmp_path / str(number),
            FolderDepot(tmp_path / str(number) / "depot"),
            ContainerKeys.of_master(os.urandom(32)),
        )
        (bench.source / "known.iso").write_bytes(content)
        bench.back_up()
        bodies = _stored(bench.depot)
        found = {bytes.fromhex(name.split("/")[1]) for name in bodies}
        for name in bodies:
            if name.startswith("indexes/"):
                for contents in open_index(name, bodies[name], bench.keys):
                    found |= {row.hash for row in contents.rows}
                    found |= {directory[4:36] for directory in contents.directories}
        for guess in (blake3(content).digest(), blake3(content, key=bytes(32)).digest()):
            assert not any(guess in body or guess.hex() in name for name, body in bodies.items())
        seen.append(found)
    assert not seen[0] & seen[1]


def test_keys_of_another_container_open_nothing(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    other = ContainerKeys.of_master(os.urandom(32))
    opened: list[str] = []
    attempts: list[Callable[[], object]] = [
        lambda: open_manifest(result.manifest, bench.depot.get(result.manifest), other),
        lambda: open_index(result.indexes[0], bench.depot.get(result.indexes[0]), other),
    ]
    for name, rows in read_public(result.indexes[0], bench.depot.get(result.indexes[0])):
        body = bench.depot.get(name)
        for row in rows:
            attempts.append(
                lambda body=body, row=row: FrameReader(other).open(  # type: ignore[misc]
                    body[row.offset : row.offset + row.length], row.series, row.number, "frame"
                )
            )
    for attempt in attempts:
        with pytest.raises(DamagedData):
            opened.append(str(attempt()))
    assert not opened
    assert len(attempts) > 5


def test_swapped_frames_do_not_verify(bench: Bench) -> None:
    """The service exchanges two frames and makes the public table fit: only the key finds out, and it does."""
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    index = result.indexes[0]
    pack, rows = max(read_public(index, bench.depot.get(index)), key=lambda item: len(item[1]))
    body = bench.depot.get(pack)
    assert len(rows) >= 2
    cut = [body[row.offset : row.offset + row.length] for row in rows]
    for claimed, frame in ((rows[0], cut[1]), (rows[1], cut[0])):
        with pytest.raises(DamagedData):
            FrameReader(bench.keys).open(frame, claimed.series, claimed.number, claimed.name)


def _rewritten(bench: Bench, result: BackupResult) -> tuple[str, str]:
    """What a service may do without a key: copy all frames of all packs, verbatim and backwards, into one new pack. The public
    part of an index is the service's to write in a later format; here the test seals it for it."""
    contents = [contents for name in result.indexes for contents in open_index(name, bench.depot.get(name), bench.keys)]
    moved = PackBuffer(bytearray(16 * 1024 * 1024))
    new_rows: list[FrameRow] = []
    directories: list[bytes] = []
    rows: list[FrameRow] = []
    for old in contents:
        body = bench.depot.get(f"packs/{old.pack.hex()}")
        for row, directory in reversed(list(zip(old.rows, old.directories, strict=True))):
            reserved = moved.reserve(row.length)
            assert reserved is not None
            _, offset, place = reserved
            place[:] = body[row.offset : row.offset + row.length]
            new_rows.append(FrameRow(row.series, row.number, offset, row.length, ciphertext_hash(place)))
            directories.append(directory)
            rows.append(row)
    moved.adopt(new_rows)
    whole, table = moved.finish()
    assert [(row.series, row.number) for row in table] == [(row.series, row.number) for row in rows]
    bench.depot.put(moved.name, [whole])
    assert len(verify_pack(moved.name, bench.depot.get(moved.name))) == len(rows)
    name, index = seal_index([PackContents(moved.id, table, directories)], bench.keys, Compressor())
    bench.depot.put(name, [index])
    return moved.name, name


def test_frames_survive_being_moved_by_the_service(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    pack, index = _rewritten(bench, result)
    for name in (*result.packs, *result.indexes):
        (bench.depot.folder / name).unlink()
    assert check_point(bench.depot, bench.keys, result.manifest, [pack], [index]).whole
    restored = restore(bench.depot, bench.keys, result.manifest, [pack], [index], FilesTarget(bench.folder / "moved"))
    assert not restored.partial
    assert (bench.folder / "moved/large").read_bytes() == (bench.source / "large").read_bytes()


def test_no_key_and_nonce_are_used_twice(bench: Bench) -> None:
    """Over several runs, failures and resumption, of everything that was ever put."""
    put: list[tuple[bytes, int, bytes]] = []

    class Watching:
        def __init__(self, inner: Depot) -> None:
            self.inner = inner
            self.get, self.objects = inner.get, inner.objects

        def put(self, name: str, parts: Sequence[Bytes]) -> None:
            body = b"".join(parts)
            if name.startswith("packs/"):
                put.extend((row.series, row.number, row.hash) for row in verify_pack(name, body))
            else:
                put.append((object_id(name), 0, blake3(body).digest()))
            self.inner.put(name, [body])

    plant(bench.source)
    for attempt in range(1, 5):
        (bench.source / "more").write_bytes(noise(700_000, attempt))
        try:
            bench.back_up(Watching(FaultyDepot(bench.depot, attempt)), SMALL_PACKS, check=False)
        except Unavailable:
            pass
    bench.back_up(Watching(bench.depot), SMALL_PACKS)
    by_key: dict[tuple[bytes, int], set[bytes]] = {}
    for series, number, digest in put:
        by_key.setdefault((series, number), set()).add(digest)
    assert len(by_key) > 8
    assert all(len(digests) == 1 for digests in by_key.values())
