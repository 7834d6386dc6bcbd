from __future__ import annotations

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.workbench import noise
from undercroft.engine.chunker import CONTENT, Chunker

GOLDEN = [2032729, 617063, 1050870, 994829, 761737, 525876, 1121429, 1195887, 1021355, 1342499, 969495, 919985, 29158]


def _content(size: int) -> bytes:
    """Made by BLAKE3's extended output, so that no Python version changes it."""
    return blake3(b"golden content").digest(length=size)


def test_boundaries_are_golden() -> None:
    """What an agent cut last year must be cut the same today, or deduplication ends silently."""
    assert Chunker(CONTENT).lengths(_content(12 * 1024 * 1024), ended=True) == GOLDEN


def test_sizes_are_within_limits() -> None:
    lengths = Chunker(CONTENT).lengths(bytes(9 * 1024 * 1024) + noise(5_000_000, 1), ended=True)
    assert all(length <= CONTENT.most for length in lengths)
    assert all(length >= CONTENT.least for length in lengths[:-1])
    assert Chunker(CONTENT).lengths(b"", ended=True) == []
    assert Chunker(CONTENT).lengths(bytes(CONTENT.least), ended=True) == [CONTENT.least]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5_000_000), min_size=1, max_size=6), st.integers(0, 1_000_000))
def test_pieces_and_all_at_once_are_cut_alike(pieces: list[int], zeros: int) -> None:
    content = noise(7_000_000, 2) + bytes(zeros)
    chunker = Chunker(CONTENT)
    whole = chunker.lengths(content, ended=True)
    cut: list[int] = []
    start = end = 0
    for piece in [*pieces, len(content)]:
        end = min(end + piece, len(content))
        lengths = chunker.lengths(content[start:end], ended=end == len(content))
        cut += lengths
        start += sum(lengths)
    assert cut == whole
