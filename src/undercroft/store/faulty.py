"""A store that fails on purpose, as planned.

    plan = Faults(Fault("put", nth=3, error=StorageFull("no room")), Fault("get", nth=1, error=..., after=65536))
    with plan:                                    # leaving the block fails if a planned fault was never hit
        store = FaultyStore(MemoryStore(), plan)

``after`` lets that many bytes pass before a put's body or a get's answer breaks. ``acknowledged`` does the work first and
loses the answer, as a connection does that dies after the last byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Literal

from undercroft.store.store import ObjectInfo, Store

__all__ = ["Fault", "Faults", "FaultyStore", "PlannedFaultNotHit"]

Operation = Literal["put", "compose", "info", "get", "list", "delete"]


class PlannedFaultNotHit(AssertionError):
    """The test did not reach the failure it was written for."""


@dataclass(frozen=True, slots=True)
class Fault:
    operation: Operation
    nth: int
    """1 is the first call of this operation whose name starts with ``prefix``."""
    error: Exception
    prefix: str = ""
    after: int = 0
    acknowledged: bool = False


class Faults:
    def __init__(self, *faults: Fault) -> None:
        self._waiting = list(faults)
        self._calls: Counter[tuple[str, str]] = Counter()

    def due(self, operation: Operation, name: str) -> Fault | None:
        """Counts this call; the fault planned for it, if any, is then used up."""
        found: Fault | None = None
        for key in {(fault.operation, fault.prefix) for fault in self._waiting}:
            if key[0] == operation and name.startswith(key[1]):
                self._calls[key] += 1
        for fault in self._waiting:
            key = (fault.operation, fault.prefix)
            if fault.operation == operation and name.startswith(fault.prefix) and self._calls[key] == fault.nth:
                found = fault
                break
        if found is not None:
            self._waiting.remove(found)
        return found

    def check(self) -> None:
        if self._waiting:
            raise PlannedFaultNotHit(f"These planned faults were never hit: {self._waiting}")

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self.check()


class FaultyStore:
    def __init__(self, inner: Store, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    async def put(self, name: str, body: AsyncIterable[bytes], *, replace: bool = False) -> ObjectInfo:
        fault = self._faults.due("put", name)
        if fault is None:
            return await self._inner.put(name, body, replace=replace)
        if fault.acknowledged:
            await self._inner.put(name, body, replace=replace)
            raise fault.error
        return await self._inner.put(name, _broken(body, fault), replace=replace)

    async def compose(self, name: str, parts: tuple[str, ...], *, replace: bool = False) -> ObjectInfo:
        fault = self._faults.due("compose", name)
        if fault is not None and not fault.acknowledged:
            raise fault.error
        info = await self._inner.compose(name, parts, replace=replace)
        if fault is not None:
            raise fault.error
        return info

    async def info(self, name: str) -> ObjectInfo:
        self._raise_due("info", name)
        return await self._inner.info(name)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        fault = self._faults.due("get", name)
        body = self._inner.get(name, offset, length)
        async for piece in body if fault is None else _broken(body, fault):
            yield piece

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        self._raise_due("list", prefix)
        async for each in self._inner.list(prefix, after):
            yield each

    async def delete(self, name: str) -> None:
        fault = self._faults.due("delete", name)
        if fault is not None and not fault.acknowledged:
            raise fault.error
        await self._inner.delete(name)
        if fault is not None:
            raise fault.error

    async def close(self) -> None:
        await self._inner.close()

    def _raise_due(self, operation: Operation, name: str) -> None:
        fault = self._faults.due(operation, name)
        if fault is not None:
            raise fault.error


async def _broken(body: AsyncIterable[bytes], fault: Fault) -> AsyncIterator[bytes]:
    left = fault.after
    async for piece in body:
        if len(piece) >= left:
            if left:
                yield piece[:left]
            raise fault.error
        left -= len(piece)
        yield piece
    raise fault.error
