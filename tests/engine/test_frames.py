from __future__ import annotations

import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.engine.compression import Compressor
from undercroft.engine.crypto import TAG_SIZE, ContainerKeys
from undercroft.engine.frames import FRAME_LIMIT, FrameReader, encrypt_payload, payload
from undercroft.errors import DamagedData

KEYS = ContainerKeys.of_master(bytes(32))
SERIES = bytes(range(16))


def _sealed(plain: bytes, number: int = 3) -> bytes:
    into = bytearray(len(plain) + TAG_SIZE)
    encrypt_payload(KEYS.series_cipher(SERIES), SERIES, number, plain, memoryview(into))
    return bytes(into)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=30), st.integers(0, 2**32 - 1))
def test_frames_round_trip(chunks: list[bytes], number: int) -> None:
    frame = _sealed(payload(b"".join(chunks), [len(chunk) for chunk in chunks], Compressor()), number)
    reader = FrameReader(KEYS)
    data, lengths = reader.open(frame, SERIES, number, "frame")
    assert data == b"".join(chunks)
    assert lengths == [len(chunk) for chunk in chunks]
    assert reader.verify(data, lengths) == [KEYS.chunk_id(chunk) for chunk in chunks]
    with pytest.raises(DamagedData):
        reader.open(frame, SERIES, (number + 1) % 2**32, "frame")
    with pytest.raises(DamagedData):
        reader.open(frame, bytes(16), number, "frame")


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0\0",
        struct.pack("<I", 2**32 - 1),
        struct.pack("<II", 1, 5) + zstandard.compress(b"four"),
        struct.pack("<II", 1, FRAME_LIMIT + 1) + zstandard.compress(bytes(FRAME_LIMIT + 1)),
        struct.pack("<II", 1, 4) + b"not zstd",
        struct.pack("<II", 1, 4) + zstandard.ZstdCompressor(write_content_size=False).compress(b"four"),
        struct.pack("<II", 1, 4) + zstandard.compress(b"four") + b"more",
        struct.pack("<II", 1, 4) + zstandard.compress(b"four")[:-1],
    ],
)
def test_a_frame_that_claims_too_much_is_refused(plain: bytes) -> None:
    """Also when it verifies: a broken or hostile agent of the same container may have written it."""
    with pytest.raises(DamagedData, match="the frame"):
        FrameReader(KEYS).open(_sealed(plain), SERIES, 3, "the frame")
