"""Any bytes are parsed, or refused with one named error, by every parser of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undercroft.engine.checkpoints import LocalCache
from undercroft.engine.compression import Compressor
from undercroft.engine.crypto import ContainerKeys, envelope_name
from undercroft.engine.index import (
    ChunkTable,
    Index,
    PackContents,
    decode_contents,
    encode_contents,
    frame_directory,
    open_index,
    read_public,
    seal_index,
)
from undercroft.engine.packs import FrameRow, PackBuffer, verify_pack
from undercroft.engine.repository import object_id, object_name, prelude
from undercroft.engine.sealed import SealedWriter, read_sealed
from undercroft.engine.snapshots import (
    Directory,
    Entry,
    Extra,
    FrameRuns,
    Snapshot,
    Statistics,
    checked,
    encode_record,
    open_manifest,
    read_frames,
    read_records,
    seal_manifest,
)
from undercroft.errors import CapabilityMissing, DamagedData, InvalidInput, UndercroftError

KEYS = ContainerKeys.of_master(bytes(32))
ID = bytes(range(16))

PARSERS: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "pack": ("packs", lambda body: verify_pack(object_name("packs", ID), body)),
    "index in public": ("indexes", lambda body: read_public(object_name("indexes", ID), body)),
    "index": ("indexes", lambda body: open_index(object_name("indexes", ID), body, KEYS)),
    "manifest in public": ("manifests", lambda body: read_frames(object_name("manifests", ID), body)),
    "manifest": ("manifests", lambda body: open_manifest(object_name("manifests", ID), body, KEYS)),
    "envelope": ("keys", lambda body: ContainerKeys.open(body, "x")),
    "envelope name": ("keys", envelope_name),
    "tree": ("packs", lambda body: list(checked(read_records([body])))),
    "contents": ("packs", lambda body: decode_contents(body[: len(body) // 2], body[len(body) // 2 :], "it")),
}


@pytest.mark.parametrize("what", PARSERS)
@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=400), proper=st.booleans())
def test_any_bytes_are_parsed_or_refused(what: str, body: bytes, proper: bool) -> None:
    folder, parse = PARSERS[what]
    try:
        parse(prelude(folder, ID) + body if proper else body)
    except (DamagedData, CapabilityMissing) as error:
        assert isinstance(error, UndercroftError)
        assert len(str(error)) > 20


@given(st.text(max_size=60))
def test_any_name_is_parsed_or_refused(name: str) -> None:
    try:
        assert len(object_id(name)) == 16
    except InvalidInput as error:
        assert "not the name of an object" in str(error)


def test_a_newer_version_is_named() -> None:
    body = bytearray(prelude("packs", ID) + bytes(200))
    body[5] = 7
    with pytest.raises(CapabilityMissing, match="version 7"):
        read_public(object_name("indexes", ID), prelude("indexes", ID)[:5] + b"\x07" + bytes(body[6:]))


rows = st.builds(
    FrameRow, st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32),
)  # fmt: skip
chunk_ids = st.binary(min_size=32, max_size=32)


@st.composite
def pack_contents(draw: st.DrawFn) -> PackContents:
    table = draw(st.lists(rows, max_size=5))
    directories = []
    for _ in table:
        ids = draw(st.lists(chunk_ids, max_size=4))
        directories.append(frame_directory(ids, [draw(st.integers(0, 2**20)) for _ in ids]))
    return PackContents(draw(st.binary(min_size=16, max_size=16)), table, directories)


@settings(max_examples=40, deadline=None)
@given(st.lists(pack_contents(), max_size=4))
def test_indexes_round_trip(packs: list[PackContents]) -> None:
    assert decode_contents(*encode_contents(packs), "it") == packs
    name, body = seal_index(packs, KEYS, Compressor())
    assert open_index(name, body, KEYS) == packs
    assert read_public(name, body) == [(f"packs/{contents.pack.hex()}", contents.rows) for contents in packs]


entries = st.builds(
    Entry,
    name=st.binary(min_size=1, max_size=20),
    kind=st.sampled_from("fdpsbc"),
    mode=st.integers(0, 0o7777),
    uid=st.none() | st.integers(0, 2**32 - 1),
    gid=st.none() | st.integers(0, 2**32 - 1),
    mtime=st.integers(-(2**63), 2**63 - 1),
    ctime=st.integers(-1, 2**63 - 1),
    inode=st.integers(0, 2**64 - 1),
    size=st.integers(0, 2**63 - 1),
    chunks=chunk_ids,
)
directories = st.lists(
    st.builds(Directory, path=st.binary(max_size=30), entries=st.lists(entries, max_size=5)), max_size=8
)


@settings(max_examples=50, deadline=None)
@given(directories, st.integers(1, 50))
def test_trees_are_read_alike_in_pieces_and_at_once(tree: list[Directory], size: int) -> None:
    stream = b"".join(map(encode_record, tree))
    assert list(read_records([stream])) == tree
    assert list(read_records([stream[place : place + size] for place in range(0, len(stream), size)])) == tree
    if stream:
        with pytest.raises(DamagedData):
            list(read_records([stream[:-1]]))


runs = st.dictionaries(
    st.binary(min_size=16, max_size=16),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=4),
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(runs, entries)
def test_manifests_round_trip(public: FrameRuns, root: Entry) -> None:
    snapshot = Snapshot("p", "files", b"/x\xff", "host", "now", root, bytes(64), 5, Statistics(files=3), {0: "root"})
    name, body = seal_manifest(snapshot, public, KEYS, Compressor())
    assert open_manifest(name, body, KEYS) == snapshot
    assert read_frames(name, body) == public


def _entry(name: bytes, kind: str = "f") -> Entry:
    return Entry(name, kind, 0o644, 0, 0, 0, 0, 1, 0)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc", b"a\0b", b"x" * 256])
def test_names_that_cannot_be_are_refused(name: bytes) -> None:
    with pytest.raises(DamagedData, match="cannot be"):
        list(checked([Directory(b"", [_entry(name)])]))


@pytest.mark.parametrize(
    "tree",
    [
        [Directory(b"never declared", [])],
        [Directory(b"", [_entry(b"a", "l")]), Directory(b"a", [])],
        [Directory(b"", [_entry(b"a"), _entry(b"a")])],
        [Directory(b"", [_entry(b"a", "d")]), Directory(b"a", []), Directory(b"", []), Directory(b"a", [])],
        [Directory(b"", [_entry(b"a", "h")])],
        [Directory(b"", [_entry(b"a", "z")])],
        *(
            [Directory(b"", [msgspec.structs.replace(_entry(b"a"), **impossible)])]
            for impossible in (
                {"chunks": b"short"},
                {"mode": 0o10000},
                {"uid": 2**32 - 1},
                {"gid": -2},
                {"mtime": 2**63},
                {"size": -1},
                {"extra": Extra(target=b"a\0b")},
                {"extra": Extra(xattrs=((b"user.a\0", b""),))},
                {"extra": Extra(device=(1, 2**40))},
                {"extra": Extra(extents=((0, 2),))},
                {"extra": Extra(extents=((-1, 1),))},
                {"size": 9, "extra": Extra(extents=((4, 2), (5, 1)))},
            )
        ),
    ],
)
def test_trees_that_cannot_be_are_refused(tree: list[Directory]) -> None:
    with pytest.raises(DamagedData):
        list(checked(tree))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_local_files_round_trip_and_damage_is_never_returned(
    tmp_path: Path, segments: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path / "file"
    writer = SealedWriter(path, b"kind", KEYS)
    for segment in segments:
        writer.append(segment)
    writer.finish()
    assert list(read_sealed(path, b"kind", KEYS)) == [*segments, None]
    assert list(read_sealed(path, b"other", KEYS)) == []
    body = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(body)
    read = list(read_sealed(path, b"kind", KEYS))
    assert None not in read
    assert read == segments[: len(read)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_any_local_file_is_used_or_ignored(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(body)
    assert list(read_sealed(path, b"journal", KEYS)) == []
    assert LocalCache(tmp_path, KEYS).load_journal() == []


def test_the_chunk_table_is_a_map() -> None:
    table, model = ChunkTable(), {}
    for number in range(5000):
        chunk_id = KEYS.chunk_id(number.to_bytes(4, "little"))
        assert table.find(chunk_id) == -1
        table.add(chunk_id, number % 77, number, number * 3)
        model[chunk_id] = (number % 77, number, number * 3)
    assert len(table) == len(model)
    for chunk_id, where in model.items():
        assert table.at(table.find(chunk_id)) == where
        assert table.id(table.find(chunk_id)) == chunk_id
    assert (len(table.records) + table.slots.itemsize * len(table.slots)) / len(table) < 100, "bytes per chunk"


@settings(max_examples=20, deadline=None)
@given(st.lists(pack_contents(), max_size=4))
def test_the_index_survives_its_cache(packs: list[PackContents]) -> None:
    index = Index()
    index.learn(object_name("indexes", ID), packs)
    again = Index.from_segments(iter([*index.segments(), None]))
    assert again is not None
    assert again.covers == index.covers
    assert again.chunks.records == index.chunks.records
    assert again.frames == index.frames
    assert Index.from_segments(iter(list(index.segments()))) is None


def test_a_pack_round_trips() -> None:
    pack = PackBuffer(bytearray(4096))
    for size in (100, 1, 700):
        reserved = pack.reserve(size)
        assert reserved is not None
        number, offset, place = reserved
        from undercroft.engine.frames import ciphertext_hash

        pack.record(number, offset, place, ciphertext_hash(place))
    assert pack.reserve(4000) is None
    body, table = pack.finish()
    assert verify_pack(pack.name, bytes(body)) == table
    assert [row.length for row in table] == [100, 1, 700]
