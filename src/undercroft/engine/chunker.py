"""Where content is cut (``docs/format.md`` section 4).

FastCDC finds boundaries in the content itself, so that bytes inserted early in a file move the later boundaries along with
the content. What is returned is boundaries; the bytes stay where the reader put them.
"""

from __future__ import annotations

from pyfastcdc import FastCDC

from undercroft.engine.repository import Bytes

__all__ = ["CONTENT", "Chunker", "Cut"]


class Cut:
    """Sizes of one kind of content."""

    __slots__ = ("average", "least", "most")

    def __init__(self, least: int, average: int, most: int) -> None:
        self.least, self.average, self.most = least, average, most


CONTENT = Cut(512 * 1024, 1024 * 1024, 4 * 1024 * 1024)


class Chunker:
    """One per thread (FastCDC objects are not concurrent-proof)."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._cdc = FastCDC(cut.average, min_size=cut.least, max_size=cut.most, normalized_chunking=1, seed=0)

    def lengths(self, data: Bytes, ended: bool) -> list[int]:
        """The lengths of the chunks at the start of ``data``. Unless the content ``ended`` with it, the last run is left out
        when more bytes could still move its end: the caller presents it again with what follows."""
        lengths = [chunk.length for chunk in self._cdc.cut_buf(data)] if len(data) else []
        if lengths and not ended and lengths[-1] < self.cut.most:
            lengths.pop()
        return lengths
