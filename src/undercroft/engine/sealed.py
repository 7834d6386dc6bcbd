"""Local files of the agent, encrypted and authenticated: index cache, tree of the last snapshot, journal.

A file is a header and segments; a segment's nonce is its number, its associated data the file's kind and id, its number and
whether it is the last. Every such file may be deleted: it only saves time. So a reader answers "not usable" (``None`` or an
early end) for whatever does not verify, and the caller does the work again.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.repository import Bytes, new_id
from undercroft.errors import LocalProblem, StorageFull

__all__ = ["SealedWriter", "read_sealed", "writing_locally"]

_MAGIC = b"UNDCLOC0"
_SEGMENT = struct.Struct("<IB")
_LIMIT = 128 * 1024 * 1024


@contextmanager
def writing_locally(path: Path) -> Iterator[None]:
    """Turn the system's refusals while writing ``path`` into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"No space left while writing {path}. Free some space there and run again; nothing that was "
                "acknowledged is lost.",
                target=str(path),
            ) from error
        raise LocalProblem(f"{path} cannot be written: {error.strerror}.", target=str(path)) from error


def _associated(kind: bytes, file_id: bytes, number: int, last: bool) -> bytes:
    return kind + file_id + struct.pack("<Q?", number, last)


def _nonce(number: int) -> bytes:
    return struct.pack("<Q", number) + bytes(4)


class SealedWriter:
    """Writes one file, segment by segment. With ``in_place`` the file has its name from the start and grows by whole
    segments (journal); otherwise it appears under its name only at ``finish``."""

    def __init__(self, path: Path, kind: bytes, keys: ContainerKeys, in_place: bool = False) -> None:
        self.path = path
        self._kind = kind
        self._id = new_id()
        self._cipher: AESGCM = keys.cache_cipher(self._id)
        self._number = 0
        self._written = path if in_place else path.with_name(f"{path.name}.new-{os.getpid()}")
        with writing_locally(path):
            self._file = self._written.open("wb", buffering=0 if in_place else 256 * 1024)
            os.chmod(self._file.fileno(), 0o600)
            self._file.write(_MAGIC + self._id)

    def append(self, plain: Bytes, last: bool = False) -> None:
        sealed = self._cipher.encrypt(
            _nonce(self._number), plain, _associated(self._kind, self._id, self._number, last)
        )
        self._number += 1
        with writing_locally(self.path):
            self._file.write(_SEGMENT.pack(len(sealed), last) + sealed)

    def finish(self) -> None:
        """End the file properly and give it its name."""
        self.append(b"", last=True)
        with writing_locally(self.path):
            self._file.close()
            if self._written != self.path:
                self._written.replace(self.path)

    def abandon(self) -> None:
        """Close; a file that never got its name is removed."""
        try:
            self._file.close()
        except OSError:  # a full disk may refuse the buffered rest; the file goes anyway
            pass
        if self._written != self.path:
            self._written.unlink(missing_ok=True)


def read_sealed(path: Path, kind: bytes, keys: ContainerKeys) -> Iterator[bytes | None]:
    """The segments that verify, in order, then ``None`` if the file was properly ended. Stops at the first that does not."""
    try:
        file = path.open("rb", buffering=256 * 1024)
    except OSError:
        return
    with file:
        header = file.read(len(_MAGIC) + 16)
        if len(header) != len(_MAGIC) + 16 or not header.startswith(_MAGIC):
            return
        file_id = header[len(_MAGIC) :]
        cipher = keys.cache_cipher(file_id)
        number = 0
        while len(head := file.read(_SEGMENT.size)) == _SEGMENT.size:
            size, flag = _SEGMENT.unpack(head)
            if size > _LIMIT or flag > 1:
                return
            last = flag == 1
            sealed = file.read(size)
            if len(sealed) != size:
                return
            try:
                plain = cipher.decrypt(_nonce(number), sealed, _associated(kind, file_id, number, last))
            except (InvalidTag, ValueError):
                return
            if last:
                yield None
                return
            yield plain
            number += 1
