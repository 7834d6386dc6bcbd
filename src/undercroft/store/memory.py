"""Objects in memory: for tests, and the plainest statement of what a store does."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from undercroft.clock import Clock, SystemClock
from undercroft.errors import Conflict, NotFound
from undercroft.store.names import checked, checked_prefix
from undercroft.store.store import ObjectInfo

__all__ = ["MemoryStore"]

_PIECE = 1 << 20


class MemoryStore:
    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._objects: dict[str, tuple[ObjectInfo, bytes]] = {}
        self._names: list[str] = []

    async def put(self, name: str, body: AsyncIterable[bytes], *, replace: bool = False) -> ObjectInfo:
        checked(name)
        self._refuse_taken(name, replace)
        content = b"".join([piece async for piece in body])
        return self._keep(name, content, replace)

    async def compose(self, name: str, parts: tuple[str, ...], *, replace: bool = False) -> ObjectInfo:
        checked(name)
        return self._keep(name, b"".join(self._object(checked(part))[1] for part in parts), replace)

    async def info(self, name: str) -> ObjectInfo:
        return self._object(checked(name))[0]

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        content = self._object(checked(name))[1]
        end = len(content) if length is None else min(len(content), offset + length)
        for start in range(offset, end, _PIECE):
            yield content[start : min(end, start + _PIECE)]

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        checked_prefix(prefix)
        last = after
        position = (
            bisect.bisect_left(self._names, prefix) if prefix > after else bisect.bisect_right(self._names, after)
        )
        while position < len(self._names) and self._names[position].startswith(prefix):
            last = self._names[position]
            yield self._objects[last][0]
            position = bisect.bisect_right(self._names, last)  # the list may have changed meanwhile

    async def delete(self, name: str) -> None:
        if self._objects.pop(checked(name), None) is not None:
            del self._names[bisect.bisect_left(self._names, name)]

    async def close(self) -> None:
        return None

    def _object(self, name: str) -> tuple[ObjectInfo, bytes]:
        try:
            return self._objects[name]
        except KeyError:
            raise NotFound(f"The object '{name}' does not exist.", code="ObjectNotFound", target=name) from None

    def _refuse_taken(self, name: str, replace: bool) -> None:
        if name in self._objects and not replace:
            raise Conflict(f"The object '{name}' already exists.", code="ObjectAlreadyExists", target=name)

    def _keep(self, name: str, content: bytes, replace: bool) -> ObjectInfo:
        self._refuse_taken(name, replace)
        if name not in self._objects:
            bisect.insort(self._names, name)
        info = ObjectInfo(name, len(content), hashlib.sha256(content).hexdigest()[:32], self._clock.now())
        self._objects[name] = (info, content)
        return info
