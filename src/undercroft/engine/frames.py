"""Frames: chunks compressed and encrypted together (``docs/format.md`` section 5). Rules on bytes, without I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from undercroft.engine.compression import Compressor, Decompressor
from undercroft.engine.crypto import TAG_SIZE, ContainerKeys
from undercroft.engine.repository import Bytes
from undercroft.errors import DamagedData

__all__ = [
    "FRAME_LIMIT",
    "GROUP_LIMIT",
    "GROUP_TARGET",
    "HASH_SIZE",
    "FrameReader",
    "ciphertext_hash",
    "encrypt_payload",
    "payload",
]

GROUP_TARGET = 512 * 1024
GROUP_LIMIT = 1024 * 1024
FRAME_LIMIT = 16 * 1024 * 1024
"""No reader accepts a frame of more plain bytes."""
HASH_SIZE = 32

_COUNT = struct.Struct("<I")
_DOMAIN = b"undercroft frame 0"


def _nonce(number: int) -> bytes:
    return _COUNT.pack(number) + bytes(8)


def _associated(series: bytes, number: int) -> bytes:
    return _DOMAIN + series + _COUNT.pack(number)


def ciphertext_hash(ciphertext: Bytes) -> bytes:
    """What the public frame table says of a frame; made and checked without a key."""
    return blake3(ciphertext).digest()


def payload(chunks: Bytes, lengths: Sequence[int], compressor: Compressor) -> bytes:
    """``chunks`` is their concatenation, in the order of ``lengths``."""
    directory = struct.pack(f"<I{len(lengths)}I", len(lengths), *lengths)
    return b"".join((directory, compressor.compress(chunks)))


def encrypt_payload(cipher: AESGCM, series: bytes, number: int, plain: Bytes, into: memoryview) -> None:
    """Encrypt into ``into``, whose size is the payload's and the tag's. (series, number) must never have been used."""
    written = cipher.encrypt_into(_nonce(number), plain, _associated(series, number), into)
    if written != len(plain) + TAG_SIZE:
        raise AssertionError("the buffer and the frame differ in size")


class FrameReader:
    """Opens frames; keeps one scratch buffer and the ciphers of recent series. One per thread."""

    def __init__(self, keys: ContainerKeys) -> None:
        self._keys = keys
        self._decompressor = Decompressor()
        self._scratch = bytearray(2 * GROUP_LIMIT)
        self._ciphers: dict[bytes, AESGCM] = {}

    def open(self, ciphertext: Bytes, series: bytes, number: int, what: str) -> tuple[bytes, list[int]]:
        """The chunks' bytes back to back, and their lengths; ``what`` names the frame in errors."""
        size = len(ciphertext) - TAG_SIZE
        if size < _COUNT.size or size > 2 * FRAME_LIMIT:
            raise DamagedData(f"{what} is damaged: {len(ciphertext)} bytes.", target=what)
        if size > len(self._scratch):
            self._scratch = bytearray(size)
        with memoryview(self._scratch)[:size] as plain:
            try:
                self._cipher(series).decrypt_into(_nonce(number), ciphertext, _associated(series, number), plain)
            except InvalidTag as error:
                raise DamagedData(f"{what} is damaged: it does not verify.", target=what) from error
            (count,) = _COUNT.unpack_from(plain)
            start = 4 + 4 * count
            if start > size:
                raise DamagedData(f"{what} is damaged: it claims {count} chunks.", target=what)
            lengths = list(struct.unpack_from(f"<{count}I", plain, 4))
            data = self._decompressor.decompress(plain[start:], FRAME_LIMIT, what)
        if sum(lengths) != len(data):
            raise DamagedData(f"{what} is damaged: the lengths of its chunks do not add up.", target=what)
        return data, lengths

    def verify(self, data: bytes, lengths: Sequence[int]) -> list[bytes]:
        """The ids of the chunks in an opened frame."""
        view = memoryview(data)
        ends = accumulate(lengths)
        return [self._keys.chunk_id(view[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def _cipher(self, series: bytes) -> AESGCM:
        cipher = self._ciphers.get(series)
        if cipher is None:
            if len(self._ciphers) >= 64:
                self._ciphers.clear()
            cipher = self._ciphers[series] = self._keys.series_cipher(series)
        return cipher
