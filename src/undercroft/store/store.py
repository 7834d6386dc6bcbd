"""Bytes by name. One Protocol; the filesystem and memory implement it, wrappers (``faulty``) implement it around another.

Names are ``/``-separated segments of ``[A-Za-z0-9._-]``; no segment starts with a dot. Objects are immutable: a name is
written once. An object is visible only when it is whole and durable.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

__all__ = ["ObjectInfo", "Store"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    name: str
    size: int
    etag: str
    modified: datetime


class Store(Protocol):
    """``NotFound`` means gone; ``Conflict`` that the name is taken; ``StorageFull`` that nothing was kept, free space and
    repeat; ``Unavailable`` that the same call may be repeated. All other errors are final."""

    async def put(self, name: str, body: AsyncIterable[bytes], *, replace: bool = False) -> ObjectInfo:
        """Write a whole object; durable (data and directory entry) when this returns. Without ``replace`` a taken name
        is ``Conflict`` and the old object stays. If ``body`` raises, nothing is left behind."""

    async def compose(self, name: str, parts: tuple[str, ...], *, replace: bool = False) -> ObjectInfo:
        """An object that is the concatenation of others, which stay."""

    async def info(self, name: str) -> ObjectInfo: ...

    def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes, in pieces of at most 1 MiB. Raises at the first step, not at the call."""

    def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose name starts with ``prefix`` and sorts after ``after``, in order of name."""

    async def delete(self, name: str) -> None:
        """Gone afterwards; deleting what is not there is fine."""

    async def close(self) -> None: ...
