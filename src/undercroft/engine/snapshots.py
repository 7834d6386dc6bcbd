"""Snapshots: manifests, and the stream of directory records that a tree is (``docs/format.md`` section 8).

Records are msgpack of frozen structs; paths and names are bytes. What comes from a depot passes ``checked``, which refuses
trees that could reach outside the folder they are restored to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag

from undercroft.engine.compression import Compressor, Decompressor
from undercroft.engine.crypto import ZERO_NONCE, ContainerKeys
from undercroft.engine.repository import PRELUDE_SIZE, Bytes, new_id, object_name, prelude, seal_parts, split_parts
from undercroft.errors import DamagedData

__all__ = [
    "RECORD_ENTRIES",
    "Directory",
    "Entry",
    "Extra",
    "FrameRuns",
    "ParentTree",
    "Problem",
    "Snapshot",
    "Statistics",
    "checked",
    "encode_record",
    "joined",
    "open_manifest",
    "read_frames",
    "read_records",
    "seal_manifest",
]

RECORD_ENTRIES = 2000
"""A larger directory is several records in a row."""
_RECORD_LIMIT = 256 * 1024 * 1024
_PLAIN_LIMIT = 1 << 30
_U32 = struct.Struct("<I")
_RUN = struct.Struct("<II")
_SERIES = struct.Struct("<16sI")

FrameRuns = dict[bytes, list[tuple[int, int]]]
"""series → runs of (first number, count)"""


class Extra(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What few entries have."""

    target: bytes | None = None
    """Of a symlink; of a further name of an inode: the path of the first, from the root."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    device: tuple[int, int] | None = None
    extents: tuple[tuple[int, int], ...] | None = None
    """(offset, length) of the data of a sparse file; the chunks are the concatenation."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name in a directory. Kinds: f file, d directory, l symlink, h further name of an inode, p fifo, s socket,
    b and c devices."""

    name: bytes
    kind: str
    mode: int
    uid: int | None
    gid: int | None
    mtime: int
    ctime: int
    inode: int
    size: int
    chunks: bytes = b""
    """Chunk ids, one after the other."""
    extra: Extra | None = None


class Directory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    path: bytes
    """From the root, without a leading slash; empty for the root itself."""
    entries: list[Entry]


class Problem(msgspec.Struct, frozen=True, array_like=True):
    path: bytes
    reason: str


class Statistics(msgspec.Struct, frozen=True):
    files: int = 0
    directories: int = 0
    source_bytes: int = 0
    """Sum of the sizes of the files."""
    bytes_read: int = 0
    bytes_sent: int = 0
    """Everything put by this run."""
    bytes_stored: int = 0
    """What all the frames that the point needs take, sent now or earlier."""
    unreadable: int = 0
    unchanged_files: int = 0
    """Not read again, because the parent snapshot had them."""
    new_chunks: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    program: str
    source_kind: str
    source_path: bytes
    host: str
    time: str
    root: Entry
    tree: bytes
    """Chunk ids of the tree stream."""
    tree_length: int
    statistics: Statistics
    owners: dict[int, str] = {}
    groups: dict[int, str] = {}
    problems: list[Problem] = []
    problems_left_out: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
_decode_directory = msgspec.msgpack.Decoder(Directory).decode


def joined(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


# --- manifests ---------------------------------------------------------------------------------------------------------


def _encode_runs(runs: FrameRuns) -> bytes:
    parts = [_U32.pack(len(runs))]
    for series, spans in sorted(runs.items()):
        parts.append(_SERIES.pack(series, len(spans)))
        parts += [_RUN.pack(first, count) for first, count in spans]
    return b"".join(parts)


def _decode_runs(public: Bytes, what: str) -> FrameRuns:
    runs: FrameRuns = {}
    place = _U32.size
    try:
        (count,) = _U32.unpack_from(public)
        for _ in range(count):
            series, spans = _SERIES.unpack_from(public, place)
            place += _SERIES.size
            end = place + spans * _RUN.size
            if end > len(public):
                raise struct.error
            runs[series] = list(_RUN.iter_unpack(memoryview(public)[place:end]))
            place = end
    except struct.error:
        place = -1
    if place != len(public):
        raise DamagedData(f"{what} is damaged: its public part is not whole.", target=what)
    return runs


def seal_manifest(
    snapshot: Snapshot, runs: FrameRuns, keys: ContainerKeys, compressor: Compressor
) -> tuple[str, bytes]:
    """A new manifest object: its name and bytes."""
    identity = new_id()
    name = object_name("manifests", identity)
    head, public = prelude("manifests", identity), _encode_runs(runs)
    associated = head + blake3(public).digest()
    private = keys.manifest_cipher(name).encrypt(ZERO_NONCE, compressor.compress(_encode(snapshot)), associated)
    return name, seal_parts(head, public, private)


def read_frames(name: str, body: Bytes) -> FrameRuns:
    """The frames a point needs, without a key."""
    return _decode_runs(split_parts(name, body)[0], name)


def open_manifest(name: str, body: Bytes, keys: ContainerKeys) -> Snapshot:
    public, private = split_parts(name, body)
    associated = bytes(memoryview(body)[:PRELUDE_SIZE]) + blake3(public).digest()
    try:
        compressed = keys.manifest_cipher(name).decrypt(ZERO_NONCE, private, associated)
    except InvalidTag as error:
        raise DamagedData(f"{name} is damaged (or made with another key): it does not verify.", target=name) from error
    try:
        return _decode_snapshot(Decompressor().decompress(compressed, _PLAIN_LIMIT, name))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedData(f"{name} is not a snapshot this program understands: {error}.", target=name) from error


# --- the tree stream -----------------------------------------------------------------------------------------------------


def encode_record(directory: Directory) -> bytes:
    body = _encode(directory)
    return _U32.pack(len(body)) + body


def read_records(pieces: Iterable[Bytes]) -> Iterator[Directory]:
    """The records of a tree stream that arrives in pieces of any size."""
    pending = bytearray()
    for piece in pieces:
        pending += piece
        place = 0
        with memoryview(pending) as view:
            while len(view) - place >= 4:
                (size,) = _U32.unpack_from(view, place)
                if size > _RECORD_LIMIT:
                    raise DamagedData(f"The tree of the snapshot is damaged: a record of {size} bytes.")
                if len(view) - place - 4 < size:
                    break
                try:
                    yield _decode_directory(view[place + 4 : place + 4 + size])
                except (msgspec.DecodeError, msgspec.ValidationError) as error:
                    raise DamagedData(f"The tree of the snapshot is damaged: {error}.") from error
                place += 4 + size
        del pending[:place]
    if pending:
        raise DamagedData("The tree of the snapshot is cut short.")


def _name_is_safe(name: bytes) -> bool:
    return 0 < len(name) <= 255 and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def _is_possible(entry: Entry) -> bool:
    """Whether the numbers are such that a file system could have given them, and so can be handed to one."""
    extra = entry.extra
    if len(entry.chunks) % 32 or len(entry.kind) != 1 or entry.kind not in "fdlhpsbc":
        return False
    if not (0 <= entry.size < 2**63 and 0 <= entry.mode <= 0o7777 and -(2**63) <= entry.mtime < 2**63):
        return False
    if not all(owner is None or 0 <= owner < 2**32 - 1 for owner in (entry.uid, entry.gid)):
        return False
    if extra is None:
        return True
    if extra.target is not None and (not extra.target or b"\0" in extra.target):
        return False
    if any(not name or b"\0" in name for name, _ in extra.xattrs):
        return False
    if extra.device is not None and not all(0 <= number < 2**20 for number in extra.device):
        return False
    place = 0
    for offset, length in extra.extents or ():
        if offset < place or length <= 0 or offset + length > entry.size:
            return False
        place = offset + length
    return True


def _leads_inside(entry: Entry) -> bool:
    target = entry.extra.target if entry.extra is not None else None
    return target is not None and all(_name_is_safe(part) for part in target.split(b"/"))


def checked(directories: Iterable[Directory], incomplete: Callable[[], bool] = lambda: False) -> Iterator[Directory]:
    """The same records, refusing with ``DamagedData`` what no file system gives and what could reach outside a target. Once the
    stream is known to be ``incomplete``, folders whose declaration is lost are accepted by their path."""
    declared = {b""}
    others: set[bytes] = set()
    previous: bytes | None = None
    seen: set[bytes] = set()
    for directory in directories:
        if directory.path != previous:
            lost = incomplete() and directory.path not in others
            if directory.path not in declared and not (lost and all(map(_name_is_safe, directory.path.split(b"/")))):
                raise DamagedData(
                    f"The tree holds a folder that it never declared: {directory.path!r}. It is not restored."
                )
            declared.discard(directory.path)
            previous, seen = directory.path, set()
        for entry in directory.entries:
            if not _name_is_safe(entry.name) or entry.name in seen:
                raise DamagedData(
                    f"The tree holds a name that cannot be: {entry.name!r} in {directory.path!r}. It is not restored."
                )
            if not _is_possible(entry):
                raise DamagedData(f"The tree holds an entry that cannot be: {entry.name!r} in {directory.path!r}.")
            if entry.kind in "lh" and (entry.extra is None or entry.extra.target is None):
                raise DamagedData(f"The tree holds a link without a target: {entry.name!r} in {directory.path!r}.")
            if entry.kind == "h" and not _leads_inside(entry):
                raise DamagedData(
                    f"The tree holds a hard link that leads outside: {entry.name!r} in {directory.path!r}."
                )
            seen.add(entry.name)
            if entry.kind == "d":
                declared.add(joined(directory.path, entry.name))
            elif entry.kind == "l":
                others.add(joined(directory.path, entry.name))
        yield directory


class ParentTree:
    """The last snapshot's tree, followed in step with a walk in the same order, so that one directory at a time is in memory."""

    def __init__(self, directories: Iterator[Directory]) -> None:
        self._directories = directories
        self._next: Directory | None = None
        self._advance()

    def _advance(self) -> None:
        """A damaged copy of the parent's tree is no parent: what follows is read like new."""
        try:
            self._next = next(self._directories, None)
        except DamagedData:
            self._next = None

    def entries(self, path: bytes) -> dict[bytes, Entry]:
        """What the parent had in this directory; paths are asked for in the order of the tree."""
        wanted = path.split(b"/") if path else []
        while self._next is not None and (self._next.path.split(b"/") if self._next.path else []) < wanted:
            self._advance()
        found: dict[bytes, Entry] = {}
        while self._next is not None and self._next.path == path:
            for entry in self._next.entries:
                found[entry.name] = entry
            self._advance()
        return found
