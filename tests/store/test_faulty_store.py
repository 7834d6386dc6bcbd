"""The store that fails on purpose does it exactly as planned."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from undercroft.errors import NotFound, StorageFull, Unavailable
from undercroft.store.faulty import Fault, Faults, FaultyStore, PlannedFaultNotHit
from undercroft.store.memory import MemoryStore


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_the_nth_put_fails_and_leaves_nothing() -> None:
    with Faults(Fault("put", 2, StorageFull("no room"), after=4)) as plan:
        store = FaultyStore(MemoryStore(), plan)
        await store.put("a", pieces(b"12345"))
        with pytest.raises(StorageFull):
            await store.put("b", pieces(b"12345"))
        with pytest.raises(NotFound):
            await store.info("b")
        await store.put("b", pieces(b"12345"))


async def test_a_prefix_counts_by_itself() -> None:
    with Faults(Fault("put", 1, Unavailable("gone"), prefix="commits/")) as plan:
        store = FaultyStore(MemoryStore(), plan)
        await store.put("packs/1", pieces(b"1"))
        with pytest.raises(Unavailable):
            await store.put("commits/1", pieces(b"1"))


async def test_an_acknowledged_fault_loses_only_the_answer() -> None:
    with Faults(Fault("put", 1, Unavailable("lost"), acknowledged=True)) as plan:
        store = FaultyStore(MemoryStore(), plan)
        with pytest.raises(Unavailable):
            await store.put("a", pieces(b"1"))
        assert (await store.info("a")).size == 1


async def test_a_get_breaks_after_some_bytes() -> None:
    with Faults(Fault("get", 1, Unavailable("gone"), after=3)) as plan:
        store = FaultyStore(MemoryStore(), plan)
        await store.put("a", pieces(b"12345"))
        got = b""
        with pytest.raises(Unavailable):
            async for piece in store.get("a"):
                got += piece
        assert got == b"123"


def test_a_fault_that_was_never_hit_fails_the_test() -> None:
    with pytest.raises(PlannedFaultNotHit), Faults(Fault("put", 1, StorageFull("no room"))):
        pass
