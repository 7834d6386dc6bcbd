"""What every store does, and every wrapper around one: the contract of ``store.store.Store``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.store.faulty import Faults, FaultyStore
from undercroft.store.filesystem import FilesystemStore
from undercroft.store.folders import folders
from undercroft.store.memory import MemoryStore
from undercroft.store.store import Store

MAKERS: dict[str, Callable[[Path], Store]] = {
    "filesystem": FilesystemStore,
    "memory": lambda _: MemoryStore(),
    "faulty memory": lambda _: FaultyStore(MemoryStore(), Faults()),
    "faulty filesystem": lambda path: FaultyStore(FilesystemStore(path), Faults()),
}


@pytest.fixture(params=list(MAKERS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = MAKERS[request.param](tmp_path / "store")
    yield made
    await made.close()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(store: Store, name: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.get(name, offset, length)])


async def names(store: Store, prefix: str = "", after: str = "") -> list[str]:
    return [info.name async for info in store.list(prefix, after)]


async def test_what_was_put_is_there_whole(store: Store) -> None:
    body = bytes(range(256)) * 20_000  # above two buffers
    info = await store.put("a/b/one", pieces(body[:7], b"", body[7:3_000_000], body[3_000_000:]))
    assert (info.name, info.size) == ("a/b/one", len(body))
    assert await store.info("a/b/one") == info
    assert await content(store, "a/b/one") == body
    async for piece in store.get("a/b/one"):
        assert 0 < len(piece) <= 1 << 20


async def test_an_empty_object_is_an_object(store: Store) -> None:
    assert (await store.put("empty", pieces())).size == 0
    assert await content(store, "empty") == b""


async def test_ranges(store: Store) -> None:
    await store.put("r", pieces(b"0123456789"))
    assert await content(store, "r", 3) == b"3456789"
    assert await content(store, "r", 3, 4) == b"3456"
    assert await content(store, "r", 8, 40) == b"89"
    assert await content(store, "r", 10) == b""
    assert await content(store, "r", 0, 0) == b""


async def test_a_name_is_written_once(store: Store) -> None:
    await store.put("x", pieces(b"first"))
    with pytest.raises(Conflict):
        await store.put("x", pieces(b"second"))
    assert await content(store, "x") == b"first"
    replaced = await store.put("x", pieces(b"third"), replace=True)
    assert await content(store, "x") == b"third"
    assert (await store.info("x")).etag == replaced.etag


async def test_a_body_that_breaks_leaves_nothing(store: Store) -> None:
    class Broke(Exception):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * (3 << 20)
        raise Broke

    with pytest.raises(Broke):
        await store.put("half", body())
    with pytest.raises(NotFound):
        await store.info("half")
    assert await names(store) == []
    await store.put("half", pieces(b"whole"))
    assert await content(store, "half") == b"whole"


async def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.info("no/such")
    with pytest.raises(NotFound):
        await content(store, "no/such")
    await store.delete("no/such")
    await store.put("a", pieces(b"1"))
    await store.delete("a")
    with pytest.raises(NotFound):
        await content(store, "a")
    assert await names(store) == []


async def test_listing_is_in_order_of_the_whole_name(store: Store) -> None:
    wanted = ["a-b", "a.c", "a/b", "a/c/d", "a/c-d", "a0", "b"]
    for name in reversed(wanted):
        await store.put(name, pieces(name.encode()))
    assert await names(store) == sorted(wanted)
    assert await names(store, "a/") == ["a/b", "a/c-d", "a/c/d"]
    assert await names(store, "a/c") == ["a/c-d", "a/c/d"]
    assert await names(store, "a") == [name for name in sorted(wanted) if name.startswith("a")]
    assert await names(store, "a/b") == ["a/b"]
    assert await names(store, "zz") == []


async def test_listing_goes_on_after_any_name(store: Store) -> None:
    wanted = sorted(["a-b", "a.c", "a/b", "a/c/d", "a/c-d", "a0", "b"])
    for name in wanted:
        await store.put(name, pieces(b"."))
    for after in [*wanted, "", "a", "a/", "a/c", "a/c0", "aa", "zz"]:
        assert await names(store, "", after) == [name for name in wanted if name > after], after
        assert await names(store, "a/", after) == [name for name in wanted if name > after and name.startswith("a/")]


async def test_folders_are_found_by_jumping(store: Store) -> None:
    for name in (
        "eastus/vaults/12/a",
        "eastus/vaults/12/b",
        "eastus/vaults/120/a",
        "eastus/vaults/3/c/d",
        "westus/x",
        "file",
    ):
        await store.put(name, pieces(b"."))
    assert [each async for each in folders(store)] == ["eastus", "westus"]
    assert [each async for each in folders(store, "eastus/vaults/")] == ["12", "120", "3"]
    assert [each async for each in folders(store, "nowhere/")] == []


async def test_compose_joins_objects_which_stay(store: Store) -> None:
    first, second = b"a" * 1_500_000, b"b" * 10
    await store.put("p/1", pieces(first))
    await store.put("p/2", pieces(second))
    info = await store.compose("whole", ("p/1", "p/2", "p/1"))
    assert info.size == len(first) * 2 + len(second)
    assert await content(store, "whole") == first + second + first
    assert await names(store, "p/") == ["p/1", "p/2"]
    with pytest.raises(Conflict):
        await store.compose("whole", ("p/1",))
    with pytest.raises(NotFound):
        await store.compose("other", ("p/1", "p/3"))
    with pytest.raises(NotFound):
        await store.info("other")
    assert (await store.compose("none", ())).size == 0


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "a/../b",
        ".hidden",
        "a/.b",
        "a b",
        "a\\b",
        "ä",
        "a\n",
        "a" * 300,
        "a/" * 600 + "a",
    ],
)
async def test_names_that_no_store_takes(store: Store, name: str) -> None:
    refused: list[AbstractContextManager[object]] = [pytest.raises(InvalidParameter) for _ in range(3)]
    with refused[0]:
        await store.put(name, pieces(b""))
    with refused[1]:
        await store.info(name)
    with refused[2]:
        await content(store, name)
    with nullcontext() if name in ("", "a/") else pytest.raises(InvalidParameter):
        await names(store, name)


async def test_two_writers_of_one_name_one_wins(store: Store) -> None:
    import asyncio

    async def write(value: bytes) -> bytes | None:
        try:
            await store.put("contended", pieces(value * 2_000_000))
        except Conflict:
            return None
        return value

    winners = [each for each in await asyncio.gather(*(write(bytes([65 + n])) for n in range(4))) if each is not None]
    assert len(winners) == 1
    assert await content(store, "contended") == winners[0] * 2_000_000
