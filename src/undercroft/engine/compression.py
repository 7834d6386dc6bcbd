"""zstd, with the limit that every reader of foreign bytes needs."""

from __future__ import annotations

import zstandard

from undercroft.engine.repository import Bytes
from undercroft.errors import DamagedData

__all__ = ["DEFAULT_LEVEL", "Compressor", "Decompressor"]

DEFAULT_LEVEL = 3
"""Measured: level 2 takes 26 % less time for 3 % more bytes on database dumps; no clear difference on small files."""


class Compressor:
    """One per thread."""

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        self._context = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)

    def compress(self, data: Bytes) -> bytes:
        return self._context.compress(data)


class Decompressor:
    """One per thread."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor()

    def decompress(self, data: Bytes, limit: int, what: str) -> bytes:
        """Only for bytes that were authenticated. Refuses a frame without a size, or with one above ``limit``."""
        try:
            size = zstandard.frame_content_size(data)
            if size < 0 or size > limit:
                raise DamagedData(f"{what} is damaged: it claims {size} bytes, the limit is {limit}.", target=what)
            plain = self._context.decompress(data, max_output_size=max(size, 1), allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DamagedData(f"{what} is damaged: {error}.", target=what) from error
        if len(plain) != size:
            raise DamagedData(f"{what} is damaged: {len(plain)} bytes instead of {size}.", target=what)
        return plain
